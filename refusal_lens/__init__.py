"""The refusal direction of a chat model: found, tested, taken apart."""

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
