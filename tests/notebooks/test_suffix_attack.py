"""The notebook as stored: run from its source, small, each interactive figure with a picture, nothing of a machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("playwright")

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCE = FOLDER / "04_suffix_attack.py"


@pytest.fixture(scope="module")
def stored():
    return json.loads(SOURCE.with_suffix(".ipynb").read_text("utf-8"))


def test_it_is_its_source(stored):
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cells = [(c["cell_type"], c["source"]) for c in module.cells(SOURCE.read_text("utf-8"))]
    assert [(c["cell_type"], "".join(c["source"])) for c in stored["cells"]] == cells
    # Explanations between the cells, and one's own model last.
    assert sum(kind == "markdown" for kind, _ in cells) >= 10
    assert cells[-2][1].startswith("## Now your own model") and "MODEL" in cells[-1][1]


def test_outputs_are_small_whole_and_shown_without_scripts(stored):
    text = SOURCE.with_suffix(".ipynb").read_text("utf-8")
    assert len(text) < 2_000_000
    outputs = [(cell, o) for cell in stored["cells"] for o in cell.get("outputs", [])]
    assert outputs and all(o["output_type"] != "error" for _, o in outputs)
    figures = [o["data"] for _, o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(figures) >= 8 and all("image/png" in data and "text/html" not in data for data in figures)
    for cell in stored["cells"]:
        kinds = [set(o.get("data", {})) for o in cell.get("outputs", [])]
        views = [k for k in kinds if "text/html" in k and "<iframe" in json.dumps(cell["outputs"])]
        assert not views or any("image/png" in k for k in kinds)
    said = [line for _, o in outputs for line in o.get("text", []) + o.get("data", {}).get("text/plain", [])]
    assert "because it hijacks the top heads" in "".join(said)
    assert not any(place in "".join(said) for place in ("/home/", "/root/", "/tmp/", "/work/"))
