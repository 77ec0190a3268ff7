"""The wrapper on a ``HookedTransformer`` of transformer-lens 3.9: the same identities as on the bridge.

Skipped where transformer-lens has no HookedTransformer (4.x); ``make test-legacy`` brings 3.9 in its own venv.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from refusal_lens import Ablate, Add, Direction, HookedChatModel
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.select import SelectionRule, select_direction
from refusal_lens.errors import DirectionError, ModelError
from refusal_lens.refusal.records import RefusalTokens
from refusal_lens.tensors import random_unit
from tests.tiny import tiny_folder, tiny_hf, tiny_model, tiny_tokenizer

try:
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
except ImportError:
    pytest.skip("this transformer-lens has no HookedTransformer", allow_module_level=True)

PROMPTS = ["Tell me a story about cats", "Hi", "What is the meaning of all this, dear friend?"]
ARCHITECTURES = ["qwen2", "phi3", "gpt_neox", "mixtral"]


def hooked_transformer(architecture: str) -> HookedTransformer:
    """A HookedTransformer from a tiny checkpoint, unprocessed, without the hub."""
    folder, hf = str(tiny_folder(architecture)), tiny_hf(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = get_pretrained_model_config(folder, hf_cfg=hf.config.to_dict(), fold_ln=False, device="cpu")
        state = get_pretrained_state_dict(folder, cfg, hf, dtype=torch.float32)
        model = HookedTransformer(cfg, tiny_tokenizer(), move_to_device=False)
        model.load_and_process_state_dict(
            state,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
            refactor_factored_attn_matrices=False,
        )
    return model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    """(HookedTransformer wrapper, bridge wrapper) of the same weights."""
    tl = hooked_transformer(request.param)
    return HookedChatModel(tl, tiny_tokenizer(), name=request.param), tiny_model(request.param)


@pytest.fixture(scope="module")
def direction(pair):
    return Direction(random_unit(32, 0), 3.0, -1, 1, pair[0].basis, pair[0].fingerprint)


def test_both_backends_are_the_same_model(pair):
    legacy, bridge = pair
    assert legacy.backend.kind == "HookedTransformer" and bridge.backend.kind == "TransformerBridge"
    assert legacy.fingerprint == bridge.fingerprint and legacy.basis == bridge.basis == "raw"
    assert torch.allclose(legacy.last_logits(PROMPTS), bridge.last_logits(PROMPTS), atol=1e-4, rtol=1e-4)


def test_padded_equals_alone(pair):
    legacy, _ = pair
    alone = torch.cat([legacy.last_logits([p]) for p in PROMPTS])
    assert torch.allclose(legacy.last_logits(PROMPTS), alone, atol=1e-4)
    assert legacy.generate(PROMPTS, 8) == [legacy.generate([p], 8)[0] for p in PROMPTS]


def test_ablation_leaves_nothing_and_equals_the_bridge(pair, direction):
    legacy, bridge = pair
    tokens = legacy.tokenize(PROMPTS)
    names = [f"blocks.{layer}.hook_resid_{site}" for layer in range(3) for site in ("pre", "post")]
    with legacy.hooks(Ablate(direction)):
        for x in legacy.cache(tokens, names).values():
            assert float((x @ direction.unit)[tokens.mask].abs().max() / x.abs().max()) < 1e-5
        ablated = legacy.last_logits(PROMPTS)
    with bridge.hooks(Ablate(direction)):
        assert torch.allclose(ablated, bridge.last_logits(PROMPTS), atol=1e-4, rtol=1e-4)
    with legacy.hooks(Add(direction)):
        added = legacy.last_logits(PROMPTS)
    with bridge.hooks(Add(direction)):
        assert torch.allclose(added, bridge.last_logits(PROMPTS), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(added, ablated, atol=1e-2)


def test_restart_equals_the_whole_pass(pair, direction):
    legacy, _ = pair
    tokens = legacy.tokenize(PROMPTS)
    resid = legacy.cache(tokens, ["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"]
    with legacy.hooks(Add(direction)):
        assert torch.allclose(legacy.logits(tokens), legacy.logits(tokens, start=(1, resid)), atol=1e-5)


def test_hooks_are_gone_after_an_exception(pair, direction):
    legacy, _ = pair
    before = legacy.last_logits(PROMPTS)
    with pytest.raises(ZeroDivisionError), legacy.hooks(Ablate(direction), ("blocks.1.hook_resid_pre", _fail)):
        legacy.last_logits(PROMPTS)
    assert torch.equal(legacy.last_logits(PROMPTS), before)
    with pytest.raises(ModelError, match="no hook point"), legacy.hooks(("blocks.1.hook_nothing", _fail)):
        pass


def _fail(x, hook):
    raise ZeroDivisionError


def test_both_backends_choose_the_same_direction(pair):
    legacy, bridge = pair
    harmful, harmless = [f"harmful {i} {p}" for i, p in enumerate(PROMPTS)], [f"{p} {i}" for i, p in enumerate(PROMPTS)]
    rule, tokens = SelectionRule(max_kl=100.0, min_induce=-100.0), RefusalTokens((5, 9), ("a", "b"))
    found = []
    for model in (legacy, bridge):
        candidates = extract_directions(model, harmful, harmless)
        found.append(
            select_direction(model, candidates, harmful, harmless, refusal_tokens=tokens, rule=rule, full_grid=True)
        )
    assert found[0].chosen.label == found[1].chosen.label
    assert torch.allclose(found[0].scores.bypass, found[1].scores.bypass, atol=1e-3, equal_nan=True)


def test_a_centred_layernorm_model_has_another_basis():
    tl = hooked_transformer("gpt_neox")
    raw = HookedChatModel(tl, tiny_tokenizer())
    state = {k: v.clone() for k, v in tl.state_dict().items()}
    centred_tl = HookedTransformer(tl.cfg, tiny_tokenizer(), move_to_device=False)
    centred_tl.load_and_process_state_dict(state, fold_ln=False, center_writing_weights=True, center_unembed=False)
    centred = HookedChatModel(centred_tl, tiny_tokenizer())
    assert (raw.basis, centred.basis) == ("raw", "centred")
    direction = Direction(random_unit(32, 0), 1.0, -1, 1, raw.basis, "")
    with pytest.raises(DirectionError, match="basis"), centred.hooks(Ablate(direction)):
        pass
