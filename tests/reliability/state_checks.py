"""Checks of a model's state that hold on both backends; `test_hooks.py` and `tests/legacy` run them."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch

from refusal_lens import Ablate, Add, Direction, HookedChatModel
from refusal_lens.errors import ConcurrentUseError, ModelError
from refusal_lens.models.health import active_hooks
from refusal_lens.tensors import random_unit

PROMPTS = ["Tell me a story about cats", "Hi"]


class Boom(Exception):
    """Raised inside hooks."""


def fire_at_every_hook(model: HookedChatModel) -> int:
    """An exception at every hook point that fires, beside other hooks; logits are as before each time."""
    direction = Direction(random_unit(model.d_model, 0), 2.0, -1, 1, model.basis, model.fingerprint)
    plain, fired = model.last_logits(PROMPTS), 0

    def fail(x: Any, hook: Any) -> None:
        raise Boom

    for name in sorted(model.backend.hook_names):
        try:
            with model.hooks(Ablate(direction), Add(direction), (name, fail)):
                model.last_logits(PROMPTS)
        except Boom:
            fired += 1
        except (AssertionError, ValueError) as refused:  # TransformerLens's own: some points must be switched on
            assert "use_" in str(refused)
        assert active_hooks(model.tl) == (), name
        assert torch.equal(model.last_logits(PROMPTS), plain), name
    return fired


def leave_in_every_order(model: HookedChatModel) -> None:
    """Nested contexts left in the wrong order, by an exception, and never: what is left is right or named."""
    plain = model.last_logits(PROMPTS)
    one, two = (Direction(random_unit(model.d_model, s), 1.0, -1, 1, model.basis, model.fingerprint) for s in (1, 2))
    with model.hooks(Ablate(two)):
        only_two = model.last_logits(PROMPTS)
    outer, inner = model.hooks(Ablate(one)), model.hooks(Ablate(two))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # the outer one first
    assert torch.equal(model.last_logits(PROMPTS), only_two)
    inner.__exit__(None, None, None)
    assert active_hooks(model.tl) == () and torch.equal(model.last_logits(PROMPTS), plain)
    with pytest.raises(Boom), model.hooks(Ablate(one)), model.hooks(Ablate(two)):
        raise Boom
    assert torch.equal(model.last_logits(PROMPTS), plain)
    forgotten = model.hooks(Ablate(one))
    forgotten.__enter__()
    with pytest.raises(ModelError, match=r"has hooks on .* and \d+ more.*still open"):
        model.check_unhooked()
    del forgotten  # nobody holds it any longer: Python leaves it
    gc.collect()
    model.check_unhooked()
    assert torch.equal(model.last_logits(PROMPTS), plain)


def refuse_a_second_thread(model: HookedChatModel) -> int:
    """Threads, on this wrapper and on another one around the same model, are refused while hooks are on."""
    twin = HookedChatModel(model.tl, model.tokenizer, check=False)
    caught: list[str] = []

    def use(wrapper: HookedChatModel, how: str) -> None:
        try:
            if how == "logits":
                wrapper.last_logits(PROMPTS)
            elif how == "generate":
                wrapper.generate(PROMPTS, 2)
            elif how == "cache":
                wrapper.cache(PROMPTS, ["blocks.0.hook_resid_pre"])
            else:
                with wrapper.hooks():
                    pass
        except ConcurrentUseError as error:
            caught.append(str(error))

    tried = [(wrapper, how) for wrapper in (model, twin) for how in ("logits", "generate", "cache", "hooks")]
    with model.hooks():
        threads = [threading.Thread(target=use, args=one) for one in tried]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caught) == len(tried) and all("another thread" in message for message in caught)
    use(twin, "logits")
    assert len(caught) == len(tried)  # free again
    return len(tried)
