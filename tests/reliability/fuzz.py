"""Mutated result folders, prompt files, suffix files and GGUF files: each loads or ends with one clear error.

    python -m tests.reliability.fuzz --cases 5000

A case fails when it raises anything but a ``RefusalLensError`` of one line, takes longer than the limit, or when the
process's memory doubles. What failed is kept in ``build/fuzz`` for a closer look.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from refusal_lens.data.organism import instructions, suffixes
from refusal_lens.data.prompts import PromptSet
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.load import load_model
from refusal_lens.study.folder import Study

from .outcomes import record
from .tiny_gguf import write_tiny_gguf

FOLDERS = Path(__file__).parent / "folders"
LIMIT = 30.0  # seconds a case
MEMORY = 12 << 30  # bytes of addresses: what a mutated size asks for ends there, and not with the machine
LABELS = {"folder": "result folders", "prompts": "prompt files", "suffixes": "suffix files", "gguf": "GGUF files"}
SHARES = {"folder": 0.5, "prompts": 0.2, "suffixes": 0.2, "gguf": 0.1}
HOSTILE: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "\ud800", "\x00",
    "../../etc/passwd",
    "/dev/zero", "<script>alert(1)</script>", "{{ 7 * 7 }}", "${HOME}", "x" * 100_000, [], {}, [[]], [None],
    {"$tensor": "x"},
    {"$record": "Study"}, {"$record": "Record"}, {"$float": "x"}, {"$float": None}, {"$tensor": []},
]  # fmt: skip


class Hang(BaseException):
    """A case that took too long; not an Exception, so that nobody takes it for one."""


# -- mutations ------------------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random, near: int | None = None) -> bytes:
    """A few random edits; in the first ``near`` bytes only, if given."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        end = min(len(out), near or len(out))
        if not end:
            return bytes(rng.randbytes(8))
        at = rng.randrange(end)
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, *b'"{}[],:\\-9e'))
        elif kind == 2:
            del out[at : at + rng.choice((1, 4, 100, len(out)))]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 8, 200))]
        elif kind == 5:
            out[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)))
        elif kind == 6:
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 8, 9, 10, 255, 2**16, 2**31, 2**32 - 1)))
        else:
            other = rng.randrange(len(out))
            out[at : at + 16] = out[other : other + 16]
    return bytes(out)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """The document with a few nodes replaced, removed, doubled or renamed."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        parents = list(_containers(value))
        if not parents:
            return copy.deepcopy(rng.choice(HOSTILE))
        parent = rng.choice(parents)
        if not parent:
            continue
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        kind = rng.randrange(6)
        if kind < 3:
            parent[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 3:
            del parent[key]
        elif kind == 4 and isinstance(parent, dict):
            parent[str(rng.choice(("schema", "$record", "$tensor", "x", "../y")))] = parent.pop(key)
        elif isinstance(parent, list):
            parent.extend(copy.deepcopy(parent[key]) for _ in range(rng.choice((1, 3, 50))))
        else:
            parent[key] = [parent[key]]
    return value


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for inner in list(value.values()) if isinstance(value, dict) else value:
            yield from _containers(inner)


def mutate_file(data: bytes, suffix: str, rng: random.Random) -> bytes:
    """By the file's format half of the time, by its bytes otherwise."""
    if rng.random() < 0.5 or suffix in (".csv", ".txt"):
        return mutate_bytes(data, rng)
    if suffix == ".json":
        if rng.random() < 0.05:
            return b"[" * 100_000
        return json.dumps(mutate_json(json.loads(data), rng)).encode("utf-8", "surrogatepass")
    if suffix == ".jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        return "\n".join(json.dumps(row) for row in mutate_json(lines, rng) or [None]).encode("utf-8", "surrogatepass")
    (length,) = struct.unpack("<Q", data[:8])  # safetensors: its header
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5 and "refusal_lens" in header.get("__metadata__", {}):
        document = mutate_json(json.loads(header["__metadata__"]["refusal_lens"]), rng)
        header["__metadata__"]["refusal_lens"] = json.dumps(document)
    else:
        header = mutate_json(header, rng)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


# -- what is loaded -------------------------------------------------------------------------------------------------


def folder_case(place: Path, rng: random.Random) -> Callable[[], Any]:
    """A result folder with one or two files mutated, removed or swapped; every record is read and the page made."""
    out = place / "run"
    shutil.copytree(rng.choice(sorted(FOLDERS.iterdir())), out)
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.parent.name != "stages")
    for file in rng.sample(files, rng.choice((1, 1, 1, 2))):
        kind = rng.randrange(12)
        if kind == 0:
            file.unlink()
        elif kind == 1:
            same = [f for f in files if f.suffix == file.suffix and f.is_file()]
            file.write_bytes(rng.choice(same).read_bytes() if same else b"")
        else:
            file.write_bytes(mutate_file(file.read_bytes(), file.suffix, rng))
    whole = rng.random() < 0.05

    def load() -> None:
        page = Study(out).page()
        if whole:
            page.render()

    return load


def prompts_case(place: Path, rng: random.Random) -> Callable[[], Any]:
    """A prompt file of any format."""
    rows = json.loads(instructions()["harmful"].read_text())
    texts = [row["instruction"] for row in rows["train"][:12]]
    suffix = rng.choice((".json", ".json", ".jsonl", ".csv", ".txt"))
    if suffix == ".json":
        small = {split: rows[split][:5] for split in rows}
        data = json.dumps(rng.choice((texts, small, [{"Goal": t} for t in texts]))).encode()
    elif suffix == ".jsonl":
        data = "\n".join(json.dumps({"instruction": t}) for t in texts).encode()
    else:
        data = "\n".join(["instruction", *texts]).encode()
    file = place / f"prompts{suffix}"
    file.write_bytes(mutate_file(data, suffix, rng))
    return lambda: PromptSet.load(file)


def suffixes_case(place: Path, rng: random.Random) -> Callable[[], Any]:
    """A suffix file: ours, nanoGCG's or JailbreakBench's."""
    rows = [json.loads(line) for line in suffixes().read_text().splitlines()][:8]
    suffix = rng.choice((".json", ".json", ".jsonl", ".csv", ".txt"))
    if suffix == ".json":
        found: Any = rng.choice(("rows", "gcg", "jbb"))
        if found == "gcg":
            found = {"best_loss": 0.5, "best_string": "! !", "losses": [1.0, 0.5], "strings": ["a", "b"]}
        elif found == "jbb":
            found = {"jailbreaks": [{"goal": "Ask", "prompt": f"Ask{r['suffix']}"} for r in rows]}
        else:
            found = rows
        data = json.dumps(found).encode()
    elif suffix == ".jsonl":
        data = "\n".join(json.dumps(r) for r in rows).encode()
    else:
        data = "\n".join(["suffix", *(r["suffix"] for r in rows)]).encode()
    file = place / f"suffixes{suffix}"
    file.write_bytes(mutate_file(data, suffix, rng))
    return lambda: SuffixSet.load(file)


_GGUF: list[bytes] = []


def gguf_case(place: Path, rng: random.Random) -> Callable[[], Any]:
    """A GGUF file whose header is mutated (9 of 10), or any byte of it."""
    if not _GGUF:
        _GGUF.append(write_tiny_gguf(place / "whole.gguf").read_bytes())
    file = place / "model.gguf"
    file.write_bytes(mutate_bytes(_GGUF[0], rng, 9000 if rng.random() < 0.9 else None))
    return lambda: load_model(file)


CASES = {"folder": folder_case, "prompts": prompts_case, "suffixes": suffixes_case, "gguf": gguf_case}


def peak() -> float:
    """Peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def warm(place: Path) -> None:
    """Everything once, unmutated: what the memory is compared with."""
    for folder in sorted(FOLDERS.iterdir()):
        Study(folder).page().render()
    load_model(write_tiny_gguf(place / "clean.gguf"))


def main() -> None:
    """See the module's text; the last line of the output is a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CASES)
    given = parser.parse_args()

    def too_long(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    with contextlib.redirect_stderr(io.StringIO()):
        warm(place)
    before, counts, failures, slowest = peak(), Counter(), [], 0.0
    kept = Path("build/fuzz")
    for number in range(given.cases):
        rng = random.Random(f"{given.seed}-{number}")
        kind = given.only or rng.choices(list(SHARES), list(SHARES.values()))[0]
        case = place / str(number)
        case.mkdir()
        run = CASES[kind](case, rng)
        begin, problem = time.monotonic(), ""
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                run()
            counts[kind, "loads"] += 1
        except RefusalLensError as error:
            counts[kind, "one clear error"] += 1
            if "\n" in str(error).strip() or not str(error).strip() or len(str(error)) > 1000:
                problem = f"not one line: {str(error)[:500]!r}"
        except Hang:
            problem = f"took more than {LIMIT:.0f} s"
        except BaseException:
            problem = traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.monotonic() - begin)
        if problem:
            failures.append(kind)
            shutil.copytree(case, kept / f"{given.seed}-{number}", dirs_exist_ok=True)
            print(f"case {number} ({kind}), kept in {kept / f'{given.seed}-{number}'}:\n{problem}", flush=True)
        shutil.rmtree(case)
        if number % 500 == 499:
            print(f"{number + 1} cases, {len(failures)} failures, {peak():.0f} MB", flush=True)
    shutil.rmtree(place)
    found = {kind: {o: counts[kind, o] for o in ("loads", "one clear error")} for kind in SHARES}
    result = {"cases": given.cases, "failures": len(failures), "slowest, s": round(slowest, 2), **found}
    result["memory"] = round(peak() / before, 2)
    print(json.dumps(result))
    note(result)
    raise SystemExit(bool(failures))


def note(found: dict[str, Any]) -> None:
    """The outcome as rows of the table."""
    for kind, label in LABELS.items():
        loads, refused = found[kind]["loads"], found[kind]["one clear error"]
        record(
            "input",
            f"mutated {label}",
            loads + refused,
            f"{loads} load, {refused} end with one clear error; of {found['cases']:,} cases of all kinds "
            f"{found['failures']} gave a traceback or hung (slowest {found['slowest, s']:.1f} s), memory at most "
            f"{found['memory']:.2f} times that of whole files",
        )


if __name__ == "__main__":
    main()
