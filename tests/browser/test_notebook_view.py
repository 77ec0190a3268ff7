"""A CircuitsVis view as notebooks show it: a frame that draws by itself and asks nobody for anything."""

from __future__ import annotations

import os

import pytest
import torch

from refusal_lens.attribution import AttentionPatterns
from refusal_lens.plots.circuits import attention_view
from tests.browser.test_report import CHROMIUM, browser, opened  # noqa: F401

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"),
]


def test_a_view_draws_in_its_frame_without_a_request(browser, tmp_path):  # noqa: F811
    record = AttentionPatterns(torch.eye(3)[None], ((2, 1),), ("</script>", " b", "\n"), "p")
    view = attention_view(record)
    assert repr(view) == "<View of AttentionHeads: 3 tokens>"
    path = tmp_path / "cell.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><title>cell</title>{view._repr_html_()}", "utf-8")
    tab = opened(browser, path)
    frame = tab.frame_locator("iframe")
    frame.locator("canvas").first.wait_for()
    assert "L2H1" in frame.locator("body").inner_text()
    tab.wait_for_function("parseInt(document.querySelector('iframe').style.height) !== 420")
    assert [u for u in tab.requests if not u.startswith(("file:", "data:", "blob:", "about:"))] == []
    assert tab.problems == []
    tab.context.close()
