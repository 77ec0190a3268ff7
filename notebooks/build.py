"""Notebooks from their sources (percent cells): run, with a PNG beside each interactive figure, for GitHub.

python notebooks/build.py notebooks/04_suffix_attack.py ...    (needs the extra `test` and Chromium)
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import Browser, sync_playwright
from plotly.offline import get_plotlyjs

PLOTLY = "application/vnd.plotly.v1+json"
BAR = "application/vnd.jupyter.widget-view+json"  # a progress bar that ends with its kernel
WIDTH = 1000


def cells(source: str) -> Iterator[Any]:
    """The cells of a source: `# %% [markdown]` begins text, `# %%` begins code."""
    kind, lines = "", []
    for line in [*source.splitlines(), "# %%"]:
        if not line.startswith("# %%"):
            lines.append(line)
            continue
        body = "\n".join(lines).strip("\n")
        if kind == "text":
            yield nbformat.v4.new_markdown_cell(
                "\n".join(row.removeprefix("#").removeprefix(" ") for row in body.splitlines())
            )
        elif kind == "code":
            yield nbformat.v4.new_code_cell(body)
        kind, lines = "text" if "[markdown]" in line else "code", []


def build(source: Path, browser: Browser) -> Path:
    """Run a source; returns the notebook beside it."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(cells(source.read_text("utf-8"))):
        cell.id = f"cell-{i}"
        notebook.cells.append(cell)
    NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(source.parent)}}).execute()
    notebook.metadata.pop("widgets", None)  # their state needs a kernel, and holds their scripts
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            kept = [o for o in cell.outputs if o.get("name") != "stderr" and BAR not in o.get("data", {})]
            cell.outputs = [o for output in kept for o in with_picture(output, browser)]
    target = source.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def with_picture(output: Any, browser: Browser) -> Iterator[Any]:
    """An output, and its picture if it is interactive."""
    data = output.get("data", {})
    if PLOTLY in data:
        data.pop("text/html", None)
        data["image/png"] = picture_of_figure(data[PLOTLY], browser)
    yield output
    html = "".join(data.get("text/html", ""))
    if "<iframe" in html:
        png = picture(browser, html.replace("height:420px", "height:780px"), 800, 2500)
        yield nbformat.v4.new_output("display_data", data={"image/png": png, "text/plain": "the same, as a picture"})


def picture_of_figure(figure: dict[str, Any], browser: Browser) -> str:
    """A Plotly figure on white."""
    found = json.loads(json.dumps(figure))
    found["layout"] |= {"width": WIDTH, "paper_bgcolor": "#fff", "plot_bgcolor": "#fff"}
    height = int(found["layout"].get("height", 400))
    call = json.dumps([found["data"], found["layout"], {"staticPlot": True}]).replace("</", "<\\/")
    html = f"<div id='x'></div><script>{get_plotlyjs()}</script><script>Plotly.newPlot('x', ...{call})</script>"
    return picture(browser, html, height, 300)


def picture(browser: Browser, html: str, height: int, wait: int) -> str:
    """Screenshot of a page, as base64."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height})
    page.set_content(f"<body style='margin:0;background:#fff'>{html}</body>")
    page.wait_for_timeout(wait)
    png = base64.b64encode(page.screenshot()).decode()
    page.close()
    return png


def main() -> None:
    os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")
    chromium = os.environ.get("REFUSAL_LENS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name in sys.argv[1:]:
            target = build(Path(name), browser)
            print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")
        browser.close()


if __name__ == "__main__":
    main()
