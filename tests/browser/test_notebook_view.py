"""Figures as notebooks show them: in frames that draw by themselves and ask nobody for anything."""

from __future__ import annotations

import html
import os

import plotly.io
import pytest
import torch

from refusal_lens.attribution.token_records import AttentionPatterns
from refusal_lens.attribution.views import attention_view
from refusal_lens.behaviour.figures import plot_refusal_rates
from refusal_lens.stats import rate
from tests.browser.test_report import CHROMIUM, PAINTED, browser, opened  # noqa: F401

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"),
]
VIEW = attention_view(AttentionPatterns(torch.eye(3)[None], ((2, 1),), ("</script>", " b", "\n"), "p"))
# Where hosts put a cell's HTML, at their strictest: a frame of no origin that may run scripts; a page that may run
# inline scripts and load nothing from anywhere. Stand-ins: VS Code and Colab themselves can't be run here.
NO_ORIGIN = '<iframe sandbox="allow-scripts" style="width:900px;height:700px" srcdoc="{}"></iframe>'
STRICT = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; connect-src 'none'; child-src 'none'"
)


def page(body: str, policy: str = "") -> str:
    rule = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    return f'<!doctype html><html lang="en"><head><meta charset="utf-8">{rule}<title>cell</title></head>{body}</html>'


def outside(tab) -> list[str]:
    return [u for u in tab.requests if not u.startswith(("file:", "data:", "blob:", "about:"))]


def test_a_view_draws_in_its_frame_without_a_request(browser, tmp_path):  # noqa: F811
    assert repr(VIEW) == "<View of AttentionHeads: 3 tokens>"
    path = tmp_path / "cell.html"
    path.write_text(page(VIEW._repr_html_()), "utf-8")
    tab = opened(browser, path)
    frame = tab.frame_locator("iframe")
    frame.locator("canvas").first.wait_for()
    assert "L2H1" in frame.locator("body").inner_text()
    tab.wait_for_function("parseInt(document.querySelector('iframe').style.height) !== 420")
    assert outside(tab) == []
    assert tab.problems == []
    tab.context.close()


@pytest.mark.parametrize("policy", ["", STRICT], ids=["no origin", "strict policy"])
def test_a_view_draws_where_notebooks_put_it(browser, tmp_path, policy):  # noqa: F811
    cell = VIEW._repr_html_()
    path = tmp_path / "notebook.html"
    path.write_text(page(cell, policy) if policy else page(NO_ORIGIN.format(html.escape(page(cell)))), "utf-8")
    tab = opened(browser, path)
    inner = tab.frames[0]
    for _ in range(100):
        inner = tab.frames[-1]
        if inner.locator("canvas").count():
            break
        tab.wait_for_timeout(100)
    inner.wait_for_function(PAINTED.replace(".widget canvas", "#view canvas"))
    assert "L2H1" in inner.locator("body").inner_text()
    assert outside(tab) == [] and tab.problems == []
    tab.context.close()


def test_a_plotly_figure_draws_in_a_frame_without_origin(browser, tmp_path):  # noqa: F811
    """By its mime type Jupyter and VS Code draw it with their own copy; elsewhere Plotly sends HTML."""
    figure = plot_refusal_rates({"harmful": {"baseline": rate([True] * 9), "ablation": rate([False] * 9)}})
    bundle = plotly.io.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict())
    assert set(bundle) == {"application/vnd.plotly.v1+json"} and len(bundle["application/vnd.plotly.v1+json"]["data"])
    path = tmp_path / "figure.html"
    whole = figure.to_html(include_plotlyjs=True)
    path.write_text(page(NO_ORIGIN.format(html.escape(whole))), "utf-8")
    tab = opened(browser, path)
    tab.frame_locator("iframe").locator(".main-svg .bars .point").first.wait_for(state="attached")
    assert outside(tab) == [] and tab.problems == []
    tab.context.close()
