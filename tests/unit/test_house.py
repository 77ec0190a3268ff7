"""The shape of the package: rooms, sizes, no way back up, and a report that needs no model."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "refusal_lens"
FILES = sorted(PACKAGE.rglob("*.py"))
STORED = Path(__file__).parents[1] / "reliability" / "folders" / "schema_3"
SLICES = ("direction", "attribution", "hijacking", "behaviour", "exactness")


def test_few_modules_at_the_top():
    assert {path.stem for path in PACKAGE.glob("*.py")} <= {
        "__init__",
        "__main__",
        "errors",
        "progress",
        "stats",
        "tensors",
    }


@pytest.mark.parametrize("name", SLICES)
def test_every_slice_has_the_same_four_files(name):
    assert {"records.py", "figures.py", "section.py", "stage.py"} <= {path.name for path in (PACKAGE / name).glob("*")}


def test_no_file_and_no_function_is_long():
    files = {str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: n for name, n in files.items() if n > 400} == {}
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno + 1 > 80
    }
    assert long == {}
    assert sum(files.values()) <= 30_680


def imports(path: Path) -> set[Path]:
    """Files of the package that a file imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        home = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for target in (home, *(home / alias.name for alias in node.names)):
            found |= {f for f in (target.with_suffix(".py"), target / "__init__.py") if f.is_file()}
    return found - {path}


def test_no_cycle_of_files():
    graph = {path: imports(path) for path in FILES}
    while graph:
        leaves = {path for path, needs in graph.items() if not needs & set(graph)}
        assert leaves, f"a cycle among {sorted(str(path.relative_to(PACKAGE)) for path in graph)}"
        graph = {path: needs for path, needs in graph.items() if path not in leaves}


def test_no_module_hides_a_public_name_of_its_package():
    for stub in PACKAGE.rglob("__init__.pyi"):
        names = {alias.name for node in ast.parse(stub.read_text("utf-8")).body for alias in node.names}
        packages = {path.parent.name for path in stub.parent.glob("*/__init__.py")}
        hidden = names & {path.stem for path in stub.parent.glob("*.py")}
        assert not hidden - packages, stub


def test_the_report_of_a_folder_needs_no_model(tmp_path):
    code = (
        "import sys; from refusal_lens.study import Study; "
        f"Study({str(STORED)!r}).report({str(tmp_path / 'report.html')!r}); "
        "print(sorted({'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]" and (tmp_path / "report.html").stat().st_size > 100_000
