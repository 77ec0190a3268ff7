"""A sweep over several models: one file, one report, a failed model beside the others."""

from __future__ import annotations

import json

import pytest

from refusal_lens.data.organism import MODEL_DIR, instructions
from refusal_lens.errors import ResultError
from refusal_lens.study.sweep import read_sweep, run_sweep

COMMON = "sizes = [40, 8, 16]\nmax_new_tokens = 12\nrelax = true\nattribution = false\n"


def _file(tmp_path, models: str):
    sources = "".join(f'{name} = "{path}"\n' for name, path in instructions().items())
    path = tmp_path / "models.toml"
    path.write_text(f"[defaults]\n{COMMON}{sources}\n{models}")
    return path


@pytest.mark.slow
def test_models_are_compared_and_a_failed_one_says_why(tmp_path):
    models = f'[models.whole]\nmodel = "organism"\n[models.folder]\nmodel = "{MODEL_DIR}"\ncoeff = 2.0\n'
    sweep = read_sweep(_file(tmp_path, models + '[models.gone]\nmodel = "./no-such-model"\n'))
    assert sweep["folder"].coeff == 2.0 and sweep["whole"].coeff == 1.0
    found = run_sweep(sweep, tmp_path / "out")
    assert [bool(item.error) for item in found.values()] == [False, False, True]
    assert "there is no model at ./no-such-model" in found["gone"].error
    saved = json.loads((tmp_path / "out" / "sweep.json").read_text())
    own = json.loads((tmp_path / "out" / "folder" / "summary.json").read_text())
    assert saved["folder"]["summary"] == own and own["direction"]["coeff"] >= 2.0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "2 of 3 models" in page and "there is no model at ./no-such-model" in page
    before = (tmp_path / "out" / "whole" / "selection.safetensors").stat().st_mtime_ns
    run_sweep(sweep, tmp_path / "out")
    assert (tmp_path / "out" / "whole" / "selection.safetensors").stat().st_mtime_ns == before, "nothing is run twice"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models = 3", r"must have a table \[models.NAME\]"),
        ("[model.a]\nmodel = 'organism'", "it has model"),
        ("[models.a]\ncoef = 1.0", r"\[models.a\]: there is no setting 'coef'; did you mean coeff"),
        ("[models.'a/b']\nmodel = 'organism'", "plain folder name"),
        ("[models", "is not TOML"),
    ],
)
def test_wrong_files_are_refused_in_a_sentence(tmp_path, content, message):
    path = tmp_path / "models.toml"
    path.write_text(content)
    with pytest.raises(ResultError, match=message):
        read_sweep(path)
    with pytest.raises(ResultError, match="can't be read"):
        read_sweep(tmp_path / "none.toml")
