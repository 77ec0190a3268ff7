"""The report in a real browser: no error, no request, every figure drawn, pickers by mouse and keyboard, axe-core."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

from refusal_lens.refusal.records import Completions
from refusal_lens.study.folder import Study

sync_api = pytest.importorskip("playwright.sync_api")
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = os.environ.get("REFUSAL_LENS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARTEFACTS = Path(os.environ.get("REFUSAL_LENS_ARTEFACTS", "build/screenshots"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"),
]
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'></table>"
SECTIONS = ["summary", "model", "direction", "effects", "strengths", "conversations", "harm", "inside", "certificate"]
SECTIONS += ["scorecard", "provenance"]
LIMIT_MB = 15


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(study) -> Path:
    """The report of a study whose completions and prompts hold markup."""
    folder = study.folder.parent / "hostile"
    shutil.copytree(study.folder, folder)
    replies = study.completions["harmful"]
    items = (dataclasses.replace(replies.items[0], response=HOSTILE, prompt=HOSTILE), *replies.items[1:])
    Completions(items, replies.prompt_set, replies.max_new_tokens).save(folder / "completions_harmful")
    return Study(folder).report()


def opened(browser, report: Path, scheme: str = "light", width: int = 1300):
    tab = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    tab.problems, tab.requests = [], []
    tab.on("console", lambda m: tab.problems.append(m.text) if m.type in ("error", "warning", "trace") else None)
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("request", lambda r: tab.requests.append(r.url))
    tab.goto(report.as_uri())
    return tab


@pytest.fixture(scope="module")
def page(browser, report):
    tab = opened(browser, report)
    yield tab
    outside = [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == [] and tab.problems == []  # of everything the tests below did
    tab.context.close()


# Whether each canvas that is seen holds more than its ground: CircuitsVis paints a moment after its text is there.
PAINTED = """() => [...document.querySelectorAll('.widget canvas')].every((canvas) => {
  if (!canvas.width || !canvas.height) return false;
  const copy = document.createElement('canvas');
  Object.assign(copy, {width: canvas.width, height: canvas.height});
  const context = copy.getContext('2d', {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  const {data} = context.getImageData(0, 0, copy.width, copy.height);
  const colours = new Set(new Uint32Array(data.buffer));
  return colours.size > 2;
})"""


def draw_everything(tab) -> None:
    tab.evaluate("document.querySelectorAll('.plot, .widget').forEach(e => e.scrollIntoView())")
    for i in range(tab.locator(".plot, .widget").count()):
        tab.locator(".plot, .widget").nth(i).scroll_into_view_if_needed()
    tab.wait_for_function("[...document.querySelectorAll('.plot')].every(e => e.querySelector('.main-svg'))")
    tab.wait_for_function("[...document.querySelectorAll('.widget')].every(e => e.innerText.trim())")
    tab.wait_for_function(PAINTED)


def data_rows(tab, figure: str) -> list[dict[str, str]]:
    """What the figure's data link holds."""
    href = tab.locator(f"#{figure} a.data").get_attribute("href")
    assert href.startswith("data:text/csv")
    return list(csv.DictReader(unquote(href.split(",", 1)[1]).splitlines()))


def test_opens_fast_small_and_quietly(page, report):
    timing = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < timing < 4000  # milliseconds; 2 s on a quiet machine (docs/benchmarks.md), two busy cores here
    assert report.stat().st_size < LIMIT_MB * 1_000_000
    outside = [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == [] and page.problems == []


def test_sections_are_in_the_order_of_the_story_and_in_the_contents(page):
    found = page.locator("main > section").evaluate_all("sections => sections.map(s => s.id)")
    assert found == SECTIONS
    links = page.locator("nav a").evaluate_all("links => links.map(a => a.hash.slice(1))")
    assert links == SECTIONS
    headings = page.locator("#summary h2").all_inner_texts()
    assert headings == ["What was found", "How certain", "What was not measured"]


def test_every_figure_draws_with_caption_n_control_and_data(page):
    draw_everything(page)
    figures = page.locator("figure:has(.plot), figure:has(.widget)")
    assert figures.count() >= 12
    for figure in figures.all():
        name, caption = figure.get_attribute("id"), figure.locator("figcaption").inner_text()
        assert len(caption) > 40 and "n:" in caption and "Control:" in caption, name
        assert len(data_rows(page, name)) >= 1, name
        assert figure.locator(".plot, .widget").first.bounding_box()["height"] > 20, name
    assert page.problems == []


def test_markup_in_prompts_and_replies_stays_text(page):
    assert page.evaluate("window.pwned") is None
    assert page.locator("#completions-harmful-table td", has_text="window.pwned").count() == 2


def test_search_filters_the_completions(page):
    rows = page.locator("#completions-harmless-table tbody tr")
    everything = rows.count()
    word = rows.first.locator("td").first.inner_text().split()[-1]
    box = page.locator("input[data-table=completions-harmless-table]")
    box.fill(word)
    shown = page.locator("#completions-harmless-table tbody tr:visible").count()
    assert 1 <= shown < everything
    assert page.locator("#completions-harmless .search [role=status]").inner_text() == f"{shown} of {everything} rows"
    box.fill("")
    assert page.locator("#completions-harmless-table tbody tr:visible").count() == everything


def test_the_data_link_holds_the_numbers(page):
    rows = data_rows(page, "refusal-rates")
    assert list(rows[0]) == ["prompts", "condition", "rate", "low", "high", "n"]
    assert "random_ablation" in {row["condition"] for row in rows}


def heads_of(page) -> list[str]:
    return page.locator("#heads-select option").evaluate_all("options => options.map(o => o.value)")


def test_every_head_can_be_picked_by_keyboard(page, study):
    heads = heads_of(page)
    record = study.inside["heads"]
    assert set(heads) == {label for row in record.reported.labels for label in row}
    assert heads[: len(record.heads)] == list(record.labels)  # the chosen ones first
    select = page.locator("#heads-select")
    select.focus()
    page.keyboard.press("ArrowDown")
    assert select.input_value() == heads[1]
    page.wait_for_selector(f"#head-{heads[1]}-plot .main-svg")
    mean = float(record.reported.mean[record.heads[1]])
    assert f"mean {mean:.3f}" in page.locator(f"#head-{heads[1]} figcaption").inner_text()
    page.locator("#heads > .controls [data-step='1']").press("Enter")
    assert select.input_value() == heads[2] and page.locator(f"#head-{heads[1]}").count() == 0
    for head in heads:  # each with its pattern and its contributions
        select.select_option(head)
        figures = page.locator("#heads figure").evaluate_all("figures => figures.map(f => f.id)")
        assert figures == [f"head-{head}", f"head-{head}-tokens-0", f"head-{head}-pattern"]
        page.locator(f"#head-{head}-pattern").scroll_into_view_if_needed()
        page.wait_for_selector(f"#head-{head}-pattern-plot .main-svg")
    select.select_option(heads[0])


def test_a_click_on_the_heatmap_picks_the_head(page, study):
    record = study.inside["heads"]
    layer, head = record.heads[-1]
    page.locator("#heads-select").select_option(heads_of(page)[0])
    page.locator("#head-map-plot").scroll_into_view_if_needed()
    spot = page.evaluate(
        """([layer, head]) => {
             const plot = document.getElementById("head-map-plot"), {xaxis, yaxis, _size} = plot._fullLayout;
             const box = plot.getBoundingClientRect();
             return [box.x + _size.l + xaxis.d2p(head), box.y + _size.t + yaxis.d2p(layer)];
           }""",
        [layer, head],
    )
    page.mouse.move(*spot)
    page.mouse.click(*spot)
    page.wait_for_function(f"document.getElementById('heads-select').value === '{record.labels[-1]}'")
    page.wait_for_selector(f"#head-{record.labels[-1]}-pattern-plot .main-svg")
    rows = data_rows(page, f"head-{record.labels[-1]}-tokens-0")
    written = sum(float(row["y"]) for row in rows if row["trace"] == "along r̂")
    assert written == pytest.approx(float(study.inside["sources"].values[layer, head, 0].sum()), abs=1e-3)


def test_the_prompt_stays_when_the_head_changes(page):
    heads = heads_of(page)
    page.locator("#heads-select").select_option(heads[0])
    page.locator(f"#head-{heads[0]}-prompts-select").select_option("1")
    page.locator("#heads-select").select_option(heads[1])
    assert page.locator(f"#head-{heads[1]}-prompts-select").input_value() == "1"
    assert page.locator(f"#head-{heads[1]}-tokens-1").count() == 1


def test_circuitsvis_heads_answer_the_keyboard(page, study):
    tiles = page.locator("#attention [role=button]")
    names = tiles.evaluate_all("tiles => tiles.map(t => t.getAttribute('aria-label'))")
    assert names == [f"Show the attention of {label}" for label in study.inside["heads"].labels]
    tiles.nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        f"document.querySelector('#attention h2')?.textContent === '{study.inside['heads'].labels[1]}'"
    )


def test_dark_and_light_by_button(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('#trace-plot .xtick text')).fill"
    before = page.evaluate(ground), page.evaluate(ink)
    page.locator("#theme").press("Enter")
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    assert page.evaluate(ground) == "rgb(15, 19, 24)" and page.evaluate(ink) == "rgb(230, 233, 237)"
    page.locator("#theme").click()
    assert (page.evaluate(ground), page.evaluate(ink)) == before == ("rgb(255, 255, 255)", "rgb(27, 31, 36)")


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1300),
        pytest.param("dark", 1300, marks=pytest.mark.slow),
        pytest.param("light", 390, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing_nothing_overflows_and_sections_are_kept_as_pictures(browser, report, scheme, width):
    tab = opened(browser, report, scheme, width)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(15, 19, 24)") == (scheme == "dark")
    draw_everything(tab)
    result = axe_playwright.Axe().run(tab)
    assert result.violations_count == 0, result.generate_report()
    passed = {rule["id"] for rule in result.response["passes"]}
    assert {"color-contrast", "button-name", "label", "select-name", "document-title"} <= passed
    tab.add_style_tag(content="header { position: static !important; }")
    # As tall as the page, so that no picture of a section makes it larger: canvases would be painted anew, too late.
    tab.set_viewport_size({"width": width, "height": tab.evaluate("document.documentElement.scrollHeight")})
    tab.wait_for_timeout(500)
    tab.wait_for_function(PAINTED)
    for section in tab.locator("main > section").all():
        target = ARTEFACTS / f"{scheme}-{width}" / f"{section.get_attribute('id')}.png"
        section.screenshot(path=target)
        assert target.stat().st_size > 5000
    assert tab.problems == []
    tab.context.close()


def test_on_paper_every_figure_is_drawn_in_light_colours(browser, report):
    tab = opened(browser, report, "dark")
    tab.wait_for_function("[...document.querySelectorAll('.widget')].every(e => e.innerText.trim())")
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    tab.evaluate(
        """() => { window.addEventListener('beforeprint', () => { window.seen = {
             ground: getComputedStyle(document.body).backgroundColor,
             undrawn: [...document.querySelectorAll('.plot')].filter(e => !e.querySelector('.main-svg')).length,
             widest: Math.max(...[...document.querySelectorAll('.plot .main-svg')].map(e => e.clientWidth)),
           }; }); }"""
    )
    tab.pdf(path=ARTEFACTS / "report.pdf", format="A4", print_background=True)
    seen = tab.evaluate("window.seen")
    assert seen["ground"] == "rgb(255, 255, 255)" and seen["undrawn"] == 0 and seen["widest"] <= 690
    assert tab.problems == []
    tab.context.close()


def test_headings_ids_and_language(page):
    assert page.locator("h1").count() == 1 and page.locator("html").get_attribute("lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
