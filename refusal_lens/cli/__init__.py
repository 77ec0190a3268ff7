"""The command line: ``refusal-lens run | open | report | hijack | evaluate | certify | sweep``."""

from .app import app, main

__all__ = ["app", "main"]
