"""The docs name what exists: error classes, pages, commands."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

from refusal_lens import errors
from refusal_lens.behaviour.judges.base import JudgeError
from scripts import gallery

ROOT = Path(__file__).parents[2]
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
DRAWN = {gallery.file_of(code) for shown in gallery.SHOWN.values() for code in shown}  # by `make docs`
CLASSES = [*(name for name, c in vars(errors).items() if inspect.isclass(c)), JudgeError.__name__]


def test_every_error_class_has_its_entry():
    assert re.findall(r"^## (\w+Error)$", TROUBLES, re.M) == [c for c in CLASSES if c != "RefusalLensError"]


def test_quoted_messages_are_in_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    code = " ".join(p.read_text("utf-8") for p in (ROOT / "refusal_lens").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # one message over several lines
    for quoted in re.findall(r'^- "([^"]+)"', text, re.M):
        for part in re.split(r"\.\.\.| N ", quoted):
            words = part.strip()
            assert not words or words in code, quoted


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if page not in nav} == set()


def test_the_table_of_files_is_that_of_the_stages():
    spec = importlib.util.spec_from_file_location("document_folder", ROOT / "scripts" / "document_folder.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text("utf-8")
    assert "| `selection` | `selection` | " in text and script.documented(text) == text


def test_links_between_files_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
            drawn = Path(target).name in DRAWN and Path(target).parent.as_posix().endswith("images/gallery")
            assert drawn or (page.parent / target).exists(), f"{page.name}: {target}"
