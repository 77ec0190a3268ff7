"""The command line: ``refusal-lens run``, and ``open | report | hijack | evaluate | ablations | certify | sweep |
explore``."""

from .app import app, main

__all__ = ["app", "main"]
