"""Killed, interrupted, full, forbidden, locked: a result folder is whole or goes on, and says what is wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refusal_lens.errors import ResultError
from refusal_lens.records.files import locked, write_atomically

from .crash import SETTINGS, content
from .outcomes import ROOT, record

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-c", "from refusal_lens.cli import main; main()"]
FAST = [*SETTINGS, "--no-attribution"]


def _crash(*options: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.crash", *map(str, options)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _check(found: dict) -> None:
    assert found["killed"] > 0 and found["different results"] == 0 and found["files left over"] == 0


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_result():
    _check(_crash("--kills", 2, "--file-kills", 2, "--each", 4))


@pytest.mark.nightly
@pytest.mark.timeout(5400)
def test_killed_200_times():
    found = _crash("--kills", 200, "--file-kills", 60, "--each", 2)
    assert found["at random times"] >= 200 and found["at file operations"] >= 60
    _check(found)


def _begin(out: Path, *more: str) -> subprocess.Popen:
    """A run that has begun: its lock is taken."""
    process = subprocess.Popen(
        [*COMMAND, "run", "organism", "--out", str(out), *FAST, *more],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline, lock = time.monotonic() + 120, out / ".lock"
    # The file is there before it is locked; the owner's number is written after.
    while process.poll() is None and time.monotonic() < deadline:
        if lock.exists() and lock.read_text() == str(process.pid):
            break
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    return process


def test_two_runs_and_ctrl_c(tmp_path):
    out = tmp_path / "run"
    first = _begin(out)
    with pytest.raises(ResultError, match=rf"another run \(process {first.pid}\) is writing in .*run"), locked(out):
        pass
    time.sleep(0.5)
    begin = time.monotonic()
    first.send_signal(signal.SIGINT)
    _, said = first.communicate()
    took = time.monotonic() - begin
    assert (
        first.returncode == 130 and said.strip().count("\n") == 0 and "run the same command again to resume" in said
    ), said
    assert took < 20  # a library's long step is waited for
    assert not list(out.glob(".*"))
    record("crash", "Ctrl-C, then the same command again", 1, "one line and exit code 130; resumable")
    record("crash", "two runs on one folder", 1, "the second ends with one sentence that names the first's process")


def test_a_dead_owner_does_not_block(tmp_path):
    """The system frees the lock of a killed process; its file and its unfinished ones are removed."""
    out = tmp_path / "run"
    code = (
        "import sys, time, pathlib; from refusal_lens.records.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, env=ENVIRONMENT)
    assert holder.stdout.readline() == b"locked\n"
    (out / ".summary.json.abcdefgh.part").write_bytes(b"half")
    with pytest.raises(ResultError, match=f"process {holder.pid}"), locked(out):
        pass
    holder.kill()
    holder.wait()
    with locked(out):
        assert sorted(p.name for p in out.iterdir()) == [".lock"]
    assert not list(out.iterdir())


def test_locks_nest_never_and_leave_nothing(tmp_path):
    new = tmp_path / "a" / "b"
    with locked(new), pytest.raises(ResultError, match="another run"), locked(new):
        pass
    assert not (tmp_path / "a").exists()  # made here, empty: removed again
    with locked(new):
        (new / "kept").write_text("x")
    assert [p.name for p in new.iterdir()] == ["kept"]


def test_links_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stages").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultError, match="link to another place"), locked(tmp_path / "run", ("stages",)):
        pass
    (tmp_path / "target").write_text("precious")
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "run" / "report.html", b"new")  # the link is replaced, not followed
    assert (tmp_path / "target").read_text() == "precious"


def _small_disk(limit: int) -> Callable[[], None]:
    """RLIMIT_FSIZE fails the write itself, as a full disk does."""

    def set_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return set_limit


def _fails_for_want_of_space(out: Path, limit: int) -> None:
    done = _run(out, preexec_fn=_small_disk(limit))
    assert done.returncode == 2 and "File too large" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and str(out) in done.stderr
    assert not list(out.rglob(".*"))
    record("crash", "disk full (a write fails)", 1, "one sentence with the file's name, no unfinished file")


def test_a_full_disk_is_said(tmp_path):
    _fails_for_want_of_space(tmp_path / "run", 40_000)  # the candidates do not fit


@pytest.mark.nightly
@pytest.mark.parametrize("limit", [40_000, 1_000_000])
def test_a_run_goes_on_when_there_is_room_again(tmp_path, limit, undisturbed):
    _fails_for_want_of_space(tmp_path / "run", limit)  # at 1 MB it is the report that does not fit
    assert _run(tmp_path / "run").returncode == 0
    assert content(tmp_path / "run") == content(undisturbed)
    record("crash", "disk full at 40 kB and at 1 MB, then room again", 2, "goes on to the undisturbed run's result")


@pytest.mark.nightly
def test_a_full_file_system(tmp_path):
    """A real one of 300 kB, where the machine lets us mount it."""
    script = f"""
mkdir -p {tmp_path}/disk && mount -t tmpfs -o size=300k none {tmp_path}/disk || exit 77
{sys.executable} -c 'from refusal_lens.cli import main; main()' run organism --out {tmp_path}/disk/run {" ".join(FAST)}
code=$?; find {tmp_path}/disk -name '.*' -type f; exit $code
"""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    done = subprocess.run([unshare, "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode in (1, 77) and "refusal-lens" not in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 2 and "free some space" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.strip() == ""
    record("crash", "file system of 300 kB", 1, "one sentence, no unfinished file")


def test_a_read_only_folder(tmp_path):
    """Root may write anywhere, so the folder is mounted read-only where we are root."""
    out = tmp_path / "run"
    out.mkdir()
    command = (
        f"{sys.executable} -c 'from refusal_lens.cli import main; main()' run organism --out {out} {' '.join(FAST)}"
    )
    if os.geteuid() == 0:
        bound = f"mount --bind {out} {out} && mount -o remount,ro,bind {out} || exit 77; {command}"
        done = subprocess.run(["unshare", "-m", "sh", "-c", bound], env=ENVIRONMENT, capture_output=True, text=True)
        if done.returncode in (1, 77) and "refusal-lens" not in done.stderr:
            pytest.skip("no file system can be mounted here")
    else:
        out.chmod(0o555)
        done = subprocess.run(["sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
        out.chmod(0o755)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr
    assert not list(out.iterdir())
    record("crash", "read-only folder", 1, "one sentence before any work, nothing written")


@pytest.mark.nightly
def test_a_moved_clock_changes_nothing(tmp_path, undisturbed):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    for file in out.rglob("*"):
        os.utime(file, (0, 0) if len(file.name) % 2 else (4e9, 4e9))  # 1970, and a time to come
    (out / "stages" / "metrics.json").unlink()
    (out / "report.html").unlink()
    write_atomically(out / "items" / "candidates-0" / "001-sums-00000.json", b"[]")  # of a run killed after its mark
    back = "import time; real = time.time; time.time = lambda: real() - 10 * 365 * 86400; "
    assert _run(out, code=back + COMMAND[2]).returncode == 0
    assert content(out) == content(undisturbed)
    record("crash", "clock moved by ten years, file times of 1970 and 2096", 1, "the same result")


@pytest.mark.nightly
def test_a_run_with_other_settings_that_died_leaves_no_mix(tmp_path, undisturbed):
    """Its files stand under the old marks: the marks know the files' hashes."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    other = json.loads((out / "completions_harmful.json").read_text())
    other["record"]["items"][0]["response"] = "of another run"
    write_atomically(out / "completions_harmful.json", json.dumps(other).encode())
    assert _run(out).returncode == 0
    assert content(out) == content(undisturbed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("reliability") / "run"
    done = _run(out)
    assert done.returncode == 0, done.stderr
    return out


def _run(out: Path, code: str = COMMAND[2], **how: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, "run", "organism", "--out", str(out), *FAST]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False, **how)
