"""Files from anywhere: no pickle, no code, no path out, nothing allocated on a file's word; markup stays text."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from refusal_lens import load_model
from refusal_lens.direction.records import SelectionScores
from refusal_lens.errors import ModelError, ResultError
from refusal_lens.records.base import Record, load_record
from refusal_lens.records.direction import Direction
from refusal_lens.study.folder import Study
from tests.tiny import tiny_folder

from .outcomes import ROOT, record
from .tiny_gguf import write_tiny_gguf

FOLDERS = Path(__file__).parent / "folders"
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'></table><!--<script>"


def test_no_pickle_in_the_package_and_torch_load_only_for_weights():
    files = sorted((ROOT / "refusal_lens").rglob("*.py"))
    assert len(files) > 50
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module.split(".")[0]]
            if PICKLES & set(names):
                found.append(f"{file.name}:{node.lineno} imports {names}")
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                if re.match(r"(torch|np|numpy)\.load\(", call) and "weights_only=True" not in call:
                    found.append(f"{file.name}:{node.lineno} {call}")
                if re.match(r"(torch\.save|eval|exec|os\.system|pd\.read_pickle|yaml\.load)\(", call):
                    found.append(f"{file.name}:{node.lineno} {call}")
                if "allow_pickle=True" in call or "trust_remote_code=True" in call:
                    found.append(f"{file.name}:{node.lineno} {call}")
    assert found == []
    record("input", "pickle, eval, remote code in the package's source", len(files), "none (files read by the test)")


# -- records --------------------------------------------------------------------------------------------------------


def _document(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", "4"), ("n", 1.5), ("rate", None), ("low", [1]), ("high", {"$tensor": "x"}), ("rate", True)],
)
def test_a_field_of_another_type_is_named(tmp_path, field, value):
    study = tmp_path / "s"
    shutil.copytree(FOLDERS / "schema_2", study)
    _document(study / "refusal_tokens.json", lambda d: d["record"].update(ids=[value]))
    with pytest.raises(ResultError, match=r"refusal_tokens\.json is not a refusal_lens record"):
        Study(study).refusal_tokens  # noqa: B018


def test_tensors_of_other_shapes_and_dtypes_are_refused(tmp_path):
    path = Direction(torch.ones(4), 1.0, -1, 0).save(tmp_path / "d")
    header = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])["__metadata__"]
    for wrong in (torch.ones(2, 2), torch.ones(4, dtype=torch.int64)):
        save_file({"unit": wrong}, path, header)
        with pytest.raises(ResultError, match=r"Direction.unit is a Tensor of shape"):
            load_record(path, Direction)


def test_a_header_that_claims_more_than_the_file_holds_allocates_nothing(tmp_path):
    header = {"unit": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    (tmp_path / "d.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    with pytest.raises(ResultError, match="can't be read"):
        load_record(tmp_path / "d", Direction)
    (tmp_path / "e.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ResultError, match="can't be read"):
        load_record(tmp_path / "e", Direction)
    row = {"position": -(10**9), "layer": 10**9, "refusal_score": 0, "steering_score": 0, "kl_div_score": 0}
    with pytest.raises(ResultError, match="grid of 1000000000 positions"):
        SelectionScores.from_records([row])


def test_file_names_in_a_folder_do_not_lead_out_of_it(tmp_path):
    study = tmp_path / "s"
    shutil.copytree(FOLDERS / "schema_2", study)
    (tmp_path / "secret").write_text("x")
    _document(study / "study.json", lambda d: d["files"].update({"../secret": "0" * 64, "/etc/passwd": "0" * 64}))
    assert Study(study).changed_files == ("../secret", "/etc/passwd")  # named, not read


def test_changed_files_are_named_in_the_report(tmp_path):
    study = tmp_path / "s"
    shutil.copytree(FOLDERS / "schema_2", study)
    assert Study(study).changed_files == ()
    _document(study / "completions_harmful.json", lambda d: d["record"]["items"][0].update(response="edited"))
    assert "Changed since the run, so not what it measured: completions_harmful.json." in Study(study).page().notes


def test_records_that_do_not_fit_together_end_in_one_sentence(tmp_path):
    study = tmp_path / "s"
    shutil.copytree(FOLDERS / "schema_2", study)
    _document(study / "summary.json", lambda d: d.pop("refusal"))
    with pytest.raises(ResultError, match="don't fit together"):
        Study(study).page()


# -- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    out = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), out)
    return out


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_hidden_layers", 10**9), ("num_hidden_layers", 4), ("hidden_size", 40), ("hidden_size", 10**6),
     ("intermediate_size", 10**8), ("intermediate_size", 96), ("vocab_size", 10**9), ("vocab_size", 300),
     ("num_attention_heads", "many"), ("model_type", "none such")],
)  # fmt: skip
def test_a_config_that_does_not_fit_the_weights_is_one_sentence(folder, name, value):
    _document(folder / "config.json", lambda d: d.update({name: value}))
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_an_index_that_points_out_of_the_folder(folder):
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="is not in this folder"):
        load_model(folder)


def test_code_in_a_checkpoint_is_not_run(folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}
    _document(folder / "config.json", lambda d: d.update(auto_map=code, model_type="evil"))
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()
    record("input", "checkpoint with its own code", 1, "refused, the code is not run")


@pytest.mark.parametrize(
    "expression",
    ["''.__class__.__mro__[1].__subclasses__()", "messages.__init__.__globals__", "cycler.__init__.__globals__.os",
     "messages.append(1)", "range(10**9)"],
)  # fmt: skip
def test_chat_templates_run_in_the_sandbox(folder, expression):
    tokenizer = folder / "chat_template.jinja"
    tokenizer.write_text("{{ " + expression + " }}" + tokenizer.read_text())
    with pytest.raises(ModelError, match="chat template refused"):
        load_model(folder)
    record("input", "chat template that reaches for Python's internals", 5, "refused by the sandbox, in one sentence")


def test_pickled_weights_are_read_as_weights_only(folder, tmp_path):
    """torch.load inside transformers runs with weights_only=True: an object in the file is refused."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load_model(folder).n_layers == 3

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({**weights, "x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()
    record("input", "pytorch_model.bin with an object in it", 1, "refused, nothing is run")


def test_gguf_loads_and_a_broken_one_is_one_sentence(tmp_path):
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    model = load_model(path)
    assert model.n_layers == 2 and len(model.generate(["hello"], 3)) == 1
    data = path.read_bytes()
    at = data.index(b"qwen2.block_count") + len(b"qwen2.block_count") + 4  # the key and the value's type
    cases = [
        data[:8] + struct.pack("<Q", 2**40) + data[16:],
        data[:4] + struct.pack("<I", 77) + data[8:],
        data[:-100],
        b"GGML" + data[4:],
        data[:20],
        data[:at] + struct.pack("<I", 10**6) + data[at + 4 :],
    ]
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)


# -- fuzzing --------------------------------------------------------------------------------------------------------


def _fuzz(cases: int, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.fuzz", "--cases", str(cases), "--seed", str(seed)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failures"] == 0


@pytest.mark.slow
def test_300_mutated_files():
    _fuzz(300, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(5400)
def test_5000_mutated_files():
    _fuzz(5000, seed=0)


# -- the report -----------------------------------------------------------------------------------------------------


def _poison(value: Any) -> Any:
    """Every free text of a record replaced by markup; labels that code looks up stay as they are."""
    if isinstance(value, dict):
        kept = ("$record", "$tensor", "condition", "prompt_set", "kind", "prompt_sets")
        return {k: v if k in kept else _poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_poison(v) for v in value]
    return value + HOSTILE if isinstance(value, str) else value


@pytest.mark.browser
@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="Chromium is missing")
def test_markup_everywhere_stays_text_in_chromium(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    study = tmp_path / "s"
    shutil.copytree(FOLDERS / "schema_2", study)
    for name in (
        "completions_harmful",
        "completions_harmless",
        "prompts_harmful",
        "prompts_harmless",
        "refusal_tokens",
    ):
        _document(study / f"{name}.json", lambda d: d.update(record=_poison(d["record"])))
    _document(study / "study.json", lambda d: d.update(model=_poison(d["model"]), settings=_poison(d["settings"])))
    for name in ("candidates", "inside/sources", "inside/patterns", "inside/logits", "inside/propagation"):
        _poison_tensors(study / f"{name}.safetensors")
    page = Study(study).report(tmp_path / "report.html")
    with sync_api.sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        problems: list[str] = []
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(page.as_uri())
        for plot in tab.locator(".plot").all():
            if plot.is_visible():
                plot.scroll_into_view_if_needed()
        tab.wait_for_timeout(500)
        assert tab.evaluate("window.pwned") is None and problems == []
        assert tab.locator("img[src=x]").count() == 0
        assert tab.locator("td", has_text="window.pwned").count() > 4  # it is there, as text
        assert "window.pwned" in tab.locator("h1").inner_text()
        tab.wait_for_selector("footer")  # nothing swallowed the page's end
        browser.close()
    record("input", "script tags in every text of a result folder", 1, "text in Chromium, nothing runs")


def _poison_tensors(path: Path) -> None:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["refusal_lens"])
    document["record"] = {
        k: _poison(v) if k in ("tokens", "pos_labels", "prompts", "texts", "token_texts") else v
        for k, v in document["record"].items()
    }
    header["__metadata__"]["refusal_lens"] = json.dumps(document)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_every_record_class_is_frozen():
    classes = [cls for cls in _subclasses(Record) if cls.__module__.startswith("refusal_lens")]
    assert len(classes) > 30
    assert all(dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen for cls in classes)


def _subclasses(cls: type) -> list[type]:
    return [inner for sub in cls.__subclasses__() for inner in (sub, *_subclasses(sub))]
