"""The suffix section in a real browser: its pickers work and axe-core finds nothing."""

from __future__ import annotations

import json
import os

import pytest

from refusal_lens.hijacking.section import hijacking_section
from refusal_lens.report.page import Page, Picker
from tests.browser.test_report import ARTEFACTS, CHROMIUM, axe_playwright, browser, draw_everything, opened  # noqa: F401
from tests.unit.test_plots_hijacking import WORKS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"),
]


def test_each_suffix_can_be_picked_and_axe_finds_nothing(browser, tmp_path):  # noqa: F811
    section = hijacking_section(WORKS)
    picker = next(item for item in section.items if isinstance(item, Picker))
    assert len(picker.options) == len(WORKS.results) >= 3
    path = tmp_path / "report.html"
    path.write_text(Page("Suffixes", sections=(section,)).render(), "utf-8")
    tab = opened(browser, path)
    select = tab.locator(f"#{picker.id}-select")
    seen = set()
    for option in picker.options:
        select.focus()
        select.select_option(option.value)
        draw_everything(tab)
        shown = tab.locator(f"#{picker.id} > .panel figure").evaluate_all("figures => figures.map(f => f.id)")
        assert shown and not seen & set(shown)  # each suffix brings its own figures, and the last one's are gone
        seen |= set(shown)
    # A click on a suffix in the ranking picks it.
    plot = tab.locator("#suffix-ranking-plot")
    plot.scroll_into_view_if_needed()
    wanted, *spot = plot.evaluate(
        """plot => {
             const trace = plot._fullData.findIndex(t => t.customdata?.length && t.xaxis === "x");
             const {x, y, customdata} = plot._fullData[trace], {xaxis, yaxis, _size} = plot._fullLayout;
             const box = plot.getBoundingClientRect(), first = customdata[0];
             const value = Array.isArray(first) ? first[0] : first;
             return [value, box.x + _size.l + xaxis.d2p(x[0]), box.y + _size.t + yaxis.d2p(y[0])];
           }"""
    )
    other = next(option.value for option in picker.options if option.value != wanted)
    select.select_option(other)
    plot.scroll_into_view_if_needed()
    tab.mouse.move(*spot)
    tab.mouse.click(*spot)
    tab.wait_for_function(f"document.getElementById('{picker.id}-select').value === {json.dumps(wanted)}")
    result = axe_playwright.Axe().run(tab)
    assert result.violations_count == 0, result.generate_report()
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    tab.locator("#suffixes").screenshot(path=ARTEFACTS / "suffixes.png")
    assert tab.problems == []
    tab.context.close()
