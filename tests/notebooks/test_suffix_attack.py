"""The suffix notebook as stored: what it found, and each interactive view with a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCE = FOLDER / "04_suffix_attack.py"


@pytest.fixture(scope="module")
def stored():
    return json.loads(SOURCE.with_suffix(".ipynb").read_text("utf-8"))


def test_views_have_pictures_and_the_verdict_is_causal(stored):
    outputs = [(cell, o) for cell in stored["cells"] for o in cell.get("outputs", [])]
    figures = [o["data"] for _, o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(figures) >= 8 and all("image/png" in data and "text/html" not in data for data in figures)
    for cell in stored["cells"]:
        kinds = [set(o.get("data", {})) for o in cell.get("outputs", [])]
        views = [k for k in kinds if "text/html" in k and "<iframe" in json.dumps(cell["outputs"])]
        assert not views or any("image/png" in k for k in kinds)
    said = [line for _, o in outputs for line in o.get("text", []) + o.get("data", {}).get("text/plain", [])]
    assert "because it hijacks the top heads" in "".join(said)
