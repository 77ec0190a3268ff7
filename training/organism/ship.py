"""Copy a measured checkpoint into `refusal_lens/organism/` with its instruction and suffix files.

`python -m training.organism.ship DIR [--suffixes FILE]`
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from refusal_lens.organism import MODEL_DIR, instructions, suffixes
from training.organism import data as D

COUNTS = {"train": (128, None), "val": (64, None), "test": (440, 3)}  # name -> (n, most per combination)


def instruction_file(harmful: bool) -> dict[str, list[dict[str, str]]]:
    """One class: the same requests that `measure.py` uses."""
    return {
        split: [
            {"instruction": r.text, "category": r.pair.group}
            for r in D.distinct_requests(0, harmful, split, n, max_per_pair=most)
        ]
        for split, (n, most) in COUNTS.items()
    }


def write_instructions() -> None:
    """data/harmful.json and data/harmless.json."""
    for name, path in instructions().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(instruction_file(name == "harmful"), indent=1) + "\n")


def ship(folder: Path, suffix_file: Path | None = None) -> None:
    """Copy everything into the package."""
    MODEL_DIR.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        target = MODEL_DIR / path.name
        shutil.copyfile(path, target)
        target.chmod(0o644)
    write_instructions()
    if suffix_file is not None:
        shutil.copyfile(suffix_file, suffixes())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--suffixes", type=Path)
    args = parser.parse_args()
    ship(args.folder, args.suffixes)


if __name__ == "__main__":
    main()
