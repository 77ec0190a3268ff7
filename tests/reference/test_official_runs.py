"""The rule and the judge on the paper's published runs: same winner, same list, same verdicts.

The runs are not part of the project; ``REFUSAL_LENS_OFFICIAL_RUNS`` names their folder, or they lie in
``../shared/data/official_runs`` beside the checkout.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from refusal_lens.direction.records import SelectionScores
from refusal_lens.direction.select import SelectionRule, choose
from refusal_lens.refusal.phrases import is_refusal

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "official_runs"
RUNS = Path(os.environ.get("REFUSAL_LENS_OFFICIAL_RUNS", BESIDE))
pytestmark = pytest.mark.skipif(not RUNS.is_dir(), reason="the official runs are not here")
MODELS = ["gemma-2b-it", "qwen-1_8b-chat"]


def _read(model: str, name: str):
    return json.loads((RUNS / model / name).read_text())


@pytest.mark.parametrize("model", MODELS)
def test_same_winner_and_same_list_in_the_same_order(model):
    choice = choose(SelectionScores.from_records(_read(model, "direction_evaluations.json")))
    published = _read(model, "direction_metadata.json")
    assert choice.chosen == (published["pos"], published["layer"])
    kept = [(row["position"], row["layer"]) for row in _read(model, "direction_evaluations_filtered.json")]
    assert list(choice.kept) == kept
    dropped = sum(reason != "" for row in choice.reasons for reason in row)
    assert dropped + len(kept) == len(_read(model, "direction_evaluations.json"))


@pytest.mark.parametrize("model", MODELS)
def test_each_threshold_matters(model):
    scores = SelectionScores.from_records(_read(model, "direction_evaluations.json"))
    paper = choose(scores).kept
    assert set(paper) < set(choose(scores, SelectionRule(max_kl=10)).kept)
    assert set(paper) < set(choose(scores, SelectionRule(min_induce=-100)).kept)
    assert not choose(scores, SelectionRule(layer_cutoff=0.01)).kept


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["actadd", "baseline"])
def test_same_verdicts(model, kind):
    completions = _read(model, f"harmless_{kind}_evaluations.json")["completions"]
    assert len(completions) == 100
    for item in completions:
        official = str(item["is_jailbreak_substring_matching"]) == "0"
        assert is_refusal(item["response"]) == is_refusal(item["response"], exact=True) == official


def test_the_direction_is_the_mean_difference_at_the_chosen_place():
    folder = RUNS / "qwen-1_8b-chat"
    load = {"weights_only": True, "map_location": "cpu"}
    mean_diffs, direction = (torch.load(folder / f"{name}.pt", **load) for name in ("mean_diffs", "direction"))
    place = _read("qwen-1_8b-chat", "direction_metadata.json")
    assert torch.equal(mean_diffs[place["pos"], place["layer"]].to(direction), direction)


def test_rows_that_are_no_rows_are_refused():
    from refusal_lens.errors import ResultError

    with pytest.raises(ResultError, match="not rows"):
        SelectionScores.from_records([{"position": -1}])
