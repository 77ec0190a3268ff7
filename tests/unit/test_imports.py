"""What importing the package costs, and that its names mean the same whichever way they came in."""

import subprocess
import sys

import pytest

import refusal_lens


def told_by(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


HEAVY = {
    "torch", "transformers", "transformer_lens", "tokenizers", "safetensors", "jaxtyping", "numpy", "scipy", "sklearn",
    "pandas", "plotly", "jinja2", "ray", "filelock", "refusal_lens.models.load", "refusal_lens.study.pipeline",
}  # fmt: skip


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import refusal_lens; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)), sorted(n for n in sys.modules if 'refusal_lens.' in n))"
    )
    assert told_by(code) == "['lazy_loader', 'refusal_lens'] []"


@pytest.mark.parametrize("command", ["--help", "run --help"])
def test_help_and_completion_need_no_torch(command):
    code = (
        "import sys, atexit; from refusal_lens.cli import main; "
        f"sys.argv[1:] = {command.split()}; "
        f"atexit.register(lambda: print('imported:', sorted(set({sorted(HEAVY)}) & set(sys.modules)))); "
        "main()"
    )
    assert told_by(code).splitlines()[-1] == "imported: []"


def test_every_public_name_is_found():
    assert all(getattr(refusal_lens, name) is not None for name in refusal_lens.__all__)
    assert set(refusal_lens.__all__) <= set(dir(refusal_lens))
    with pytest.raises(AttributeError, match="no_such"):
        refusal_lens.no_such  # noqa: B018
