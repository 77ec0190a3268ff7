"""State: after any exception, order of leaving or second thread the model is as it was, or the fault is named."""

from __future__ import annotations

import pytest
import torch

from refusal_lens import HookedChatModel, Orthogonalize
from refusal_lens.errors import ModelError
from refusal_lens.exactness.identities import certify
from refusal_lens.study.config import StudyConfig
from refusal_lens.study.pipeline import run_study
from tests.model.cases import direction_of
from tests.tiny import tiny_bridge, tiny_model, tiny_tokenizer

from .outcomes import record
from .state_checks import PROMPTS, Boom, fire_at_every_hook, leave_in_every_order, refuse_a_second_thread


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_an_exception_at_any_hook_leaves_the_model_as_it_was(architecture):
    fired = fire_at_every_hook(tiny_model(architecture))
    assert fired > 40
    record(
        "state",
        f"exception at a hook (bridge, {architecture})",
        fired,
        "the next logits equal those before, bit for bit",
    )


def test_contexts_left_in_any_order_or_never():
    leave_in_every_order(tiny_model("llama"))
    record("state", "contexts left in the wrong order, or forgotten", 3, "right afterwards, or refused by name")


def test_a_second_thread_is_refused():
    n = refuse_a_second_thread(tiny_model("llama"))
    record("state", "second thread on the same model, through any wrapper", n, "refused in one sentence")


def test_a_model_with_hooks_left_on_it_is_not_measured(tmp_path):
    bridge = tiny_bridge("llama")
    model = HookedChatModel(bridge, tiny_tokenizer())
    bridge.add_hook("blocks.1.hook_mlp_out", lambda x, hook: x * 0)
    for use in (
        lambda: certify(model),
        lambda: run_study(StudyConfig(), tmp_path / "run", model=model),
        lambda: HookedChatModel(bridge, tiny_tokenizer()),
    ):
        with pytest.raises(ModelError, match=r"has hooks on .*mlp"):
            use()
    assert not (tmp_path / "run").exists()
    bridge.reset_hooks()
    assert certify(model, float64=False).identities


def test_weights_come_back_after_an_exception_in_an_edit():
    model = tiny_model("llama")
    plain = model.last_logits(PROMPTS)
    with pytest.raises(Boom), model.hooks(Orthogonalize(direction_of(model))):
        assert not torch.equal(model.last_logits(PROMPTS), plain)
        raise Boom
    assert torch.equal(model.last_logits(PROMPTS), plain)
