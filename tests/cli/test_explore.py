"""``refusal-lens explore``: the notebook that it prepares runs, with the run's own direction, prompts and top heads."""

from __future__ import annotations

import pytest

from tests.command import call

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("anywidget")


def test_an_app_that_is_not_there_is_a_sentence(study, tmp_path):
    found = call("explore", "--direction", study.folder, "--app", "word")
    assert found.returncode == 2 and "choose lab, voila or none" in found.stderr


def test_without_the_extra_there_is_a_sentence(study, monkeypatch):
    from refusal_lens.cli import explore
    from refusal_lens.errors import SettingError

    monkeypatch.setattr(explore.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"refusal-lens\[notebooks\]"):
        explore.explore(None, study.folder)


@pytest.mark.slow
def test_the_notebook_runs(study, tmp_path, monkeypatch):
    path = tmp_path / "explore.ipynb"
    found = call("explore", "--direction", study.folder, "--app", "none", "--out", path)
    assert found.returncode == 0 and str(path) in found.stdout
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, 4)
    heads = [f"L{layer}H{head}" for layer, head in study.heads.heads]
    notebook.cells.append(nbformat.v4.new_code_cell("print([*explorer.seen.to_frame().condition])"))
    notebook.cells.append(nbformat.v4.new_code_cell("print(explorer.seen.top_heads)"))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    view, still = (output["data"] for output in notebook.cells[2].outputs)
    assert "application/vnd.jupyter.widget-view+json" in view
    assert study.harmful.test[0] in still["text/html"] and all(head in still["text/html"] for head in heads)
    assert notebook.cells[3].outputs[0]["text"] == "['baseline']\n"
    assert notebook.cells[4].outputs[0]["text"] == f"{study.heads.heads}\n"
