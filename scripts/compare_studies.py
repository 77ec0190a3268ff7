"""Compare two result folders, tensor by tensor and number by number.

    python scripts/compare_studies.py OLD NEW [--relative 1e-6]

Bit for bit by default. Provenance (versions, hashes, times) is not a result and is left out; ``RENAMED_*`` say what
has another name in newer folders. Prints every difference and exits with 1 if there is one. Neither a model nor the
package is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# Old file -> new file, both relative to the result folder and without their ending.
RENAMED_FILES: dict[str, str] = {}
# Old class -> new class.
RENAMED_RECORDS: dict[str, str] = {
    "HeadReport": "TopHeads",
    "HijackingReport": "Investigation",
    "LogitAttribution": "DirectLogitAttribution",
}
# (old class, old field) -> new field.
RENAMED_FIELDS: dict[tuple[str, str], str] = {
    ("HeadReport", "selection"): "chosen_on",
    ("HeadReport", "report"): "reported",
    ("SubspaceEffects", "sizes"): "ks",
}
# Digests of inputs, by which work is resumed: what they are made of is not a result.
DIGESTS = {("SuffixResult", "key"), ("SuffixResult", "tested")}
# Bookkeeping of a run: marks of stages, kept items, one column per prompt of a screen.
LEFT_OUT = ("study.json", "report.html", "report.md", "stages", "items", "screen", "seconds.json")


def records(folder: Path) -> dict[str, Path]:
    """Every record of a result folder by its path without the ending."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix in (".json", ".safetensors") and not set(inside.parts) & set(LEFT_OUT):
            found[inside.with_suffix("").as_posix()] = path
    return found


def read(path: Path) -> Any:
    """The document in a record's file, each tensor in the place of its reference."""
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["refusal_lens"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return tensors[value["$tensor"]] if "$tensor" in value else {k: filled(v) for k, v in value.items()}
        return [filled(v) for v in value] if isinstance(value, list) else value

    return filled(document)


def differences(old: Any, new: Any, relative: float, where: str = "") -> Iterator[str]:
    """What of ``old`` is missing or another value in ``new``; a field that only ``new`` has is no difference."""
    if isinstance(old, torch.Tensor) or isinstance(new, torch.Tensor):
        yield from _tensors(old, new, relative, where)
    elif isinstance(old, dict) and isinstance(new, dict):
        kind = old.get("$record", "")
        for key, value in old.items():
            if (kind, key) in DIGESTS:
                continue
            # A record that was not made again still has its old names.
            if key == "$record" and new.get(key) != value:
                value = RENAMED_RECORDS.get(value, value)
            name = key if key in new else RENAMED_FIELDS.get((kind, key), key)
            if name not in new:
                yield f"{where}.{key}: missing"
            else:
                yield from differences(value, new[name], relative, f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{where}: {len(old)} entries against {len(new)}"
        for i, (a, b) in enumerate(zip(old, new, strict=False)):
            yield from differences(a, b, relative, f"{where}[{i}]")
    elif isinstance(old, float) and isinstance(new, (int, float)):
        same = old == new or (math.isnan(old) and math.isnan(new))
        if not same and not abs(old - new) <= relative * max(abs(old), abs(new)):
            yield f"{where}: {old!r} against {new!r}"
    elif old != new:
        yield f"{where}: {str(old)[:80]!r} against {str(new)[:80]!r}"


def _tensors(old: Any, new: Any, relative: float, where: str) -> Iterator[str]:
    if not (isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)):
        yield f"{where}: a tensor on one side only"
    elif old.shape != new.shape or old.dtype != new.dtype:
        yield f"{where}: {old.dtype} {tuple(old.shape)} against {new.dtype} {tuple(new.shape)}"
    elif old.is_floating_point():
        a, b = old.double(), new.double()
        odd = a.isfinite() != b.isfinite()
        odd |= ~a.isfinite() & ~((a == b) | (a.isnan() & b.isnan()))
        gap = (a - b).abs().nan_to_num(0.0, posinf=0.0)
        scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
        if bool(odd.any()) or float(gap.max() if gap.numel() else 0) > relative * scale:
            yield f"{where}: differs by {float(gap.max()):.3g} at a scale of {scale:.3g}"
    elif not torch.equal(old, new):
        yield f"{where}: {int((old != new).sum())} of {old.numel()} entries differ"


def compare(old: Path, new: Path, relative: float = 0.0) -> list[str]:
    """Every difference between two result folders, in words.

    Args:
        old, new: the folders.
        relative: how far a number may differ, relative to the largest of its tensor; 0 for bit for bit.
    """
    before, after = records(old), records(new)
    if not before:
        return [f"{old} holds no record"]
    found = []
    for name, path in before.items():
        renamed = RENAMED_FILES.get(name, name)
        if renamed not in after:
            found.append(f"{name}: no such record in {new}")
        else:
            found += differences(read(path), read(after[renamed]), relative, name)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--relative", type=float, default=0.0, help="how far a number may differ (default: not at all)")
    given = parser.parse_args()
    found = compare(given.old, given.new, given.relative)
    for line in found:
        print(line)
    print(f"{len(records(given.old))} records compared: {len(found) or 'no'} difference(s)")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
