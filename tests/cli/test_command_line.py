"""The command as its user runs it: a process of its own, exit codes, messages, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refusal_lens.data.organism import MODEL_DIR, instructions
from tests.tiny import tiny_folder

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}
COMMAND = [sys.executable, "-c", "from refusal_lens.cli import main; main()"]
SMALL = ["--suffixes", "none", "--stability", "0", "--no-full-grid"]  # tests/model looks into them
SMALL += ["--n-train", "32", "--n-val", "12", "--n-test", "12", "--max-new-tokens", "16", "--max-kl", "5", "--relax"]


def call(*args: object, timeout: int = 240) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, env=ENVIRONMENT, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    done = call("run", "organism", "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    assert f"report: {out / 'report.html'}" in done.stdout.replace("\n", "")
    assert "random ablation" in done.stdout  # the table of findings
    return out


def _content(folder: Path) -> dict[str, bytes]:
    """Every file; the seconds that stages took differ from run to run."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "seconds.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_summary_has_the_documented_fields(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["direction"]) == {"pos", "layer", "norm", "coeff", "relaxed"}
    assert set(summary["scores"]) == {"bypass", "induce", "kl", "baseline_harmful", "baseline_harmless"}
    assert set(summary["refusal"]["harmful"]) == {"baseline", "ablation", "random_ablation"}
    assert set(summary["refusal"]["harmless"]) == {"baseline", "addition", "random_addition"}
    for rates in summary["refusal"].values():
        for rate in rates.values():
            assert set(rate) == {"rate", "low", "high", "n"} and rate["low"] <= rate["rate"] <= rate["high"]


def test_no_pickle_and_no_stray_file_in_the_folder(finished):
    names = {p.name for p in finished.rglob("*") if p.is_file()}
    assert {p.rsplit(".", 1)[1] for p in names} == {"json", "safetensors", "html"}
    assert not any(name.startswith(".") for name in names)


def test_a_second_run_runs_nothing_again(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    start = time.monotonic()
    assert call("run", "organism", "--out", finished, *SMALL).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == before
    again = _content(finished)
    changed = call("run", "organism", "--out", finished, *SMALL, "--max-new-tokens", "8")
    assert changed.returncode == 0
    after = _content(finished)
    assert after["candidates.safetensors"] == again["candidates.safetensors"]
    assert after["completions_harmful.json"] != again["completions_harmful.json"]
    assert time.monotonic() - start < 200


def test_a_killed_run_goes_on_to_the_same_result(finished, tmp_path):
    out = tmp_path / "killed"
    args = ["run", "organism", "--out", str(out), *SMALL, "--max-new-tokens", "8", "--quiet"]
    process = subprocess.Popen([*COMMAND, *args], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "stages" / "candidates.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "stages" / "candidates.json").exists() and not (out / "summary.json").exists()
    assert call(*args).returncode == 0
    whole = tmp_path / "whole"
    assert call("run", "organism", "--out", whole, *args[4:]).returncode == 0
    left, right = _content(out), _content(whole)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def test_report_renders_again_without_a_model(finished):
    (finished / "report.html").unlink()
    done = call("report", finished)
    assert done.returncode == 0 and (finished / "report.html").stat().st_size > 1_000_000


def _bad_cases(tmp_path: Path) -> dict[str, tuple[list, str]]:
    good = {name: str(path) for name, path in instructions().items()}
    empty, rowless = tmp_path / "empty.txt", tmp_path / "rowless.jsonl"
    empty.write_text("")
    rowless.write_text('{"colour": "red"}\n')
    mute = tmp_path / "mute"
    shutil.copytree(MODEL_DIR, mute)
    (mute / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((mute / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (mute / "tokenizer_config.json").write_text(json.dumps(settings))
    harmful, harmless = ["--harmful", good["harmful"]], ["--harmless", good["harmless"]]
    base = tiny_folder("llama")
    return {
        "unknown hub id": (["nobody/no-such-model", *harmful, *harmless], "can't be loaded"),
        "missing folder": (["./no/such/folder", *harmful, *harmless], "there is no model at"),
        "folder without config": ([str(tmp_path), *harmful, *harmless], "no config.json"),
        "missing gguf": (["nowhere.gguf", *harmful, *harmless], "there is no file"),
        "no chat template": ([str(mute), *harmful, *harmless], "chat template"),
        "missing prompts": (["organism", "--harmful", str(tmp_path / "x.json"), *harmless], "no prompts at"),
        "empty prompts": (["organism", "--harmful", str(empty), *harmless], "is empty"),
        "no valid row": (["organism", "--harmful", str(rowless), *harmless], "columns colour"),
        "only one set": (["organism", *harmful], "both --harmful and --harmless"),
        "never refuses": ([str(base), *harmful, *harmless], "refused none of"),
        "wrong dtype": (["organism", "--dtype", "float7"], "not a floating-point dtype"),
        "wrong number": (["organism", "--max-kl", "-1"], "max_kl"),
        "wrong token": (["organism", "--refusal-token", "three whole words"], "name its first one"),
    }


CASES = [
    "unknown hub id", "missing folder", "folder without config", "missing gguf", "no chat template", "missing prompts",
    "empty prompts", "no valid row", "only one set", "never refuses", "wrong dtype", "wrong number", "wrong token",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(case, tmp_path):
    args, message = _bad_cases(tmp_path)[case]
    out = tmp_path / "out"
    done = call("run", *args, "--out", out, "--quiet", "--n-train", 8, "--n-val", 4, "--n-test", 4)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
    assert len(lines) == 1 and lines[0].startswith("refusal-lens: "), done.stderr
    assert not out.exists()


def test_an_out_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    done = call("run", "organism", "--out", tmp_path / "file" / "x", "--quiet", *SMALL)
    assert done.returncode == 2 and "Not a directory" in done.stderr and "Traceback" not in done.stderr


def test_a_direction_of_another_model_is_refused(finished, tmp_path):
    other = tiny_folder("llama")
    done = call("evaluate", finished, "--model", other, "--out", tmp_path / "e", "--quiet", "--limit", 2)
    assert done.returncode == 2 and "belongs to another model" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "e").exists()


def test_nothing_passes_is_said_with_the_remedy(tmp_path):
    done = call("run", "organism", "--out", tmp_path / "o", "--quiet", *SMALL[:-3], "--max-kl", "1e-9")
    assert done.returncode == 2 and "Nearest:" in done.stderr and "--relax" in done.stderr


def test_report_of_no_study_and_of_a_broken_one(finished, tmp_path):
    done = call("report", tmp_path)
    assert done.returncode == 2 and "there is no study" in done.stderr
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    (broken / "selection.safetensors").write_bytes(b"no tensors")
    done = call("report", broken)
    assert done.returncode == 2 and "selection.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_certify_prints_the_table_and_saves_it(tmp_path):
    done = call("certify", "organism", "--out", tmp_path / "c")
    assert done.returncode == 0 and "FAIL" not in done.stdout and done.stdout.count("PASS") >= 8
    assert (tmp_path / "c.json").is_file()
    assert call("certify", "no/such/model/here").returncode == 2
