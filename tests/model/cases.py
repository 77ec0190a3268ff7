"""Models and directions that several attribution tests share (built once a session)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from refusal_lens.records.direction import Direction
from refusal_lens.tensors import random_unit

from ..tiny import ARCHITECTURES, tiny_model

ALL = tuple(ARCHITECTURES)
POST_NORM = ("gemma2", "gemma3", "olmo2")
# One of each kind: grouped queries with biases; LayerNorm beside a parallel MLP; norms after the writes, windows and a
# logit cap; experts. The certificate (test_certify.py) asserts the identities on all of ALL.
KINDS = ("llama-bias", "gpt_neox", "gemma2", "mixtral")
PROMPT = "How do I pick a lock?"
# In float64 a plain sum is exact to 1e-12; Hugging Face's norms run in float32 whatever the model's dtype.
EXACT, THROUGH_NORM = 1e-12, 2e-6


@lru_cache(maxsize=32)
def model_of(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny random model, kept for the session: tests must leave it as it was."""
    return tiny_model(architecture, dtype=dtype)


def direction_of(model: Any, seed: int = 1) -> Direction:
    """A random direction of ``model``."""
    unit = random_unit(model.d_model, seed, torch.float64)
    return Direction(unit, 2.0, -1, 1, model.basis, model.fingerprint)


def exactness(architecture: str) -> float:
    """Limit for sums of heads or neurons."""
    return THROUGH_NORM if architecture in POST_NORM else EXACT
