"""The page: libraries once, text escaped, data beside every figure, verdicts that follow the intervals."""

from __future__ import annotations

from urllib.parse import unquote

import pandas as pd
import plotly.graph_objects as go

from refusal_lens.report import Figure, Page, Section, Table, Widget
from refusal_lens.report.summary import verdict
from refusal_lens.stats import rate


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
    assert plain.count("plotly.js v") == 1 and with_widgets.count("plotly.js v") == 1
    assert len(with_widgets) - len(plain) > 1_000_000  # CircuitsVis
    assert len(with_widgets) < 8_000_000


def test_the_data_link_holds_the_frame():
    frame = pd.DataFrame({"x": [1, 2], "y": ["a", "b, c"]})
    address = Figure("f", go.Figure(), "c", data=frame).csv
    assert unquote(address.split(",", 1)[1]) == frame.to_csv(index=False)


def test_the_verdict_follows_the_intervals():
    strong = {"ablation": rate([False] * 50), "random_ablation": rate([True] * 48 + [False] * 2)}
    weak = {"ablation": rate([True] * 3 + [False] * 3), "random_ablation": rate([True] * 5 + [False])}
    assert "do not overlap" in verdict(strong, "ablation", -1)
    assert "does not show" in verdict(weak, "ablation", -1)
    backwards = {"ablation": strong["random_ablation"], "random_ablation": strong["ablation"]}
    assert "does not show" in verdict(backwards, "ablation", -1)
