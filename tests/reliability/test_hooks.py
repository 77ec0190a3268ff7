"""State: after any exception, order of leaving or second thread the model is as it was, or the fault is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from refusal_lens import Ablate, HookedChatModel, Orthogonalize
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


def state_of(tl: Any, but: frozenset[str] = frozenset()) -> dict[tuple[str, str], Any]:
    """Everything that hangs on the modules of a model: attributes by identity, hooks by their functions."""
    found: dict[tuple[str, str], Any] = {}
    for name, module in tl.named_modules():
        for key, value in module.__dict__.items():
            if key in but:
                continue
            if isinstance(value, dict):
                found[name, key] = {inner: id(one) for inner, one in value.items()}
            else:
                found[name, key] = value if isinstance(value, (bool, int, str, type(None))) else id(value)
    return found


def own_notes(bridge: Any) -> frozenset[str]:
    """Attributes that TransformerLens itself writes anew in every use (captured activations, counters), after a use in
    which it added its own hooks, once and for all."""
    ids = torch.zeros(1, 3, dtype=torch.long)

    def use() -> dict[tuple[str, str], Any]:
        with torch.inference_mode(), bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: None)]):
            bridge(ids)
        return state_of(bridge)

    fresh, one, two = state_of(bridge), use(), use()
    hooks = {key for _, key in one if key.endswith("_hooks")}
    changed = {key[1] for a, b in ((fresh, one), (one, two)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    return frozenset(changed - hooks)


@pytest.mark.parametrize("training", [False, True])
def test_wrapping_leaves_no_trace(training):
    bridge = tiny_bridge("llama")
    bridge.train(training)
    notes = own_notes(bridge)
    before = state_of(bridge, notes)
    with HookedChatModel(bridge, tiny_tokenizer()) as model:
        direction = direction_of(model)
        assert state_of(bridge, notes) == before, "wrapped"
        with model.hooks(Ablate(direction)):
            ablated = model.last_logits(PROMPTS)
        model.generate(PROMPTS, 3)
        assert state_of(bridge, notes) == before, "used"
        twin = HookedChatModel(bridge, tiny_tokenizer(), system="Be kind.")
        with twin.hooks(Ablate(direction)), model.hooks():  # each pass enters the same preparations
            twin.last_logits(PROMPTS)
        twin.close()
        with model.hooks(Ablate(direction)):
            assert torch.equal(model.last_logits(PROMPTS), ablated)
        forgotten = model.hooks(Ablate(direction))
        forgotten.__enter__()
        assert state_of(bridge, notes) != before
    assert state_of(bridge, notes) == before and bridge.training is training
    forgotten.__exit__(None, None, None)
    assert state_of(bridge, notes) == before, "left twice"


def test_a_pass_inside_a_pass_and_a_failed_one_leave_no_trace():
    model = tiny_model("gemma3")
    notes = own_notes(model.tl)
    before, plain = state_of(model.tl, notes), model.last_logits(PROMPTS)
    inner: list[Any] = []

    def again(x: torch.Tensor, hook: Any) -> None:
        if not inner:
            inner.append(None)
            inner[0] = model.last_logits(PROMPTS)

    with model.hooks(("blocks.2.hook_resid_post", again)):
        assert torch.equal(model.last_logits(PROMPTS), plain)
    assert torch.equal(inner[0], plain) and state_of(model.tl, notes) == before
    with pytest.raises(Boom), model.hooks(("blocks.1.hook_mlp_out", _boom)):
        model.generate(PROMPTS, 3)
    assert state_of(model.tl, notes) == before


def test_a_restart_before_any_other_pass_is_right():
    tokens = tiny_model("gpt_neox").tokenize(PROMPTS)
    name = "blocks.1.hook_resid_pre"
    resid = tiny_model("gpt_neox").cache(tokens, [name])[name]
    fresh = HookedChatModel(tiny_bridge("gpt_neox"), tiny_tokenizer(), check=False)
    assert torch.allclose(fresh.logits(tokens, start=(1, resid)), fresh.logits(tokens), atol=1e-5)


def _boom(x: torch.Tensor, hook: Any) -> None:
    raise Boom
