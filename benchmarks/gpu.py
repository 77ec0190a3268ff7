"""The parts of ``gpu.sh``: correctness, every row of the benchmark on three models, and other ways to launch.

Each part is a process with its own limit, and writes after each row: one that hangs, fails or is cut off leaves the
others' rows, and its own until then, in ``gpu.json`` and ``gpu.md``.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import carried

TOTAL = 450  # seconds of all parts; what one leaves over goes to the next
# Name -> seconds at most. A row gets at most half of what its part has left.
LIMITS = {"agreement": 70, "organism": 60, "random:1.5b": 80, "random:7b": 140, "launches": 100}
SMOKE = {"agreement": 200, "organism": 200, "random:tiny": 200, "launches": 100}
SMALL = ["--n-train", "4", "--n-val", "3", "--n-suffixes", "3", "--every", "12", "--positions", "1", "--layers", "2"]
# Random weights refuse nothing, so that a rule would drop all and little of the work would run.
RANDOM = ["--min-induce=-1e9", "--max-kl=1e9"]
SETTINGS = {
    "organism": ["--n-train", "64", "--n-val", "32", "--n-suffixes", "64"],
    "random:1.5b": ["--n-train", "64", "--n-val", "32", "--n-suffixes", "128", "--every", "30", *RANDOM],
    "random:7b": ["--n-train", "64", "--n-val", "32", "--n-suffixes", "128", "--every", "60", *RANDOM],
    "random:tiny": RANDOM,
}
# What the targets ask for first: the rest may be cut off.
ORDER = ("forward", "generation", "selection", "extraction", "attribution", "suffixes", "full_grid")

LEARNED = ("cone", "stages", "run")  # on the embedded model only: random weights refuse nothing


class Report:
    """Rows of one part: each goes to the disk as it is found, and the tables are made anew."""

    def __init__(self, out: Path, part: str, seconds: float):
        self.out, self.part, self.end = out, part, time.monotonic() + seconds

    def add(self, **row: Any) -> None:
        """One row, in this part's file and in the tables."""
        with (self.out / f"{self.part.replace(':', '-')}.jsonl").open("a") as file:
            file.write(json.dumps({"part": self.part, **row}) + "\n")
        print(f"{self.part}: {row.get('name', '')} {row.get('note', '')}", flush=True)
        tables(self.out)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run one step in half of what the part has left; a failure is its row."""
        left = self.end - time.monotonic()
        signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, max(1.0, left / 2))
        try:
            yield
        except _Late:
            self.add(name=name, failed=f"cut off after {max(1.0, left / 2):.0f} s")
        except Exception as error:
            traceback.print_exc()
            self.add(name=name, failed=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


class _Late(BaseException):
    """Past the limit of a step; no ``except Exception`` on the way holds it."""


def _late(*_: Any) -> None:
    raise _Late


def agreement(report: Report, smoke: bool) -> None:
    """Winner, scores, packing and generation beside the CPU's float32, on the same weights."""
    import torch

    from .agreement import compare

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for source in ("organism", "random:tiny"):
        with report.step(source):
            for row in compare(source, 6 if smoke else 16, device):
                report.add(**row)


def bench(report: Report, model: str, smoke: bool) -> None:
    """Every row of the benchmark on one model."""
    import torch

    from .__main__ import arguments, as_json, ground
    from .groups import GROUPS
    from .measure import gemm_peak

    left_out = () if model == "organism" else LEARNED
    order = [*ORDER, *(name for name in GROUPS if name not in (*ORDER, *left_out))]
    args = arguments(["--model", model, *SETTINGS[model], *(SMALL if smoke else [])])
    g = None
    with report.step("load"):
        start = time.monotonic()
        g = ground(args)
        m = g.model
        size = sum({p.data_ptr(): p.numel() for p in m.tl.parameters()}.values()) / 1e9
        report.add(name="load", loaded=f"{size:.2f}B parameters, {m.dtype}, {time.monotonic() - start:.1f} s")
    if g is None:
        return
    for group in order:
        with report.step(group), torch.random.fork_rng(devices=[]):
            peak = gemm_peak(g.model.dtype, g.model.device)
            for row in GROUPS[group](g):
                report.add(model=model, **as_json(row, peak))


def launches(report: Report, smoke: bool) -> None:
    """How much of the time the device works, and what SDPA, CUDA graphs, compiling and longer passes change."""
    from .launches import trials

    model = "random:tiny" if smoke else "random:1.5b"
    for name, trial in trials(model, 4 if smoke else 32):
        with report.step(name):
            report.add(**{"name": name, "model": model, **trial()})


def work(part: str, out: Path, seconds: float, smoke: bool) -> None:
    """One part, in this process."""
    kinds: dict[str, Callable[[Report, bool], None]] = {"agreement": agreement, "launches": launches}
    report = Report(out, part, seconds)
    if part == "agreement":
        report.add(name="machine", **facts())
    with report.step(part):
        kinds[part](report, smoke) if part in kinds else bench(report, part, smoke)
    report.add(stand_ins=carried.used())


def facts() -> dict[str, Any]:
    """The card and the versions."""
    import torch
    import transformers

    import refusal_lens
    import refusal_lens.models.load  # noqa: F401

    from .measure import gemm_peak, machine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    rate = {str(dtype).removeprefix("torch."): gemm_peak(dtype, device) / 1e3 for dtype in dtypes}
    note = ", ".join(f"{name} {value:.3g}" for name, value in rate.items())
    return {
        "machine": machine(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "note": f"GEMM rate, TFLOP/s: {note}",
    }


def rows_of(out: Path) -> list[dict[str, Any]]:
    """All rows that are there, part by part."""
    files = [out / f"{part.replace(':', '-')}.jsonl" for part in dict.fromkeys((*LIMITS, *SMOKE, "run"))]
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def tables(out: Path) -> None:
    """``gpu.json`` and ``gpu.md`` from all rows so far."""
    rows = rows_of(out)
    (out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "gpu.md").write_text(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as tables, with the card's name first."""
    lines: list[str] = []
    for row in rows:
        if "machine" in row:
            versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
            used = {name for other in rows for name in other.get("stand_ins", ())}
            stand_ins = ", ".join(sorted(used)) or "none"
            lines += [f"{row['machine']}; {versions}; stand-ins: {stand_ins}. {row['note']}."]
    checks = [row for row in rows if "holds" in row]
    if checks:
        lines += ["", "| model | dtype | check | holds | measured |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['model']} | {r['dtype']} | {r['name']} | {'yes' if r['holds'] else '**no**'} | {r['note']} |"
            for r in checks
        ]
    timed = [row for row in rows if "seconds" in row]
    if timed:
        head = ("model", "row", "prompts", "ours, s", "plain, s", "ratio", "memory ours / plain, MB")
        head += ("tokens/s ours / plain", "of GEMM rate", "note")
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [_timed(row) for row in timed]
    tried = [row for row in rows if "trial" in row]
    if tried:
        lines += ["", "| model | tried | result | note |", "|---|---|---|---|"]
        lines += [f"| {r['model']} | {r['name']} | {r['trial']} | {r.get('note', '')} |" for r in tried]
    failed = [f"- {row['part']}, {row.get('name', '')}: {row['failed']}" for row in rows if "failed" in row]
    loads = [f"- {row['part']}: {row['loaded']}" for row in rows if "loaded" in row]
    return "\n".join([*lines, "", *loads, *failed]) + "\n"


def _timed(row: dict[str, Any]) -> str:
    from .__main__ import number

    share = "" if row["share_of_gemm_peak"] is None else f"{row['share_of_gemm_peak']:.0%}"
    cells = [row["model"], row["name"], row["prompts"], *(number(value, ".3g") for value in row["seconds"])]
    cells += [number(row["ratio"], ".2f"), " / ".join(number(value, ".0f") for value in row["peak_mb"])]
    rates = [row["tokens"] / seconds if row["tokens"] and seconds else None for seconds in row["seconds"]]
    cells += [" / ".join(number(rate, ".0f") for rate in rates), share, row["note"]]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """All parts in turn, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, help="folder of unpacked wheels; without it the machine's own packages")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"))
    parser.add_argument("--smoke", action="store_true", help="the organism and a tiny model, a few prompts: for a CPU")
    parser.add_argument("--parts", nargs="+", help="only these")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of all parts together")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    carried.use(args.site)
    if args.part:
        work(args.part, args.out, args.seconds, args.smoke)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("*.jsonl"):
        old.unlink()
    limits, end = SMOKE if args.smoke else LIMITS, time.monotonic() + args.seconds
    spare = 0.0
    for part in args.parts or limits:
        begin = time.monotonic()
        seconds = max(1.0, min(limits[part] + spare, end - begin))
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--out", str(args.out)]
        command += ["--seconds", f"{max(seconds - 5, 1):.0f}", *(["--site", str(args.site)] if args.site else [])]
        command += ["--smoke"] if args.smoke else []
        failed = ""
        try:
            if code := subprocess.run(command, timeout=seconds).returncode:
                failed = f"ended with {code}"
        except subprocess.TimeoutExpired:
            failed = f"cut off after {seconds:.0f} s"
        spare = max(0.0, spare + limits[part] - (time.monotonic() - begin))
        if failed:
            Report(args.out, "run", 0).add(name=part, failed=failed)
    tables(args.out)
    print((args.out / "gpu.md").read_text())
    if any(row.get("holds") is False for row in rows_of(args.out)):
        raise SystemExit("a check does not hold")


if __name__ == "__main__":
    main()
