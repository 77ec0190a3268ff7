"""``open`` with a real browser command, the log of a batch job, quiet runs, shell completion, help with examples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refusal_lens.cli.app import app
from refusal_lens.cli.open_report import report_path
from refusal_lens.errors import ResultError
from tests.command import call

COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'refusal-lens'; from refusal_lens.cli import main; main()",
]
COMMANDS = ("run", "open", "report", "hijack", "evaluate", "certify")


def process(*args: object, **variables: str | None) -> subprocess.CompletedProcess:
    """In a process of its own: ``webbrowser`` and transformers read the environment once."""
    environment = {n: v for n, v in {**os.environ, "COLUMNS": "120", **variables}.items() if v is not None}
    command = [*COMMAND, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.html").write_text("<h1>A report: r̂</h1>", "utf-8")
    (tmp_path / "secret.json").write_text("{}")
    return tmp_path


def test_the_report_opens_in_the_browser(folder, tmp_path):
    """$BROWSER is what Python's webbrowser starts first."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    program.chmod(0o755)
    done = process("open", folder, BROWSER=f"{program} %s", SSH_CONNECTION=None)
    assert done.returncode == 0 and done.stdout.split() == ["report:", str(folder / "report.html")]
    assert (tmp_path / "opened").read_text().strip() == (folder / "report.html").as_uri()
    (tmp_path / "opened").unlink()
    assert "no browser here" not in process("open", folder, "--no-browser", BROWSER=f"{program} %s").stdout
    assert not (tmp_path / "opened").exists()


def test_on_a_remote_machine_the_command_says_what_to_do(folder):
    done = process("open", folder, SSH_CONNECTION="10.0.0.1 2 10.0.0.2 22", BROWSER="false")
    assert done.returncode == 0 and f"--bind 127.0.0.1 --directory '{folder}'" in done.stdout
    assert "ssh -L 8000:127.0.0.1:8000" in done.stdout


def test_a_folder_without_a_report_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultError, match=r"no report.html in the folder"):
        report_path(tmp_path / "empty")
    with pytest.raises(ResultError, match="there is no folder"):
        report_path(tmp_path / "absent")


def test_a_batch_job_logs_json_lines_and_prints_nothing_else(tmp_path):
    log = tmp_path / "logs" / "job.jsonl"
    done = process("certify", "organism", "--quiet", "--log-json", log, "--out", tmp_path / "c", "--no-float64")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.split() == ["certificate:", str(tmp_path / "c.json")]
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", *["stage", "stage_end"] * 2, "result"]
    assert events[-1]["passed"] is True and len(events[-1]["identities"]) >= 8
    assert all(e["time"].endswith("+00:00") for e in events) and events[2]["seconds"] > 0


def test_the_handler_of_ctrl_c_is_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    assert call("report", tmp_path).returncode == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)] == before


def test_errors_are_json_lines_too(tmp_path):
    done = call("report", tmp_path, "--log-json", "-")
    assert done.returncode == 2 and done.stdout == ""
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [e["event"] for e in events] == ["start", "error"]
    assert events[1]["kind"] == "ResultError" and "no study" in events[1]["message"]


def completed(line: str) -> list[str]:
    words = {"_REFUSAL_LENS_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    return CliRunner().invoke(app, [], prog_name="refusal-lens", env=words).output.split()


def test_completion_knows_the_commands_and_writes_no_log(tmp_path):
    words = {"_REFUSAL_LENS_COMPLETE": "source_bash"}
    script = CliRunner().invoke(app, [], prog_name="refusal-lens", env=words).output
    assert "complete" in script and "refusal-lens" in script
    log = tmp_path / "x.jsonl"
    assert completed(f"refusal-lens certify --log-json {log} --flo") == ["--float64"] and not log.exists()
    assert set(COMMANDS) <= set(completed("refusal-lens "))


def test_every_command_helps_with_examples():
    listed = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    for name in COMMANDS:
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "120"}).output
        assert f"refusal-lens {name}" in shown.split("Options")[0].split("Usage", 1)[1].split("\n", 1)[1], name
        assert name in listed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["organism"], {"suffixes": "organism", "stability": 10, "full_grid": True}),
        (["organism", "--suffixes", "none", "--stability", "0", "--no-full-grid"], {"suffixes": None, "stability": 0}),
        (["other/model"], {"suffixes": None, "stability": 0, "full_grid": False}),
    ],
)
def test_the_embedded_model_is_studied_in_full(monkeypatch, tmp_path, arguments, expected):
    seen = {}

    def stop(config, out, progress, engine):
        seen.update(vars(config))
        raise ResultError("enough")

    monkeypatch.setattr("refusal_lens.study.run_study", stop)
    CliRunner().invoke(app, ["run", *arguments, "--quiet", "--out", str(tmp_path)])
    assert {name: seen[name] for name in expected} == expected


def test_python_dash_m():
    command = [sys.executable, "-m", "refusal_lens", "open", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("refusal-lens: there is no folder nowhere") and done.stderr.count("\n") == 1
