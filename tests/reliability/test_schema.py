"""Result folders of older versions still load; those of newer ones are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from refusal_lens.errors import ResultError
from refusal_lens.study.folder import FOLDER_SCHEMA, Study

from .outcomes import record

FOLDERS = Path(__file__).parent / "folders"


def test_a_folder_of_every_schema_is_kept_here():
    kept = sorted(json.loads((f / "study.json").read_text())["schema"] for f in FOLDERS.iterdir())
    assert kept == list(range(1, FOLDER_SCHEMA + 1))


@pytest.mark.parametrize("schema", range(1, FOLDER_SCHEMA + 1))
def test_it_loads_and_its_report_renders(schema, tmp_path):
    """schema_1 was written by the first version that had a study, schema_3 before conversations were read."""
    study = Study(FOLDERS / f"schema_{schema}")
    assert study.selection.chosen.unit.shape == (96,) and len(study.harmful.test) == 4
    assert (study.certificate is None) == (schema == 1)
    assert bool(study.inside) == (schema > 1)
    page = study.report(tmp_path / "report.html").read_text()
    assert "The refusal direction of" in page and ("Exactness certificate</h2>" in page) == (schema > 1)
    if schema == FOLDER_SCHEMA:
        record("versions", "result folders of older schemas", schema, "all load, their reports render")


@pytest.mark.parametrize("schema", [0, FOLDER_SCHEMA + 1, "2", None])
def test_another_schema_is_refused(schema, tmp_path):
    shutil.copytree(FOLDERS / "schema_2", tmp_path / "s")
    found = json.loads((tmp_path / "s" / "study.json").read_text())
    (tmp_path / "s" / "study.json").write_text(json.dumps({**found, "schema": schema}))
    with pytest.raises(ResultError, match="this version reads 1 to 3"):
        Study(tmp_path / "s")


def test_a_stage_that_the_folder_s_version_did_not_have_is_left_out(tmp_path):
    """An optional stage that the list of files does not name; one that it names must be there."""
    shutil.copytree(FOLDERS / "schema_3", tmp_path / "s")
    study = Study(tmp_path / "s")
    assert study.conversations is None and study.lens is None and "lens" not in study.inside
    assert "Where in a conversation it is" not in study.report(tmp_path / "report.html").read_text()
    found = json.loads((tmp_path / "s" / "study.json").read_text())
    found["files"] |= {"conversations/harmful.safetensors": "0", "inside/lens.safetensors": "0"}
    (tmp_path / "s" / "study.json").write_text(json.dumps(found))
    for name in ("conversations", "lens"):
        with pytest.raises(ResultError, match="there is no record at"):
            getattr(Study(tmp_path / "s"), name)


def test_settings_of_now_decide_what_of_an_earlier_run_is_shown(tmp_path):
    """Attribution of an earlier run stays in the folder, and out of the report of a run without it."""
    shutil.copytree(FOLDERS / "schema_2", tmp_path / "s")
    found = json.loads((tmp_path / "s" / "study.json").read_text())
    found["settings"]["attribution"] = False
    (tmp_path / "s" / "study.json").write_text(json.dumps(found))
    assert Study(tmp_path / "s").inside == {}


def test_an_unfinished_run_is_no_study(tmp_path):
    shutil.copytree(FOLDERS / "schema_2", tmp_path / "s")
    (tmp_path / "s" / "study.json").unlink()
    with pytest.raises(ResultError, match="not finished: run it again"):
        Study(tmp_path / "s")
