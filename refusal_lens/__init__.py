"""The refusal direction of a chat model: found, tested, taken apart."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import organism
    from .attribution import direct_logit_attribution, head_contributions
    from .certify import certify
    from .errors import RefusalLensError
    from .extraction import extract_directions
    from .hijacking import hijacking
    from .interventions import Ablate, Add
    from .loading import load_model
    from .model import HookedChatModel
    from .orthogonalization import orthogonalized
    from .prompts import PromptSet
    from .records import Direction
    from .selection import select_direction
    from .study import Study, StudyConfig, run_study
    from .suffixes import SuffixSet

__all__ = [
    "Ablate",
    "Add",
    "Direction",
    "HookedChatModel",
    "PromptSet",
    "RefusalLensError",
    "Study",
    "StudyConfig",
    "SuffixSet",
    "certify",
    "direct_logit_attribution",
    "extract_directions",
    "head_contributions",
    "hijacking",
    "load_model",
    "organism",
    "orthogonalized",
    "run_study",
    "select_direction",
]

# Names are looked up when they are first used: torch and TransformerLens take seconds to import, and completing a
# command line or printing its help needs neither.
_HOME = {
    "Ablate": ".interventions",
    "Add": ".interventions",
    "Direction": ".records",
    "HookedChatModel": ".model",
    "PromptSet": ".prompts",
    "RefusalLensError": ".errors",
    "Study": ".study",
    "StudyConfig": ".study",
    "SuffixSet": ".suffixes",
    "certify": ".certify",
    "direct_logit_attribution": ".attribution",
    "extract_directions": ".extraction",
    "head_contributions": ".attribution",
    "hijacking": ".hijacking",
    "load_model": ".loading",
    "orthogonalized": ".orthogonalization",
    "run_study": ".study",
    "select_direction": ".selection",
}


def __getattr__(name: str) -> Any:
    if name == "organism":
        return import_module(".organism", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the module ``hijacking`` or ``certify`` must not hide the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
