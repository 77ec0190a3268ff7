"""Where the work of a stage runs: in this process, or on the workers of a Ray cluster, with the same results."""

from .base import Engine, Work
from .choice import MakeEngine, named_engine
from .journal import Journal
from .local import LocalEngine

__all__ = ["Engine", "Journal", "LocalEngine", "MakeEngine", "Work", "named_engine"]
