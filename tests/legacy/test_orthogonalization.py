"""The weight edit on a ``HookedTransformer``: equal to hooks, and bit for bit undone."""

from __future__ import annotations

import pytest
import torch

from refusal_lens import Direction, HookedChatModel
from refusal_lens.exactness.identities import orthogonalization_gap
from refusal_lens.hooks.orthogonalize import Orthogonalize
from refusal_lens.tensors import random_unit
from tests.tiny import tiny_tokenizer

try:
    from transformer_lens import HookedTransformer  # noqa: F401
except ImportError:
    pytest.skip("this transformer-lens has no HookedTransformer", allow_module_level=True)

from tests.legacy.test_hooked_transformer import ARCHITECTURES, hooked_transformer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_equal_hooks(architecture):
    model = HookedChatModel(hooked_transformer(architecture), tiny_tokenizer(), name=architecture)
    direction = Direction(random_unit(32, 0), 3.0, -1, 1, model.basis, model.fingerprint)
    before = {name: (p, p.detach().clone()) for name, p in model.tl.named_parameters()}
    kinds = {weight.name for weight in model.writing_weights()}
    assert {"W_E", "W_O"} <= kinds and ("W_out" in kinds or architecture == "mixtral")
    prompts = ["Tell me a story about cats", "Hi"]
    scale = float(model.last_logits(prompts).abs().max())
    assert orthogonalization_gap(model, direction, prompts) / scale < 1e-4
    with pytest.raises(ZeroDivisionError), model.hooks(Orthogonalize(direction)):
        assert model.tl.W_E is not before["embed.W_E"][0]
        raise ZeroDivisionError
    after = dict(model.tl.named_parameters())
    assert all(after[n] is p and torch.equal(p, value) for n, (p, value) in before.items())
