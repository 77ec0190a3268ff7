"""``refusal-lens open DIR``: show a report in the browser."""

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ResultError
from .terminal import LATEST, console


def report_path(target: Path) -> Path:
    """The page of ``target``: a .html file itself, or ``report.html`` of a result folder (rendered if missing); a
    ``ResultError`` where there is neither."""
    if target.is_file() and target.suffix == ".html":
        return target
    for name in ("report.html", "index.html"):
        if (target / name).is_file():
            return target / name
    if (target / "study.json").is_file():
        from ..study.folder import Study

        return Study(target).report()
    what = "there is no folder" if not target.exists() else "there is no report.html in the folder"
    raise ResultError(f"{what} {target}; `refusal-lens run --out {target}` makes one")


def open_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result folder, or a .html file.")] = LATEST,
    browser: Annotated[bool, typer.Option(help="Open the page in the default browser.")] = True,
) -> None:
    """Open the report of DIR in the default browser; on a remote machine, say how to see it.

    Examples:

      refusal-lens open runs/latest

      refusal-lens open runs/latest --no-browser
    """
    page = report_path(folder).resolve()
    lines = [f"report: {page}"]
    # Over SSH a browser would start on the wrong machine, or in the terminal.
    if browser and ("SSH_CONNECTION" in os.environ or not webbrowser.open(page.as_uri())):
        lines += [
            "no browser here: copy the page to your machine, or serve its folder with",
            f"  python -m http.server 8000 --bind 127.0.0.1 --directory '{page.parent}'",
            f"then run `ssh -L 8000:127.0.0.1:8000 HOST` there and open http://127.0.0.1:8000/{page.name}",
        ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
