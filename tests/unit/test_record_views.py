"""What every record does by itself: sizes, values at a label, a table, one line, figures, old names."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.attribution.causal_records import CausalCheck
from refusal_lens.attribution.records import DirectLogitAttribution, HeadContributions, TopHeads
from refusal_lens.attribution.token_records import AttentionPatterns, Propagation, SourceContributions
from refusal_lens.direction.cone_records import SubspaceEffects
from refusal_lens.direction.records import CandidateDirections, DirectionTrace, Selection
from refusal_lens.errors import LabelError
from refusal_lens.exactness.records import Certificate
from refusal_lens.records.base import Record, load_record
from refusal_lens.records.direction import Direction
from refusal_lens.records.files import plain_json
from refusal_lens.refusal.records import Completions, Metrics
from refusal_lens.stats import mean_interval
from refusal_lens.tensors import random_unit
from tests.unit.test_plots_hijacking import WORKS, report, result

FOLDER = Path(__file__).parents[1] / "reliability" / "folders" / "schema_2"
HEADS = HeadContributions(
    torch.arange(24.0).reshape(2, 3, 4), Direction(random_unit(8, 0), 1.0, -1, 1), ("a", "b", "c", "d")
)
STORED = {
    "candidates": CandidateDirections,
    "selection": Selection,
    "trace": DirectionTrace,
    "metrics": Metrics,
    "completions_harmful": Completions,
    "certificate": Certificate,
    "inside/heads": TopHeads,
    "inside/causal": CausalCheck,
    "inside/logits": DirectLogitAttribution,
    "inside/patterns": AttentionPatterns,
    "inside/propagation": Propagation,
    "inside/sources": SourceContributions,
}


def test_sizes_come_from_the_annotations():
    assert HEADS.sizes == {"layer": 2, "head": 3, "prompt": 4}


def test_a_head_is_selected_by_its_label():
    for chosen in (HEADS.sel("L1H2"), HEADS.sel(head="L1H2"), HEADS.sel(layer=1, head=2), HEADS.sel(head=(1, 2))):
        assert torch.equal(chosen.values, HEADS.values[1, 2]) and chosen.sizes == {"prompt": 4}
    one = HEADS.sel(head="L1H2").sel(prompt="c")
    assert float(one.values) == float(HEADS.values[1, 2, 2]) and one.sizes == {}
    assert torch.equal(HEADS.sel("b").values, HEADS.sel(prompt=1).values)
    assert HEADS.sel(layer=-1).sizes == {"head": 3, "prompt": 4}


@pytest.mark.parametrize(
    ("label", "labels", "said"),
    [
        (("L7H0",), {}, r"no label 'L7H0'.*layer: 0, 1; head: 0, 1, 2; prompt: a, b, c, d"),
        ((), {"head": "L7H0"}, r"no layer 7; HeadContributions has 0, 1"),
        ((), {"condition": "ablation"}, r"no axis 'condition'; HeadContributions has layer, head, prompt"),
        ((), {"head": "seven"}, r"'seven' is not a head; write layer and head as in 'L12H7'"),
        ((1,), {}, r"more than one axis.*sel\(layer=1\) or sel\(head=1\)"),
        (("a",), {"prompt": 0}, r"'a' is a prompt, and prompt is given twice"),
    ],
)
def test_a_wrong_label_lists_the_right_ones(label, labels, said):
    with pytest.raises(LabelError, match=said):
        HEADS.sel(*label, **labels)


def test_a_selection_has_a_table_and_names_its_tensors():
    frame = HEADS.sel(layer=1).to_frame()
    assert list(frame.columns) == ["head", "mean", "low", "high", "n"] and len(frame) == 3
    assert frame["mean"].tolist() == HEADS.values[1].mean(-1).tolist()
    with pytest.raises(AttributeError, match="no 'valus'; the selection has values"):
        _ = HEADS.sel(layer=1).valus


def test_regions_conditions_and_positions():
    sources = load_record(FOLDER / "inside/sources", SourceContributions)
    at = sources.regions.index("instruction")
    assert torch.equal(sources.sel(region="instruction").by_region, sources.by_region()[..., at])
    trace = load_record(FOLDER / "trace", DirectionTrace)
    chosen = trace.sel(trace.conditions[1])
    assert torch.equal(chosen.cosine, trace.cosine[1]) and torch.equal(chosen.projection, trace.projection[1])
    candidates = load_record(FOLDER / "candidates", CandidateDirections)
    assert torch.equal(candidates.sel(pos=-1, layer=0).mean_diff, candidates.mean_diff[-1, 0])
    with pytest.raises(LabelError, match="no pos 0"):
        candidates.sel(pos=0)


def test_records_without_tensors_select_rows():
    replies = load_record(FOLDER / "completions_harmful", Completions)
    rows = replies.sel("ablation").to_frame()
    assert rows["response"].tolist() == [item.response for item in replies.of("ablation")]
    with pytest.raises(LabelError, match="no condition 'abl'; Completions has baseline, "):
        replies.sel(condition="abl")
    with pytest.raises(LabelError, match="no column 'head'; Completions has prompt, "):
        replies.sel(head=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: load_record(FOLDER / "inside/causal", CausalCheck).of("x"),
        lambda: load_record(FOLDER / "selection", Selection).score("x"),
        lambda: load_record(FOLDER / "completions_harmful", Completions).of("x"),
        lambda: WORKS.results[0].causal.test("x"),
        lambda: WORKS.results[0].causal.passed("x"),
        lambda: WORKS.results[0].suffixed.attention_to("x"),
        lambda: WORKS.detectors.roc("x", 1, "harmful"),
        lambda: WORKS.detectors.of("both", 1, "x"),
        lambda: WORKS.result("x"),
    ],
)
def test_accessors_answer_a_wrong_name_alike(call):
    with pytest.raises(LabelError, match=r"there is no [a-z ]+ 'x'; .* has .+"):
        call()


@dataclass(frozen=True)
class Toy(Record, axes={"row": ("up", "down")}):
    values: Float[Tensor, "row prompt"]


def test_the_default_table_has_one_row_per_label():
    values = torch.tensor([[1.0, 2.0, 4.0], [0.0, float("nan"), 6.0]])
    frame = Toy(values).to_frame()
    assert frame["row"].tolist() == ["up", "down"] and frame["n"].tolist() == [3, 2]
    known = mean_interval([1.0, 2.0, 4.0])
    assert frame.iloc[0][["mean", "low", "high"]].tolist() == [known.mean, known.low, known.high]


@pytest.mark.parametrize("name", STORED)
def test_every_stored_record_shows_itself(name):
    """One line without a tensor's numbers, a table, a figure or what to do instead."""
    record = load_record(FOLDER / name, STORED[name])
    line = repr(record)
    assert line.startswith(type(record).__name__ + "(") and "\n" not in line and len(line) < 260
    assert "tensor" not in line
    for _, values in record._view()._held.values():
        numbers = values.flatten()[:3].tolist()
        assert not any(isinstance(v, float) and v == v and v % 1 and repr(v)[:6] in line for v in numbers)
    assert isinstance(record.to_frame(), pd.DataFrame) and len(record.to_frame())
    html = record._repr_html_()
    assert "<table" in html and len(re.findall("<tr", html)) <= 9
    try:
        assert isinstance(record.plot(), go.Figure)
    except LabelError as error:
        assert "to_frame()" in str(error)
    with pytest.raises(LabelError, match="there is no figure 'pie'"):
        record.plot("pie")


def test_one_line_names_the_sizes():
    assert repr(HEADS) == "HeadContributions(layer 2, head 3, prompt 4)"
    assert repr(HEADS.direction).startswith("Direction(pos ") and "d_model 8" in repr(HEADS.direction)
    effects = SubspaceEffects(("pca",), (1, 2), torch.zeros(1, 2, 6, 3), torch.zeros(6, 3), (0.1234,), HEADS.direction)
    assert repr(effects) == "SubspaceEffects(kind 1, size 2, measure 6, prompt 3)"


def test_the_head_of_a_table_needs_no_other_intervals():
    frame = HEADS.to_frame()
    assert frame.head(4).equals(HEADS._head(4))


@pytest.mark.parametrize(
    "kind",
    [
        "suffixes", "trace by layer", "heads", "attention by region", "attention by position", "split of the drop",
        "parts of the drop", "causal tests", "tokens", "detectors",
    ],
)  # fmt: skip
def test_an_investigation_draws_itself(kind):
    assert isinstance(WORKS.plot(kind), go.Figure)


def test_an_investigation_draws_the_suffix_that_is_named():
    chosen = WORKS.plot("trace by layer", result=" z")
    assert chosen != WORKS.plot("trace by layer", result=" hi")
    assert WORKS.plot().to_json() == WORKS.plot("suffixes").to_json()
    with pytest.raises(LabelError, match=r"there is no figure 'pie'; Investigation has suffixes, trace by layer"):
        WORKS.plot("pie")
    with pytest.raises(LabelError, match="no causal tests were measured"):
        report([result()]).plot("causal tests")


def test_a_record_is_plain_json():
    metrics = load_record(FOLDER / "metrics", Metrics)
    assert json.loads(json.dumps(plain_json(metrics)))["harmful"]["baseline"]["n"] == metrics.harmful["baseline"].n


def test_old_names_of_classes_and_fields_still_load(tmp_path):
    """The stored folder of schema 2 was written when these were HeadReport (selection, report) and LogitAttribution."""
    text = (FOLDER / "inside/heads.safetensors").read_bytes()
    assert b"HeadReport" in text and b"TopHeads" not in text
    heads = load_record(FOLDER / "inside/heads", TopHeads)
    assert len(heads.chosen_on.prompts) and not set(heads.chosen_on.prompts) & set(heads.reported.prompts)
    again = load_record(heads.save(tmp_path / "heads"), TopHeads)
    assert torch.equal(again.reported.values, heads.reported.values)
    assert b"HeadReport" not in (tmp_path / "heads.safetensors").read_bytes()
    assert b"LogitAttribution" in (FOLDER / "inside/logits.safetensors").read_bytes()
    assert load_record(FOLDER / "inside/logits", DirectLogitAttribution).error < 1e-3
