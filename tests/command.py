"""The command line inside this process: exit code and both streams, without a second import of torch."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from refusal_lens.cli import main
from refusal_lens.cli.terminal import log


@dataclass(frozen=True)
class Done:
    """What a finished command leaves, named as in ``subprocess``."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments: object) -> Done:
    """Run ``refusal-lens ARGUMENTS``; an error that is no sentence for the user is raised, not caught."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as state,
        patch.dict(os.environ),
        warnings.catch_warnings(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        state.setattr(sys, "argv", ["refusal-lens", *map(str, arguments)])
        state.setattr(log, "_file", None)
        state.setattr(logging.root.manager, "disable", logging.root.manager.disable)
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


def without_costs(content: bytes) -> bytes:
    """A report without its table of what each stage took, which differs from run to run."""
    return re.sub(rb'<figure id="stage-costs">.*?</figure>', b"", content, flags=re.DOTALL)
