"""The command line: ``refusal-lens run | open | report | hijack | evaluate | certify | sweep | explore``."""

from .app import app, main

__all__ = ["app", "main"]
