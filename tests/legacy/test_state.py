"""Hooks and state on a ``HookedTransformer``: the checks that `tests/reliability/test_hooks.py` runs on a bridge."""

from __future__ import annotations

import pytest

from refusal_lens import HookedChatModel
from tests.reliability.outcomes import record
from tests.reliability.state_checks import fire_at_every_hook, leave_in_every_order, refuse_a_second_thread

from .test_hooked_transformer import hooked_transformer


@pytest.fixture(scope="module")
def model():
    return HookedChatModel(hooked_transformer("qwen2"))


def test_an_exception_at_any_hook_leaves_the_model_as_it_was(model):
    fired = fire_at_every_hook(model)
    assert fired > 40
    record(
        "state",
        "exception at a hook (HookedTransformer, qwen2)",
        fired,
        "the next logits equal those before, bit for bit",
    )


def test_contexts_and_threads(model):
    leave_in_every_order(model)
    refuse_a_second_thread(model)
