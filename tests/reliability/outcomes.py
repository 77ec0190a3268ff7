"""What the reliability tests found, one JSON file a fault: docs/reliability.md is written from these.

``python -m tests.reliability.outcomes`` writes the table into the document.
"""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("REFUSAL_LENS_OUTCOMES", ROOT / "build" / "reliability"))
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin (make reliability) -->", "<!-- table: end -->"


def record(group: str, fault: str, tried: int, happened: str) -> None:
    """Note that ``fault`` was tried ``tried`` times and what happened; a larger number of tries replaces a smaller."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in f"{group} {fault}".lower())[:100]
    file = FOLDER / f"{name}.json"
    if file.is_file() and json.loads(file.read_text())["tried"] > tried:
        return
    row = {"group": group, "fault": fault, "tried": tried, "happened": happened, "date": date.today().isoformat()}
    file.write_text(json.dumps(row, indent=1, ensure_ascii=False))


def table() -> str:
    """All outcomes as Markdown."""
    rows = sorted((json.loads(f.read_text()) for f in FOLDER.glob("*.json")), key=lambda r: (r["group"], r["fault"]))
    lines = ["| what | fault | tried | what happened | on |", "|---|---|---|---|---|"]
    lines += [f"| {r['group']} | {r['fault']} | {r['tried']:,} | {r['happened']} | {r['date']} |" for r in rows]
    return "\n".join(lines)


def main() -> None:
    """Put the table where the document has its markers."""
    text = DOCUMENT.read_text("utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    DOCUMENT.write_text(f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}", "utf-8")
    print(f"{len(list(FOLDER.glob('*.json')))} rows written to {DOCUMENT}")


if __name__ == "__main__":
    main()
