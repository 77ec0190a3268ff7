"""The report in a real browser: no error, no request, every figure drawn, search works, markup stays text."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from refusal_lens.records import Completions
from refusal_lens.study import Study

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("REFUSAL_LENS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARTEFACTS = Path(os.environ.get("REFUSAL_LENS_ARTEFACTS", "build/screenshots"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"),
]
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'></table>"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture(scope="module")
def page(browser, study):
    """The report of a study whose completions and prompts hold markup."""
    folder = study.folder.parent / "hostile"
    shutil.copytree(study.folder, folder)
    replies = study.completions["harmful"]
    items = (dataclasses.replace(replies.items[0], response=HOSTILE, prompt=HOSTILE), *replies.items[1:])
    Completions(items, replies.prompt_set, replies.max_new_tokens).save(folder / "completions_harmful")
    path = Study(folder).report()
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    tab = context.new_page()
    tab.problems, tab.requests = [], []
    tab.on("console", lambda m: tab.problems.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("request", lambda r: tab.requests.append(r.url))
    tab.goto(path.as_uri())
    return tab


def test_opens_fast_quietly_and_asks_for_nothing(page):
    timing = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < timing < 4000  # milliseconds; 2 s is the aim, two busy cores the reality of CI
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == [] and page.problems == []


def test_every_figure_draws(page):
    plots = page.locator(".plot")
    assert plots.count() >= 3
    for i in range(plots.count()):
        plots.nth(i).scroll_into_view_if_needed()
        page.wait_for_function("i => document.querySelectorAll('.plot')[i].querySelector('.main-svg') !== null", arg=i)
        assert plots.nth(i).locator(".main-svg").first.bounding_box()["height"] > 200
    assert page.problems == []


def test_markup_in_prompts_and_replies_stays_text(page):
    assert page.evaluate("window.pwned") is None
    assert page.locator("#completions-harmful-table td", has_text="window.pwned").count() == 2


def test_search_filters_the_completions(page):
    rows = page.locator("#completions-harmless-table tbody tr")
    everything = rows.count()
    word = rows.first.locator("td").first.inner_text().split()[-1]
    page.locator("input[data-table=completions-harmless-table]").fill(word)
    shown = page.locator("#completions-harmless-table tbody tr:visible").count()
    assert 1 <= shown < everything
    page.locator("input[data-table=completions-harmless-table]").fill("")
    assert page.locator("#completions-harmless-table tbody tr:visible").count() == everything


def test_data_links_hold_the_numbers(page):
    href = page.locator("#refusal-rates figcaption a").get_attribute("href")
    csv = page.evaluate("href => fetch(href).then(r => r.text()).catch(() => atob(href.split(',')[1]))", href)
    assert csv.splitlines()[0] == "prompts,condition,rate,low,high,n" and "random_ablation" in csv


def test_headings_labels_and_screenshots(page, browser):
    assert page.locator("h1").count() == 1
    assert all(page.locator(".plot").nth(i).get_attribute("aria-label") for i in range(page.locator(".plot").count()))
    assert page.locator("html").get_attribute("lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    for section in page.locator("main > section").all():
        name = section.get_attribute("id")
        section.screenshot(path=ARTEFACTS / f"{name}.png")
        assert (ARTEFACTS / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1300), ("light", 390)])
def test_dark_and_phone_do_not_overflow(page, browser, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    tab = context.new_page()
    tab.goto(page.url)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(15, 19, 24)") == (scheme == "dark")
    context.close()
