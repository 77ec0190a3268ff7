"""``refusal-lens ablations`` on a small Gemma-3 that refuses, with massive activations and its template in a file."""

from __future__ import annotations

from html import unescape

import pytest

from refusal_lens import load_model
from refusal_lens.data.organism import instructions
from refusal_lens.direction.effect_records import AblationForms
from refusal_lens.direction.section import direction_section
from refusal_lens.direction.select import SelectionRule, select_direction
from refusal_lens.errors import SelectionError
from refusal_lens.study.folder import Study
from tests.command import call
from tests.refusing import SIZES, refusing_folder
from tests.tiny import CHATML, tiny_tokenizer


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Selected under the scaled form: the direction alone first, then the rest, which takes it as it is."""
    folder = tmp_path_factory.mktemp("massive")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "template.jinja").write_text(CHATML)
    model, out = refusing_folder(folder / "tokenizer", folder / "model", CHATML, massive=100.0), folder / "run"
    options = ["--chat-template", folder / "template.jinja", "--out", out, "--quiet", "--no-attribution"]
    options += [word for kind in ("harmful", "harmless") for word in (f"--{kind}", instructions()[kind])]
    options += [word for split, n in zip(("train", "val", "test"), SIZES, strict=True) for word in (f"--n-{split}", n)]
    options += ["--max-new-tokens", 12, "--ablation", "scaled", "--layer-cutoff", 1, "--relax"]
    assert call("run", model, *options, "--only", "selection").returncode == 0
    written = (out / "selection.safetensors").stat().st_mtime_ns
    assert call("run", model, *options).returncode == 0
    assert (out / "selection.safetensors").stat().st_mtime_ns == written
    return Study(out)


def test_the_command_names_the_form_that_measures_refusal(study):
    done = call("ablations", "--direction", study.folder, "--max-new-tokens", 12, "--seeds", 2)
    found = AblationForms.load(study.folder / "ablations")
    assert study.selection.form == "scaled" and not study.selection.placebo_fails
    assert found.refused.rate == 1 and found.refused.n == SIZES[2]
    assert found.effect("paper", "random").kl.mean > 1 and found.effect("scaled", "random").kl.mean < 0.01
    for along in ("random", "matched"):
        assert found.effect("scaled", along).refused.low > 0.7
        assert found.effect("scaled").harmful.high < found.effect("scaled", along).harmful.low - 5
    rates = study.completions["harmful"].rates  # a run's ablation has the form that selected
    assert rates["ablation"] == found.effect("scaled").refused != rates["baseline"] == rates["random_ablation"]
    assert found.effect("affine").refused.high < found.refused.low
    assert found.recommended == "affine"
    assert "do not measure refusal on this model" in found.warning and "the form 'affine' does" in found.warning
    for words in ("refused in replies", "100% [74%, 100%]", "does not measure refusal", "recommended: affine"):
        assert words in done.stdout, done.stdout
    assert call("report", study.folder).returncode == 0
    page = unescape((study.folder / "report.html").read_text("utf-8"))
    for words in ("Forms of ablation", "Here ablation has the form 'scaled'", "do not measure refusal on this model"):
        assert words in page, words


def test_the_figure_of_massive_activations_draws_shares_that_end_at_one(study):
    candidates, chosen = study.candidates, study.selection.chosen
    stream, r, tokens = candidates.plot("massive", direction=chosen).data
    energy = candidates.statistics.size[chosen.layer].square()
    assert stream.y[0] == pytest.approx(float(energy.max() / energy.sum())) and stream.y[-1] == pytest.approx(1)
    assert r.y[-1] == pytest.approx(1) and str((chosen.pos, chosen.layer)) in r.name
    assert list(tokens.y) == [token.ratio for token in candidates.statistics.tokens[:10]]


def test_selection_by_the_papers_form_says_that_its_thresholds_fail(study):
    model = load_model(str(study.folder.parent / "model"), chat_template=CHATML, dtype="float32", device="cpu")
    asked = (model, study.candidates, study.harmful, study.harmless)
    options = {"refusal_tokens": study.refusal_tokens, "rule": SelectionRule(layer_cutoff=1.0)}
    with pytest.raises(SelectionError, match="this threshold does not measure refusal here"):
        select_direction(*asked, **options)
    selection = select_direction(*asked, **options, relax=True)
    assert selection.placebo_fails and min(selection.placebo_kl) > 1
    record = AblationForms.load(study.folder / "ablations")
    for ablations, words in ((record, "the form 'affine' does"), (None, "`refusal-lens ablations` compares the forms")):
        section = direction_section(selection, study.candidates, ablations=ablations)
        text = " ".join(section.text)
        assert "the thresholds do not measure refusal on this model" in text and words in text
    assert "Massive coordinates of this layer's stream" in text and "Massive coordinates make plain ablation" in text
