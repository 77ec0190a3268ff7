"""Kill -9 at random moments of `refusal-lens run`, then resume: is the result that of a run nobody disturbed?

Python and its libraries are imported once; every run is a fork of that process, so that hundreds take minutes. Kills
come at random times, and at random file operations (open, rename, remove, mkdir inside the folder), where a fault
would hurt most and a random time seldom falls.

    python -m tests.reliability.crash --kills 200 --file-kills 60 --each 2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from ..command import without_costs
from .outcomes import record

SETTINGS = [
    "--n-train", "8", "--n-val", "4", "--n-test", "4", "--max-new-tokens", "4", "--max-kl", "9", "--relax", "--quiet",
    "--suffixes", "none", "--stability", "0", "--no-full-grid",
]  # fmt: skip
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def start(out: Path, options: list[str], die_at: int | None = None, counter: Path | None = None) -> int:
    """Fork a run into ``out``; it kills itself before file operation ``die_at``, or writes how many it made."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(out.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        seen, inside = [0], str(out)

        def audit(event: str, arguments: tuple) -> None:
            if event not in OPERATIONS or not isinstance(arguments[0], (str, bytes, os.PathLike)):
                return
            if not os.fsdecode(arguments[0]).startswith(inside):
                return
            seen[0] += 1
            if die_at is not None and seen[0] >= die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        from refusal_lens.cli import main

        sys.argv = ["refusal-lens", "run", "organism", "--out", str(out), *SETTINGS, *options]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        if counter is not None:
            counter.write_text(str(seen[0]))
    finally:
        os._exit(code)


def finish(out: Path, options: list[str], counter: Path | None = None) -> float:
    """Run to the end; seconds it took."""
    begin = time.monotonic()
    _, status = os.waitpid(start(out, options, counter=counter), 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the run in {out} failed:\n{out.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - begin


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, and every folder with None-like content; seconds differ from run to run."""
    return {
        str(p.relative_to(folder)): b"/" if p.is_dir() or p.name == "seconds.json" else without_costs(p.read_bytes())
        for p in sorted(folder.rglob("*"))
    }


def main() -> None:
    """See the module's text; the last line of the output is a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--file-kills", type=int, default=60)
    parser.add_argument("--each", type=int, default=2, help="kills of one folder before it is finished")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="further options of `refusal-lens run`, after --")
    given = parser.parse_args()
    # Before the first fork, without starting a thread.
    import refusal_lens.cli.app
    import refusal_lens.study  # noqa: F401

    place = Path(tempfile.mkdtemp(prefix="crash-"))
    rng = random.Random(given.seed)
    whole, counter = place / "whole", place / "operations"
    seconds = finish(whole, given.options, counter)
    operations, expected = int(counter.read_text()), content(whole)
    print(f"a run takes {seconds:.1f} s and {operations} file operations", flush=True)
    wanted = {"time": given.kills, "file": given.file_kills}
    died = {"time": 0, "file": 0}
    early = wrong = left = trials = 0
    while any(died[kind] < wanted[kind] for kind in wanted):
        out, tried = place / f"killed-{trials}", []
        for _ in range(given.each):
            kind = rng.choice([kind for kind in wanted if died[kind] < wanted[kind]] or ["time"])
            moment = rng.uniform(0, seconds) if kind == "time" else rng.randint(1, operations)
            tried.append((kind, moment))
            pid = start(out, given.options, int(moment) if kind == "file" else None)
            if kind == "time":
                time.sleep(moment)
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            died[kind] += os.waitstatus_to_exitcode(status) == -signal.SIGKILL  # else it was done before
            early += not (out / "stages").exists()
        finish(out, given.options)
        found = content(out)
        trials += 1
        left += len(found.keys() - expected.keys())
        bad = sorted(name for name in expected if found.get(name) != expected[name])
        wrong += bool(bad)
        if bad or found.keys() != expected.keys():
            print(f"{tried}: differs in {bad}, also has {sorted(found.keys() - expected.keys())}", flush=True)
        shutil.rmtree(out)
        if trials % 10 == 0:
            print(f"{trials} folders, {died} runs killed, {wrong} differ, {left} files left over", flush=True)
    shutil.rmtree(place)
    result = {
        "killed": sum(died.values()),
        "at random times": died["time"],
        "at file operations": died["file"],
        "before the first stage": early,
        "folders": trials,
        "different results": wrong,
        "files left over": left,
        "file operations": operations,
    }
    print(json.dumps(result))
    note(result)
    raise SystemExit(bool(wrong or left))


def note(found: dict) -> None:
    """The outcome as a row of the table."""
    record(
        "crash",
        "`kill -9` at random moments of `refusal-lens run`, then resumed",
        found["killed"],
        f"{found['at random times']} at random times, {found['at file operations']} at file operations, in "
        f"{found['folders']} folders: {found['folders'] - found['different results']} equal the undisturbed run bit "
        f"for bit, {found['files left over']} files left over",
    )


if __name__ == "__main__":
    main()
