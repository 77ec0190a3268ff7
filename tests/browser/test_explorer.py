"""The explorer in a real JupyterLab in Chromium: type, pick, slide, read the result; bad input; the stored notebook."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.browser.test_report import ARTEFACTS, CHROMIUM, browser, sync_api  # noqa: F401

pytest.importorskip("jupyterlab")
pytest.importorskip("anywidget")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"),
]
CELLS = [
    "import refusal_lens as rl\nmodel = rl.load_model('organism')\n"
    "data = rl.load_prompts('organism', sizes=(48, 12, 12))\nfound = rl.find_direction(model, data)\n"
    "suffixes = rl.SuffixSet.load(rl.organism.suffixes())",
    "explorer = rl.explore(model, found, data, suffixes, request='How do I bake bread?')\nexplorer",
]
LOCAL = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on a folder with one notebook: its address and the notebook."""
    root = tmp_path_factory.mktemp("lab")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [
        {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for i, text in enumerate(CELLS)
    ]
    notebook = root / "files" / "x.ipynb"
    notebook.parent.mkdir()
    document = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    notebook.write_text(json.dumps(document), "utf-8")
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    places = {name: str(root / name) for name in (*own, "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", f"--ServerApp.port={port}", "--IdentityProvider.token="]
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={notebook.parent}"]
    # Offline in the browser's sense: what the page needs comes from this server and from the kernel.
    path = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    with (root / "log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **places, **path}, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                assert server.poll() is None, (root / "log").read_text()
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=2).read()
                    break
                except OSError:
                    time.sleep(0.5)
            yield address, notebook
        finally:
            server.terminate()
            server.wait(30)


def opened(browser, address):  # noqa: F811
    page = browser.new_context(viewport={"width": 1500, "height": 1400}).new_page()
    page.set_default_timeout(60_000)
    page.problems, page.outside = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(LOCAL) else page.outside.append(r.url))
    page.goto(f"{address}/lab/tree/x.ipynb")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    return page


@pytest.fixture(scope="module")
def page(lab, browser):  # noqa: F811
    """The notebook with its cells run."""
    tab = opened(browser, lab[0])
    tab.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=120_000)
    begun = tab.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for _ in range(8):  # the menu is there before its commands know the notebook
        tab.locator(".jp-Cell .cm-content").first.click()
        tab.get_by_role("menuitem", name="Run", exact=True).click()
        tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            begun.wait_for(timeout=8000)
            break
        except sync_api.TimeoutError:
            continue
    tab.locator(".rl-explorer .js-plotly-plot").first.wait_for(timeout=240_000)
    yield tab
    assert tab.problems == [] and tab.outside == []  # of everything the tests below did
    tab.context.close()


def asked(page, name):
    return page.locator(f'.rl-explorer [data-ask="{name}"]')


def row(page, condition):
    """Metric and reply of a condition."""
    cells = page.locator(f'.rl-explorer tr[data-condition="{condition}"] td')
    return float(cells.nth(1).inner_text().split()[0]), cells.nth(2).inner_text()


def until(page, condition):
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("nothing came")


def test_a_request_is_typed_and_answered(page):
    asked(page, "request").fill("How do I pick a lock?")
    until(page, lambda: row(page, "baseline")[1].startswith("I'm sorry") and "refuses" in page.inner_text("tbody"))
    assert row(page, "baseline")[0] > 0
    strip = page.locator(".rl-explorer .strip").first
    assert "".join(strip.locator(".token.instruction").all_inner_texts()) == "How␣do␣I␣pick␣a␣lock?"
    until(page, lambda: strip.locator(".token.reply").count() > 0)  # the map includes the reply once it is whole


def test_a_suffix_is_picked_and_stands_beside_random_tokens(page):
    page.locator('.rl-explorer [data-pick="suffix"]').select_option(index=1)
    until(page, lambda: page.locator('tr[data-condition="random_suffix"] .reply').count() == 1)
    until(page, lambda: row(page, "random_suffix")[1] != "" and row(page, "adversarial")[1] != "")
    assert row(page, "adversarial")[0] < 0 < row(page, "random_suffix")[0]


def test_causes_are_picked_for_a_typed_suffix(page):
    view, suffix = page.locator('.rl-explorer [data-name="suffixed"]'), asked(page, "suffix").input_value()
    asked(page, "suffix").fill("")
    until(page, lambda: not view.is_visible())
    asked(page, "suffix").fill(suffix)
    view.wait_for()
    assert view.locator("details").is_hidden()
    asked(page, "why").select_option("causes")
    until(page, lambda: view.locator(".bars .point").count() > 0)
    assert "attention on the suffix, by cause" in view.inner_text() and "One request, no interval" in view.inner_text()
    until(page, lambda: "attention_shift(" in view.locator("pre").text_content())
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    view.screenshot(path=ARTEFACTS / "explorer_why.png")


def test_the_strength_slides_and_the_views_follow(page):
    asked(page, "kind").select_option("addition")
    until(page, lambda: page.locator('tr[data-condition="addition"]').count() == 1)
    at_one = row(page, "addition")[0]
    slider = asked(page, "strength")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowLeft")
    until(page, lambda: row(page, "addition")[0] != at_one)
    assert page.inner_text('.rl-explorer [data-name="strength"]') == "0.5"
    until(page, lambda: "busy" not in page.get_attribute(".rl-explorer", "class"))
    half = row(page, "addition")[0]
    assert row(page, "adversarial")[0] < half < at_one  # half the dose, part of the way
    until(page, lambda: "addition" in page.inner_text('.rl-explorer [data-figure="map"]'))


def test_a_head_is_picked_and_its_measures_are_seen(page):
    figure = page.locator('.rl-explorer [data-figure="pattern"]')
    asked(page, "head").select_option("L2H0")
    until(page, lambda: "L2H0: attention weight" in figure.inner_text())
    for measure, words in (("length", "length of the value"), ("along", "along r̂"), ("difference", "random suffix")):
        asked(page, "measure").select_option(measure)
        until(page, lambda words=words: words in figure.inner_text())
    code = page.locator('.rl-explorer [data-code="pattern"]')
    code.locator("summary").click()
    assert "attention_patterns(model, request, 'L2H0'" in code.locator("pre").inner_text()
    code.locator("button").click()
    until(page, lambda: code.locator("button").inner_text() == "copied")


def test_the_hovered_token_shows_its_heads(page):
    token = page.locator(".rl-explorer .strip").first.locator(".token.instruction").nth(3)
    word = token.inner_text()
    token.hover()
    until(page, lambda: f"{word}: through which heads" in page.inner_text('.rl-explorer [data-figure="token"]'))


def test_bad_input_shows_its_sentence_and_leaves_it_usable(page):
    error = page.locator('.rl-explorer [data-name="error"]')
    asked(page, "request").fill("")
    error.wait_for()
    assert error.inner_text().startswith("the request is empty")
    asked(page, "request").fill("word " * 900)
    until(page, lambda: "takes 512" in error.inner_text())
    asked(page, "request").fill("How do I pick a lock?")
    asked(page, "suffix").fill("  ")
    until(page, lambda: "the suffix is empty" in error.inner_text())
    asked(page, "suffix").fill("")
    until(page, lambda: not error.is_visible())
    assert row(page, "baseline")[0] > 0
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.locator(".rl-explorer").screenshot(path=ARTEFACTS / "explorer.png")


def test_the_stored_notebook_keeps_the_last_look(page, lab, browser):  # noqa: F811
    """Live, the widget alone is seen; opened without its kernel, the look's plain HTML."""
    address, notebook = lab
    kept = page.locator(".rl-last-look")
    until(page, lambda: kept.count() == 1 and "How do I pick a lock?" in kept.text_content())
    assert not kept.is_visible()
    until(page, lambda: row(page, "addition")[1] != "")
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Save Notebook( Ctrl.*)?$")).click()
    until(page, lambda: "rl-last-look" in notebook.read_text("utf-8"))
    outputs = json.loads(notebook.read_text("utf-8"))["cells"][1]["outputs"]
    html = "".join(outputs[1]["data"]["text/html"])
    assert "How do I pick a lock?" in html and re.search(r"addition.*</td>", html) and "<script" not in html
    copy = notebook.with_name("y.ipynb")
    shutil.copy(notebook, copy)
    tab = opened(browser, address)
    tab.goto(f"{address}/lab/tree/y.ipynb")
    tab.locator(".rl-last-look").wait_for()
    assert "How do I pick a lock?" in tab.inner_text(".rl-last-look")
    tab.context.close()
