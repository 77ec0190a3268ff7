"""The comparison of two result folders: blind to renames, not to a changed number."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import refusal_lens.study.folder  # noqa: F401  (it knows every record of a folder)
from refusal_lens.records.base import Record, load_record
from scripts.compare_studies import compare, records

OLD = Path(__file__).parents[1] / "reliability" / "folders" / "schema_2"
SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_studies.py"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The stored folder, each record read and written again by today's code."""
    shutil.copytree(OLD, tmp_path / "new")
    for name, path in records(OLD).items():
        if "$record" in path.read_bytes().decode("utf-8", "ignore"):
            load_record(path, Record).save(tmp_path / "new" / name)
    return tmp_path / "new"


def test_a_folder_written_again_is_equal(new):
    assert compare(OLD, new) == compare(OLD, OLD) == []
    done = subprocess.run([sys.executable, SCRIPT, OLD, new], capture_output=True, text=True)
    assert done.returncode == 0 and "no difference" in done.stdout


def test_a_changed_number_shows(new):
    candidates = load_record(new / "candidates", Record)
    candidates.mean_diff[0, 0, 0] += 1e-12
    candidates.save(new / "candidates")
    (found,) = compare(OLD, new)
    assert found.startswith("candidates.record.mean_diff: differs by")
    assert compare(OLD, new, relative=1e-6) == []
    candidates.mean_diff[0, 0, 0] = torch.nan
    candidates.save(new / "candidates")
    assert len(compare(OLD, new, relative=1e-6)) == 1


def test_a_changed_word_and_a_missing_record_show(new):
    path = new / "completions_harmful.json"
    text = json.loads(path.read_text("utf-8"))
    text["record"]["items"][0]["response"] += " "
    path.write_text(json.dumps(text), "utf-8")
    (new / "trace.safetensors").unlink()
    found = compare(OLD, new)
    assert len(found) == 2 and any(line.startswith("completions_harmful.record.items[0].response") for line in found)
    assert any("trace: no such record" in line for line in found)
    done = subprocess.run([sys.executable, SCRIPT, OLD, new], capture_output=True, text=True)
    assert done.returncode == 1
