"""What the scripts share: arguments, the direction (found once, then read), and one page of results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refusal_lens import HookedChatModel, load_model
from refusal_lens.behaviour.table import read_prompts
from refusal_lens.records.base import Record
from refusal_lens.records.files import write_atomically
from refusal_lens.report.page import Page, Section
from refusal_lens.study.config import StudyConfig
from refusal_lens.study.folder import Study
from refusal_lens.study.pipeline import run_study, stage_states


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """MODEL, prompts, sizes and the output folder."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0], prog=f"python -m analyses.{name}")
    found.add_argument("model", nargs="?", default="organism", help="hub id, folder, .gguf file or 'organism'")
    found.add_argument("--harmful", help="harmful prompts (as for `refusal-lens run`)")
    found.add_argument("--harmless", help="harmless prompts")
    found.add_argument("--train", type=int, default=128, help="training prompts of each kind")
    found.add_argument("--prompts", type=int, default=100, help="most test prompts of each kind")
    found.add_argument("--max-new-tokens", type=int, default=48, help="length limit of replies (the paper: 512)")
    found.add_argument("--out", type=Path, default=Path("runs") / "analyses" / name, help="output folder")
    found.add_argument("--study", type=Path, help="the direction's study, used as it is (default: made in OUT)")
    return found


def prepared(args: argparse.Namespace) -> tuple[HookedChatModel, Study]:
    """The model, and its direction by the paper's rule (the nearest candidate where none passes)."""
    model = load_model(args.model)
    config = StudyConfig(
        model=args.model,
        harmful=args.harmful,
        harmless=args.harmless,
        sizes=(args.train, 32, args.prompts),
        max_new_tokens=args.max_new_tokens,
        relax=True,
    )
    folder = args.study or args.out / "study"
    if args.study and (folder / "study.json").is_file():
        finished = True
    else:
        finished = (folder / "report.html").is_file() and all(s.state == "done" for s in stage_states(config, folder))
    study = Study(folder) if finished else run_study(config, folder, model=model)
    chosen = study.selection.chosen
    note = f" (relaxed: {chosen.relaxed})" if chosen.relaxed else ""
    print(f"{model.name}: direction at {chosen.label}{note}")
    return model, study


def prompts_of(source: str) -> tuple[str, list[str]]:
    """(name, prompts) of "file" or "name=file"; prints notes on prompts that were dropped."""
    notes: list[str] = []
    found = read_prompts(source, notes)
    for note in notes:
        print(f"note: {note}")
    return found


def finish(args: argparse.Namespace, title: str, sections: Sequence[Section], **records: Record) -> None:
    """Save the records and one self-contained page, and say where."""
    for name, record in records.items():
        record.save(args.out / name)
    page = Page(title=title, sections=tuple(sections))
    write_atomically(args.out / "index.html", page.render().encode())
    print(f"page: {(args.out / 'index.html').resolve()}")


def show(frame: Any) -> None:
    """A table on the terminal."""
    print(frame.round(3).to_string(index=False))
