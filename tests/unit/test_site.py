"""The site's reference lists every public name, so its search finds each of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = sorted((ROOT / "refusal_lens").rglob("__init__.pyi"))
PAGES = {page.stem: page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md")}
LISTED = set(re.findall(r"^::: (\S+)$", "\n".join(PAGES.values()), re.MULTILINE))
MODULES = {"refusal_lens.errors", "refusal_lens.data.organism"}


def public_names(stub: Path) -> Iterator[str]:
    """Where each public name of a package is defined, through the stubs of packages that hand it on."""
    for node in ast.parse(stub.read_text("utf-8")).body:
        assert isinstance(node, ast.ImportFrom)
        home = stub.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        for alias in node.names:
            if alias.name == "*":  # figures and views of a slice
                shown = re.findall(
                    r"^def (plot_\w+|\w+_view)\(", home.with_suffix(".py").read_text("utf-8"), re.MULTILINE
                )
                yield from (".".join((*home.relative_to(ROOT).parts, name)) for name in shown)
            elif (home / alias.name / "__init__.py").is_file():
                yield alias.name  # a package: it has a page of its own, or an entry
            elif (inner := home / "__init__.pyi") != stub and inner.is_file():
                yield next(name for name in public_names(inner) if name.split(".")[-1] == alias.name)
            else:
                yield ".".join((*home.relative_to(ROOT).parts, alias.name))


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: str(stub.parent.relative_to(ROOT)))
def test_every_public_name_is_in_the_reference(stub):
    for name in public_names(stub):
        if "." in name:
            assert LISTED & {name, name.rpartition(".")[0]}, f"{name} is missing in docs/api"
        else:
            assert name in PAGES or f"refusal_lens.data.{name}" in LISTED, f"the package {name} has no page in docs/api"


def test_the_reference_lists_nothing_else():
    assert LISTED - {name for stub in STUBS for name in public_names(stub)} == MODULES


def test_the_first_page_defines_the_names_of_the_examples():
    for line in ("model = rl.load_model(", "data = rl.load_prompts(", "found = rl.find_direction(model, data)"):
        assert line in PAGES["index"]
