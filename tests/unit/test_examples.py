"""The examples in docstrings and in the README run as they stand, on the embedded model.

Docstrings may use ``rl``, ``model``, ``data`` and ``found``, as the API's first page defines them.
"""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
KINDS = (ast.Module, ast.ClassDef, ast.FunctionDef)
MODULES = [path for path in sorted((ROOT / "refusal_lens").rglob("*.py")) if ">>> " in path.read_text("utf-8")]


@pytest.fixture(scope="session")
def names(organism) -> dict[str, Any]:
    import refusal_lens as rl

    data = rl.load_prompts("organism", sizes=(48, 12, 12))
    return {"rl": rl, "model": organism, "data": data, "found": rl.find_direction(organism, data)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "refusal_lens")))
def test_docstrings(path, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    told: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, KINDS) and ">>> " in (text := ast.get_docstring(node) or ""):
            name = getattr(node, "name", path.stem)
            test = doctest.DocTestParser().get_doctest(text, dict(names), name, str(path), getattr(node, "lineno", 0))
            runner.run(test, out=told.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(told)


def test_the_readme(organism, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
