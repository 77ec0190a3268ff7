"""Figures and CircuitsVis views as files of each format, or a sentence that says what is missing."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from refusal_lens.attribution.token_records import AttentionPatterns
from refusal_lens.attribution.views import attention_view
from refusal_lens.behaviour.figures import plot_refusal_rates
from refusal_lens.errors import ResultError
from refusal_lens.report.views import View, coloured_tokens
from refusal_lens.stats import rate
from tests.browser.test_report import CHROMIUM

pytestmark = pytest.mark.browser
needs_chromium = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed")
FIGURE = plot_refusal_rates({"harmful": {"baseline": rate([True] * 9), "ablation": rate([False] * 9)}})
PATTERN = AttentionPatterns(torch.eye(3).expand(2, 3, 3), ((0, 1), (2, 1)), ("</script>", " b", "\n"), "p")
VIEWS = {"figure": FIGURE, "heads": attention_view(PATTERN), "tokens": View(*coloured_tokens([" a"], [1.0]), "tokens")}
BEGINNINGS = {"png": b"\x89PNG\r\n\x1a\n", "pdf": b"%PDF-", "svg": b"<svg "}


@needs_chromium
@pytest.mark.parametrize("name", VIEWS)
def test_each_format(name, tmp_path, monkeypatch):
    if CHROMIUM:
        monkeypatch.setenv("BROWSER_PATH", CHROMIUM)
    for ending in BEGINNINGS if name == "figure" else ("svg",):  # a view is first drawn as a figure
        path = VIEWS[name].save(tmp_path / "new" / f"x.{ending}", width=640)
        assert path.read_bytes().startswith(BEGINNINGS[ending])
        if ending == "png":
            assert int.from_bytes(path.read_bytes()[16:20], "big") == 1280  # two pixels for each of the figure
    svg = (tmp_path / "new" / "x.svg").read_text("utf-8")
    texts = {"figure": ("Refusal rates", "ablation"), "heads": ("L2H1", "␣b", "⏎", "attends to"), "tokens": ("␣a",)}
    assert all(text in svg for text in texts[name]) and 'width="640"' in svg


@pytest.mark.parametrize("name", VIEWS)
def test_html_needs_neither_kaleido_nor_a_browser(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    page = VIEWS[name].save(tmp_path / "x.html").read_text("utf-8")
    assert "<script" in page and len(page) > 100_000
    with pytest.raises(ResultError, match=r"pip install 'refusal-lens\[pictures\]'"):
        VIEWS[name].save(tmp_path / "x.svg")
    with pytest.raises(ResultError, match=r"'x\.gif' must end in \.png, \.svg, \.pdf, \.html"):
        VIEWS[name].save(tmp_path / "x.gif")


def test_a_missing_browser_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    with pytest.raises(ResultError, match="need Chrome or Chromium"):
        FIGURE.save(tmp_path / "x.png")
