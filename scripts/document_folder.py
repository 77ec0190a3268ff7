"""Write the table of a result folder's files into docs/result_folder.md, from the stages' declarations.

python scripts/document_folder.py
"""

from __future__ import annotations

from pathlib import Path

from refusal_lens.study.stages import PIPELINE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "result_folder.md"
BEGIN, END = "from the stages' declarations -->\n", "<!-- end -->"


def files_table() -> str:
    """Files of the stages as rows of a Markdown table."""
    rows = []
    for stage in PIPELINE:
        names = ", ".join(f"`{file}`" for file in stage.makes)
        by = f" (`{stage.command}`)" if stage.command else ""
        rows.append(f"| {names} | `{stage.name}` | {stage.holds}{by} |")
    return "\n".join(["| file | stage | what |", "|---|---|---|", *rows])


def documented(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{files_table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(documented(PAGE.read_text("utf-8")), "utf-8")
