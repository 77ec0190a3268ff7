"""Every notebook: built from its source, small, with pictures, and running from top to bottom."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("0*.py"))
PLOTLY = "application/vnd.plotly.v1+json"


def stored(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def cells_of(name):
    pytest.importorskip("playwright")
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(c["cell_type"], c["source"]) for c in module.cells((FOLDER / f"{name}.py").read_text("utf-8"))]


def test_each_source_has_its_notebook():
    assert len(NAMES) == 7 and {p.stem for p in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_are_short_and_use_public_names_only(name):
    for kind, source in cells_of(name):
        if kind == "code":
            assert len(source.splitlines()) <= 12, source
            assert not re.search(r"(from|import) refusal_lens\.", source), source


@pytest.mark.parametrize("name", NAMES)
def test_it_is_its_source_and_ends_with_ones_own_model(name):
    cells = cells_of(name)
    assert [(c["cell_type"], "".join(c["source"])) for c in stored(name)["cells"]] == cells
    assert sum(kind == "markdown" for kind, _ in cells) >= 6
    assert cells[-2][1].startswith("## Now your own model") and "MODEL" in cells[-1][1]


@pytest.mark.parametrize("name", NAMES)
def test_its_outputs_show_without_scripts_and_name_no_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text("utf-8")
    assert len(text) < 2_000_000
    outputs = [o for cell in stored(name)["cells"] for o in cell.get("outputs", [])]
    assert outputs and all(o["output_type"] != "error" for o in outputs)
    figures = [o["data"] for o in outputs if PLOTLY in o.get("data", {})]
    assert len(figures) >= 2 and all("image/png" in data for data in figures)
    said = "".join(line for o in outputs for line in [*o.get("text", []), *o.get("data", {}).get("text/plain", [])])
    assert not any(place in said for place in ("/home/", "/root/", "/tmp/", "/work/"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name, monkeypatch):
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for what in ("REAL_MODEL", "INSTRUCTIONS", "STUDY"):  # CI names a real model: a cell would take minutes
        monkeypatch.delenv(f"REFUSAL_LENS_{what}", raising=False)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    figures = [o for c in notebook.cells for o in c.get("outputs", []) if PLOTLY in o.get("data", {})]
    before = [o for c in stored(name)["cells"] for o in c.get("outputs", []) if PLOTLY in o.get("data", {})]
    assert len(figures) == len(before)
