"""The refusal direction of a chat model: found, tested, taken apart."""

from .errors import RefusalLensError
from .interventions import Ablate, Add
from .loading import load_model
from .model import HookedChatModel
from .prompts import PromptSet
from .records import Direction

__all__ = ["Ablate", "Add", "Direction", "HookedChatModel", "PromptSet", "RefusalLensError", "load_model"]
