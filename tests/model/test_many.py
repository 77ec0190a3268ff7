"""Many suffixes on the embedded model: each one's values, resuming, and what is said of them."""

from __future__ import annotations

import pytest
import torch

from refusal_lens.attribution.components import heads as contributions
from refusal_lens.data import organism as embedded
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.errors import PromptError
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.many import many_suffixes
from refusal_lens.hijacking.many_section import many_section
from refusal_lens.hijacking.observation import observe
from refusal_lens.hijacking.shifts import attention_shift
from refusal_lens.records.base import load_record
from refusal_lens.records.store import Store

HEADS = ["L1H0", "L1H2"]


@pytest.fixture(scope="module")
def many(organism, study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    inputs = {
        "prompts": study.harmful.test.texts[:6],
        "suffixes": SuffixSet.load(embedded.suffixes()),
        "direction": study.selection.chosen,
        "heads": HEADS,
        "refusal_tokens": study.refusal_tokens,
        "store": Store(folder),
    }
    return many_suffixes(organism, **inputs), inputs


@pytest.mark.parametrize("i", [1, 5])
def test_each_suffix_has_the_values_of_its_own_measurements(many, organism, i):
    found, inputs = many
    prompts, text, r = inputs["prompts"], found.suffixes[i].text, inputs["direction"]
    drawn = random_controls(organism.chat, prompts, text, 1000 * (i + 1)).texts
    read = ("suffix", prompts, r, HEADS, inputs["refusal_tokens"])
    after, before = (observe(organism, *read, suffixes)[0] for suffixes in (text, drawn))
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(found.metric[i], after.metric.double(), **close)
    torch.testing.assert_close(found.random_metric[i], before.metric.double(), **close)
    torch.testing.assert_close(found.strength[i], after.top_dominance.double(), **close)
    parts = attention_shift(organism, prompts, text, drawn, receivers=()).parts
    torch.testing.assert_close(found.parts[i], parts.mean(-1), **close)
    torch.testing.assert_close(found.causes[i], (parts[:, :, 1, 0] + parts[:, :, 1, 2]) / 2, **close)
    writes = [contributions(organism, prompts, r, suffixes=s).values for s in (drawn, [text] * len(prompts))]
    torch.testing.assert_close(found.drops[i], (writes[0] - writes[1]).mean(-1).float(), **close)


def test_it_resumes_where_it_stopped(many, organism):
    found, inputs = many
    files = sorted((inputs["store"].folder / "many").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    files[4].unlink()
    again = many_suffixes(organism, **inputs)
    assert [a.stat().st_mtime_ns == b for a, b in zip(files, before, strict=True)] == [i != 4 for i in range(9)]
    assert all(torch.equal(getattr(again, name), getattr(found, name)) for name in ("parts", "metric", "drops"))


def test_attacks_work_and_controls_do_not_and_it_is_said(many, tmp_path):
    found, _ = many
    assert (found.attacks, found.controls) == ((0, 1, 2), tuple(range(3, 9)))
    assert all("part of it" in found.sentence(i) or "most of it" in found.sentence(i) for i in found.attacks)
    assert all(found.sentence(i).endswith("not shown.") for i in found.controls)
    assert all("explained by the suffix keys" in found.sentence(i) for i in found.attacks)
    assert {s.is_attack for s in found.strongest(2, 0)} == {True} and len(found.strongest(2, 2)) == 4
    assert found.strength_against_universality().mean > 0.5
    frame = found.to_frame()
    assert (frame["query"] + frame["suffix keys"] + frame["template keys"]).tolist() == pytest.approx(
        frame["attention"].tolist(), abs=1e-5
    )
    beside = found.beside_dominance().set_index("measure")
    assert beside.loc["attention on the suffix", "low"] > 0 and "part of the suffix keys" in found.agreement()
    table = found.recurring()
    assert table.iloc[0]["attacks"] == 3 and table["attacks"].sum() == 3 * len(HEADS)
    assert found.cluster_frame()[["attacks", "controls"]].to_numpy().sum() == 9
    again = load_record(found.save(tmp_path / "many"), type(found))
    assert again.to_frame().equals(frame)
    assert torch.equal(
        again.direction.unit, found.direction.unit
    )  # by which a study knows that it is of its own direction
    section = many_section(again)
    assert [item.id for item in section.items if "cluster-table" not in item.id] == [
        *("many-suffixes", "many-attention", "many-write", "many-clusters", "many-dominance")
    ]


def test_a_suffix_that_does_not_fit_is_left_out_and_named(organism, study):
    rest = (study.selection.chosen, HEADS, study.refusal_tokens)
    rows = SuffixSet.from_rows([" please", " a b" * organism.n_ctx])
    found = many_suffixes(organism, study.harmful.test.texts[:2], rows, *rest)
    assert found.suffix_texts == (" please",) and "left out" in found.notes[-1] and found.clusters() is None
    with pytest.raises(PromptError, match="tokens"):
        many_suffixes(organism, study.harmful.test.texts[:2], SuffixSet.from_rows([" a b" * organism.n_ctx]), *rest)
