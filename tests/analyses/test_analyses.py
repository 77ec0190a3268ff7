"""Every analysis of behaviour runs on the embedded model and leaves its records and one self-contained page."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from refusal_lens.records.base import Record, load_record

ANALYSES = Path(__file__).parents[2] / "analyses"
# name -> (extra arguments, records, words on the page or, for those that leave figures only, on the terminal)
SCRIPTS = {
    "fig1_ablation": ([], ["table"], ["Scorecard", "not measured", "Clopper-Pearson"]),
    "fig3_addition": ([], ["table"], ["addition"]),
    "ce_loss": ([], ["losses_own_completions", "losses_requests_as_text"], ["perplexity"]),
    "refusal_metric": ([], ["proxy"], ["AUROC"]),
    "selection_grid": ([], ["selection"], ["bypass"]),
    "subtraction": ([], ["table", "losses"], ["subtraction"]),
    "system_prompts": ([], ["system_prompts"], ["system prompts"]),
    "base_vs_chat": ([], ["trace"], ["untrained"]),
    "stability": (["--resamples", "2"], ["stability"], ["resamples"]),
    "fine_tuning": (["--steps", "0", "4"], ["fine_tuning"], ["old", "fine-tuning"]),
    "subspace": (
        ["--k", "2", "--most", "3"],
        ["effects", "categories", "languages", "transfer"],
        ["random groups of the same sizes", "Spanish", "in-sample"],
    ),
    "cones": (
        ["--seeds", "1", "--steps", "10", "--batch", "2", "--samples", "1"],
        ["effects", "direction", "cone", "independence"],
        ["Cosine of the first vector", "the model&#39;s own answers", "placebo"],
    ),
    "cross_behaviour": ([], ["ablation", "addition"], ["Cross-effects"]),
    "transfer": ([], ["ablation", "addition"], ["Transfer"]),
    "harm": ([], ["map", "ablation", "addition"], ["AUROC of harmful against harmless", "against its random tokens"]),
    "over_refusal": (["--condition", "ablation"], ["over_refusal"], ["Of the borderline prompts", "orthogonal to r̂"]),
    "detectors": (["--harmless-prompts", "20"], ["detectors"], ["Fewer than 500 harmless", "Mahalanobis"]),
    "dose": (
        ["--n", "4", "--strength", "ablation=1", "--strength", "addition=1,2", "--place", "last=-1"],
        ["compared", "test_ablation", "test_addition"],
        ["usable", "Clopper-Pearson", "random direction", "last"],
    ),
    "fig5_suffix_trace": (["--limit", "1"], ["report"], ["cosine with the direction by layer"]),
    "fig6_suffix_heads": (["--limit", "1"], ["report"], ["attention moved", "random tokens of equal length"]),
    "suffix_attention": (["--limit", "1"], ["report"], ["keys of", "area"]),
    "suffix_grids": (
        ["--limit", "1", "--grid-prompts", "4", "--site", "resid_pre", "--exact", "8"],
        ["resid_pre_into_suffixed", "resid_pre_into_clean", "paths_into_suffixed", "paths_into_clean"],
        ["largest cell", "random senders", "stays with attention held as in the random run", "8 cells x 4 prompts"],
    ),
    "many_suffixes": (
        ["--count", "12", "--n", "6", "--detail", "1", "--controls", "1", "--detail-n", "6"],
        ["many", "report"],
        [
            "3 are meant to stop refusals, 9 are controls",
            "dominance score",
            "silhouette",
            "heads that recur",
            "within chance",
        ],
    ),
    "causal_table": (["--limit", "1"], ["report"], ["cut top heads", "placebo"]),
    "top_heads": ([], ["heads", "causal", "patching", "sources"], ["rank correlation"]),
    "dla_refusal_tokens": ([], ["dla_harmful", "dla_harmless"], ["TransformerLens's logit_attrs"]),
    "propagation": ([], [], ["mean projection on"]),
}


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    """One study, found by the first script and read by the others."""
    return tmp_path_factory.mktemp("analyses") / "study"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs_on_the_embedded_model(name, study_folder, tmp_path, monkeypatch, capsys):
    extra, records, words = SCRIPTS[name]
    arguments = ["--train", "48", "--prompts", "12", "--max-new-tokens", "12", "--study", str(study_folder)]
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--out", str(tmp_path), *extra])
    importlib.import_module(f"analyses.{name}").main()
    told = capsys.readouterr().out
    assert "direction at" in told
    for record in records:
        load_record(tmp_path / record, Record)
    pages = list(tmp_path.glob("*.html"))
    whole = tmp_path / "index.html"
    page = told + (whole.read_text("utf-8") if whole in pages else "")
    assert pages and all(word.lower() in page.lower() for word in words)
    # Nothing is fetched from anywhere (plotly's own code names addresses, tags do not).
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(https?:)?//", page)


@pytest.mark.slow
def test_benchmarks_of_ones_own(study_folder, tmp_path, monkeypatch, capsys):
    """The table of coherence with a task from a folder: the official ones need a network."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": "The sky is", "choices": ["blue", "made of cheese"], "answer": i % 2} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sky.yaml").write_text(
        f"task: sky\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{tmp_path / 'data.jsonl'}'}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
        "doc_to_choice: choices\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    arguments = ["--study", str(study_folder), "--train", "48", "--prompts", "12", "--max-new-tokens", "12"]
    arguments += ["--task", "sky", "--task-folder", str(tmp_path / "tasks"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["coherence", *arguments])
    importlib.import_module("analyses.coherence").main()
    assert "acc" in capsys.readouterr().out
    scores = load_record(tmp_path / "out" / "harness", Record)
    # Two of four questions, whose answers are each other's opposite: exactly half under every condition.
    assert {(i.condition, i.value, i.n) for i in scores.items} == {
        (condition, 0.5, 4) for condition in ("baseline", "ablation", "orthogonalized", "random_ablation")
    }


@pytest.mark.slow
def test_files_of_ones_own(study_folder, tmp_path, monkeypatch, capsys):
    base = ["--train", "48", "--prompts", "12", "--max-new-tokens", "12", "--study", str(study_folder)]
    (tmp_path / "t.txt").write_text("One line of text.\n\nAnother line of it.\n")
    rows = [{"instruction": "How do I bake bread?", "output": "Sure, you can bake bread with ease."}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--text", str(tmp_path / "t.txt"), "--completions", str(tmp_path / "c.jsonl")]
    monkeypatch.setattr(sys, "argv", ["ce_loss", *base, "--out", str(tmp_path / "ce"), *files])
    importlib.import_module("analyses.ce_loss").main()
    assert {p.stem for p in (tmp_path / "ce").glob("losses_*")} == {
        "losses_text",
        "losses_completions",
        "losses_own_completions",
    }
    (tmp_path / "one.txt").write_text("only one prompt\n")
    sets = ["--set", f"a={tmp_path / 'one.txt'}"]
    monkeypatch.setattr(sys, "argv", ["transfer", *base, "--out", str(tmp_path / "t"), *sets])
    with pytest.raises(SystemExit):
        importlib.import_module("analyses.transfer").main()
    assert "too few prompts" in capsys.readouterr().err


def test_scripts_are_short_and_on_the_map():
    readme = (ANALYSES / "README.md").read_text("utf-8")
    for path in ANALYSES.glob("*.py"):
        if path.stem in ("__init__", "common"):
            continue
        assert len(path.read_text("utf-8").splitlines()) <= 80, path
    for name in SCRIPTS:
        assert f"python -m analyses.{name}" in readme, name
