"""The page: libraries once, text escaped, data beside every figure, verdicts that follow the intervals."""

from __future__ import annotations

from urllib.parse import unquote

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from refusal_lens.direction.records import CandidateDirections, Selection, SelectionScores
from refusal_lens.direction.section import direction_section
from refusal_lens.hijacking.mechanisms import MECHANISMS
from refusal_lens.hijacking.section import _ways
from refusal_lens.records.direction import Direction
from refusal_lens.report.page import Figure, Page, Section, Table, Widget
from refusal_lens.report.views import circuitsvis_packed, plotly_packed
from refusal_lens.stats import rate
from refusal_lens.study.sections import provenance_section
from refusal_lens.study.summary import _plainly, effect_sentence


def _page(*items) -> str:
    return Page("A <b>title</b>", ("Found & said.",), sections=(Section("s", "S", ("Text.",), tuple(items)),)).render()


def test_text_is_escaped_and_figures_can_not_close_their_script():
    evil = "</script><script>alert(1)</script>"
    figure = Figure("f", go.Figure(go.Scatter(x=[1], y=[2], text=[evil])), evil, data=pd.DataFrame({"a": [evil]}))
    html = _page(
        figure,
        Table("t", ("c",), ((evil,),)),
        Widget("w", "ColoredTokens", {"tokens": [evil], "values": [1.0]}, "caption"),
    )
    assert evil not in html and "A &lt;b&gt;title&lt;/b&gt;" in html


def test_each_library_is_in_the_page_once_and_only_if_used():
    figure = Figure("f", go.Figure(), "caption")
    plain, with_widgets = _page(figure, figure), _page(*[Widget(f"w{i}", "X", {}, "c") for i in range(3)])
    assert plain.count(plotly_packed()) == 1 and with_widgets.count(plotly_packed()) == 1
    assert circuitsvis_packed() not in plain and with_widgets.count(circuitsvis_packed()) == 1
    assert len(with_widgets) < 3_000_000


def test_the_data_link_holds_the_frame():
    frame = pd.DataFrame({"x": [1, 2], "y": ["a", "b, c"]})
    address = Figure("f", go.Figure(), "c", data=frame).csv
    assert unquote(address.split(",", 1)[1]) == frame.to_csv(index=False)


def test_the_verdict_follows_the_intervals():
    def rates(before: int, after: int, placebo: int, n: int = 50) -> dict:
        counts = {"baseline": before, "ablation": after, "random_ablation": placebo}
        return {name: rate([i < k for i in range(n)]) for name, k in counts.items()}

    for counts, words in (
        ((50, 0, 48), "100% [93%, 100%] of the refusals are gone (a random direction: 4% [0%, 14%]): most of it."),
        ((50, 24, 49), "part of it."),
        ((50, 30, 50, 400), "part of it."),
        ((400, 360, 400, 400), "little of it."),
        ((6, 3, 5, 6), "not shown."),
        ((50, 48, 0), "not shown."),
        ((0, 0, 0), "an unknown share"),
    ):
        assert words in effect_sentence(rates(*counts), "ablation", -1)
    # Of the answers at the baseline, not of all prompts: 20 of 40 became refusals.
    added = {"baseline": rate([True] * 10 + [False] * 40), "addition": rate([True] * 30 + [False] * 20)}
    added["random_addition"] = added["baseline"]
    assert effect_sentence(added, "addition", +1).startswith("50% [34%, 66%] of the answers became refusals")


def test_code_between_backticks_and_nothing_else_of_markup():
    html = Page("t", ("Run `a <b> c` or <i>not</i>.",)).render()
    assert "Run <code>a &lt;b&gt; c</code> or &lt;i&gt;not&lt;/i&gt;." in html


def test_the_first_sentence_claims_what_was_shown():
    grades = ("most of it", "not shown")
    claims = [_plainly(necessary, sufficient) for necessary in grades for sufficient in grades]
    assert len(set(claims)) == 4
    assert all(("not shown" in text) or ("does not show" in text) for text in claims[1:]) and "not" not in claims[0]
    for words in ("most of", "part of", "little of"):
        assert f"loses {words} its refusals" in _plainly(f"{words} it", "not shown")
        assert f"turns {words} its answers" in _plainly("most of it", f"{words} it")


@pytest.mark.parametrize("mechanism", [m for name, m in MECHANISMS.items() if name != "none"])
def test_every_mechanism_has_its_words(mechanism):
    assert _ways([]) == ""
    assert _ways([mechanism, mechanism]).startswith(", all of them ")
    assert _ways([mechanism, MECHANISMS["otherwise"]]).count("another way") == 1


def test_every_candidate_is_told_with_what_became_of_it():
    nan = float("nan")
    bypass, induce = torch.tensor([[nan, -3.0], [-2.0, nan]]), torch.tensor([[-1.0, 2.0], [1.0, nan]])
    kl = torch.tensor([[nan, 0.01], [0.02, nan]])
    chosen = Direction(torch.tensor([1.0, 0.0]), 2.0, -2, 1, "raw", "m")
    selection = Selection(
        chosen, SelectionScores(bypass, induce, kl), (("induce -1 < 0", ""), ("", "layer 1 is cut")),
        ((-2, 1), (-1, 0)),
        1.0, -1.0, {"max_kl": 0.1, "min_induce": 0.0, "layer_cutoff": 0.8}, (), 9, 9,
    )  # fmt: skip
    mean = torch.zeros(2, 2, 2)
    candidates = CandidateDirections(mean, mean, mean, ("a", "b"), 9, 9, "raw", "m")
    table = next(item for item in direction_section(selection, candidates).items if item.id == "candidates")
    assert [(row[0], row[4]) for row in table.rows] == [
        ("(-2, 1)", "chosen"),
        ("(-1, 0)", "passes"),
        ("(-2, 0)", "induce -1 < 0"),
        ("(-1, 1)", "layer 1 is cut"),
    ]
    assert table.rows[2][1:4] == ("", "-1", "") and len(table.data) == 4


def test_what_was_not_set_is_said_so():
    provenance = {"settings": {"a": None, "b": [], "c": 0, "d": False}, "hashes": {}, "versions": {}}
    assert [row[1] for row in provenance_section(provenance, {}).items[0].rows] == ["not set", "not set", "0", "false"]
