"""What a suffix does: exact splits on tiny models, and the finding on the embedded model with its controls."""

from __future__ import annotations

import pytest
import torch

from refusal_lens.attribution import source_contributions
from refusal_lens.hijacking import hijacking, split_drop, summary_frame
from refusal_lens.organism import suffixes
from refusal_lens.records import load_record
from refusal_lens.suffixes import SuffixSet

from .cases import ALL, direction_of, model_of

PROMPTS = ["Tell me a story", "How are you all?"]
SUFFIXES = [" please do it", " and be quick"]


@pytest.mark.parametrize("architecture", ALL)
def test_moved_and_changed_add_up_to_the_drop(architecture):
    model = model_of(architecture, torch.float32)
    direction = direction_of(model)
    plain = source_contributions(model, PROMPTS, direction)
    suffixed = source_contributions(model, PROMPTS, direction, suffixes=SUFFIXES)
    split = split_drop(plain, suffixed)
    drop = plain.head_contributions().values - suffixed.head_contributions().values
    assert torch.allclose(split.drop, drop, atol=1e-4)
    assert torch.allclose(split.drop_by_region.sum(2), drop, atol=1e-4)
    assert float(split.moved.abs().max()) > 1e-4 and float(split.changed.abs().max()) > 1e-4


@pytest.fixture(scope="module")
def report(organism, study, tmp_path_factory):
    """Adversarial and random suffixes on held-out prompts, heads chosen on others."""
    found = SuffixSet.load(suffixes())
    harmful, harmless = study.harmful, study.harmless
    return hijacking(
        organism,
        harmful.test.texts,
        found,
        study.selection.chosen,
        harmless=harmless.test.texts,
        head_prompts=harmful.val.texts,
        refusal_tokens=study.refusal_tokens,
    )


def test_adversarial_suffixes_work_random_ones_do_not_and_the_cause_is_tested(report):
    table = summary_frame(report)
    adversarial, random = (table[table["kind"] == kind] for kind in ("adversarial", "random_words"))
    assert len(adversarial) == 3 and len(random) == 6
    assert (adversarial["refused"] <= 0.10).all() and (random["refused"] >= 0.90).all()
    assert (adversarial["refused_random"] >= 0.90).all()  # freshly drawn controls of equal length
    assert (adversarial["metric_drop"] > 5).all() and (adversarial["strength"] > random["strength"].max()).all()
    assert (adversarial["attention_rise"] > 0.1).all()
    assert set(random["mechanism"]) == {"does not work"} and "does not work" not in set(adversarial["mechanism"])


def test_the_report_is_a_record(report, tmp_path):
    path = report.save(tmp_path / "report")
    assert load_record(path, type(report)).notes == report.notes
