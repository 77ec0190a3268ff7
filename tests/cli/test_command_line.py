"""The command as its user runs it: exit codes, messages, and nothing half-written."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refusal_lens.data.organism import MODEL_DIR, instructions
from tests.command import call, without_costs
from tests.tiny import tiny_folder

COMMAND = [sys.executable, "-c", "from refusal_lens.cli import main; main()"]
QUICK = ["--suffixes", "none", "--stability", "0", "--no-full-grid"]  # tests/model looks into them
SMALL = [*QUICK, "--n-train", "64", "--n-val", "24", "--n-test", "24", "--max-new-tokens", "24", "--relax"]
TINY = [*QUICK, "--n-train", "32", "--n-val", "12", "--n-test", "12", "--max-new-tokens", "16"]


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory) -> Path:
    """The session's study, seen by the command in a process of its own: every stage is done."""
    out = tmp_path_factory.mktemp("cli") / "run"
    shutil.copytree(study.folder, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    command = [*COMMAND, "run", "organism", "--out", str(out), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert f"report: {out / 'report.html'}" in done.stdout.replace("\n", "")
    table = done.stdout.partition("random ablation")[0]  # of the findings
    few = "Few prompts (under 32): 24 harmful for choosing the direction and the heads, 24 harmful for the report"
    assert " ".join(table.split()).startswith(few)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before
    return out


def _content(folder: Path) -> dict[str, bytes]:
    """Every file, without the seconds that stages took, which differ from run to run."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "seconds.json")
    return {str(p.relative_to(folder)): without_costs(p.read_bytes()) for p in files}


def test_summary_has_the_documented_fields(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["direction"]) == {"pos", "layer", "norm", "coeff", "relaxed"}
    assert summary["prompts"]["harmful"] == {"train": 64, "val": 24, "test": 24}
    assert set(summary["filter"]) == {"point", "threshold", "above", "below"}
    assert set(summary["scores"]) == {"bypass", "induce", "kl", "baseline_harmful", "baseline_harmless"}
    assert set(summary["refusal"]["harmful"]) == {"baseline", "ablation", "random_ablation"}
    assert set(summary["refusal"]["harmless"]) == {"baseline", "addition", "random_addition"}
    for rates in summary["refusal"].values():
        for rate in rates.values():
            assert set(rate) == {"rate", "low", "high", "n"} and rate["low"] <= rate["rate"] <= rate["high"]


def test_the_printed_command_can_be_pasted(finished, tmp_path):
    out = tmp_path / "run é [x] dir"
    shutil.copytree(finished, out)
    done = call("run", "organism", "--out", out, *SMALL)
    line = next(line for line in done.stdout.splitlines() if line.startswith("open it with: "))
    assert shlex.split(line.removeprefix("open it with: ")) == ["refusal-lens", "open", str(out)]


def test_no_pickle_and_no_stray_file_in_the_folder(finished):
    names = {p.name for p in finished.rglob("*") if p.is_file()}
    assert {p.rsplit(".", 1)[1] for p in names} == {"json", "safetensors", "html"}
    assert not any(name.startswith(".") for name in names)


def test_another_setting_runs_again_what_it_decides(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = _content(out)
    assert call("run", "organism", "--out", out, *SMALL, "--max-new-tokens", "8").returncode == 0
    after = _content(out)
    assert after["candidates.safetensors"] == before["candidates.safetensors"]
    assert after["completions_harmful.json"] != before["completions_harmful.json"]


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
        "no model before data sets": (["nobody/no-such-model"], "the config of 'nobody/no-such-model' can't be loaded"),
        "same prompts twice": (
            ["organism", "--harmful", good["harmful"], "--harmless", good["harmful"]],
            "harmful prompt, too",
        ),
        "wrong device": (["organism", "--device", "gpuu"], "device is 'gpuu', which is no device; use cpu"),
        "wrong date": (["organism", "--date", "2026-1-1"], "2026-01-31"),
        "wrong option": (
            ["organism", "--template-option", "loud"],
            "template_options is 'loud', which is no NAME=VALUE",
        ),
        "wrong number": (["organism", "--max-kl", "-1"], "max_kl"),
        "wrong token": (["organism", "--refusal-token", "three whole words"], "name its first one"),
    }


CASES = [
    "unknown hub id", "missing folder", "folder without config", "missing gguf", "no chat template", "missing prompts",
    "empty prompts", "no valid row", "only one set", "never refuses", "wrong dtype", "wrong number", "wrong token",
    "no model before data sets", "same prompts twice", "wrong device", "wrong date", "wrong option",
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
    done = call("run", "organism", "--out", tmp_path / "file" / "x", "--quiet", *TINY)
    assert done.returncode == 2 and "Not a directory" in done.stderr and "Traceback" not in done.stderr
    done = call("run", "organism", "--out", tmp_path / "file", "--quiet", *TINY)
    assert done.returncode == 2 and done.stderr.strip().endswith("file; give a path that can be used (--out)")


def test_a_direction_of_another_model_is_refused(finished, tmp_path):
    other = tiny_folder("llama")
    done = call("evaluate", finished, "--model", other, "--out", tmp_path / "e", "--quiet", "--limit", 2)
    assert done.returncode == 2 and "belongs to another model" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "e").exists()


def test_nothing_passes_is_said_with_the_remedy(tmp_path):
    done = call("run", "organism", "--out", tmp_path / "o", "--quiet", *TINY, "--max-kl", "1e-9")
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
