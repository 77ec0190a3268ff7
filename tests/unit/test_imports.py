"""What importing the package costs, and that its names mean the same whichever way they came in."""

import subprocess
import sys

import pytest

import refusal_lens


def told_by(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_help_and_completion_need_no_torch():
    code = "import sys, refusal_lens.cli.app; print(sorted({'torch', 'transformer_lens', 'pandas'} & set(sys.modules)))"
    assert told_by(code) == "[]"


def test_every_public_name_is_found():
    assert all(getattr(refusal_lens, name) is not None for name in refusal_lens.__all__)
    assert set(refusal_lens.__all__) <= set(dir(refusal_lens))
    with pytest.raises(AttributeError, match="no_such"):
        refusal_lens.no_such  # noqa: B018
