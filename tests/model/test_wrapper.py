"""The wrapper's identities on tiny random models of every architecture."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from refusal_lens import Ablate, Add, Direction, HookedChatModel
from refusal_lens.errors import DirectionError, ModelError, PromptError
from refusal_lens.tensors import random_unit
from tests.tiny import ARCHITECTURES, tiny_bridge, tiny_hf, tiny_model, tiny_tokenizer

PROMPTS = ["Tell me a story about cats", "Hi", "What is the meaning of all this, dear friend?"]


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def direction(model):
    return Direction(random_unit(model.d_model, 0), 3.0, -1, 1, model.basis, model.fingerprint)


def test_the_wrapped_model_is_the_hugging_face_model(model):
    reference = tiny_hf(model.name.removeprefix("tiny-"))
    tokens = model.tokenize(PROMPTS[:1])
    with torch.inference_mode():
        expected = reference(input_ids=tokens.ids).logits
    assert torch.allclose(model.logits(tokens, last_only=False), expected, atol=1e-4, rtol=1e-4)


def test_padded_equals_alone(model):
    alone = torch.cat([model.last_logits([p]) for p in PROMPTS])
    assert torch.allclose(model.last_logits(PROMPTS), alone, atol=2e-5)
    names = ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"]
    tokens = model.tokenize(PROMPTS)
    together = model.cache(tokens, names)
    for row, prompt in enumerate(PROMPTS):
        for name, x in model.cache([prompt], names).items():
            assert torch.allclose(together[name][row][tokens.mask[row]], x[0], atol=2e-5)


def test_generation_in_a_batch_equals_alone_with_and_without_hooks(model, direction):
    plain = model.generate(PROMPTS, 10)
    assert plain == [model.generate([p], 10)[0] for p in PROMPTS]
    assert plain == [_greedy_without_cache(model, p, 10) for p in PROMPTS]
    with model.hooks(Add(direction, coeff=40.0)):
        steered = model.generate(PROMPTS, 10)
        assert steered == [model.generate([p], 10)[0] for p in PROMPTS]
        assert steered == [_greedy_without_cache(model, p, 10) for p in PROMPTS]  # hooks act in decoding too
    assert steered != plain and model.generate(PROMPTS, 10) == plain


def _greedy_without_cache(model, prompt, n):
    ids, new = model.tokenize([prompt]).ids, []
    for _ in range(n):
        token = int(model.backend.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1].argmax())
        if token in model.eos_ids:
            break
        new.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return model.tokenizer.decode(new, skip_special_tokens=True)


def test_contexts_compose_and_restore(model, direction):
    other = Direction(random_unit(model.d_model, 9), 1.0, -1, 2, model.basis, model.fingerprint)
    plain = model.last_logits(PROMPTS)
    with model.hooks(Ablate(direction), Add(other)):
        both = model.last_logits(PROMPTS)
    with model.hooks(Ablate(direction)):
        with model.hooks(Add(other)):
            assert torch.equal(model.last_logits(PROMPTS), both)
        inner_left = model.last_logits(PROMPTS)
    assert not torch.allclose(inner_left, both, atol=1e-3) and not torch.allclose(inner_left, plain, atol=1e-3)
    assert torch.equal(model.last_logits(PROMPTS), plain)


def test_restart_and_prefix_equal_the_whole_pass(model, direction):
    tokens = model.tokenize(PROMPTS)
    site = "blocks.2.hook_resid_pre"
    at_two = dataclasses.replace(direction, layer=2)
    resid = model.cache(tokens, [site])[site]
    with model.hooks(Add(at_two)):
        assert torch.equal(model.logits(tokens), model.logits(tokens, start=(2, resid)))
    if not model.backend.supports_prefix:
        return
    n = 6
    left = tokens.lengths - n
    width = int(left.max())
    rest = dataclasses.replace(
        tokens, ids=tokens.ids[:, -width:], mask=torch.arange(width)[None] >= width - left[:, None]
    )
    with model.hooks(Ablate(direction)):
        cached = model.prefix_cache(tokens.ids[0][tokens.mask[0]][:n])
        split = model.logits(rest, prefix=cached)
        assert torch.allclose(split, model.logits(tokens), atol=2e-5)


# --- one architecture is enough for the rest ---------------------------------------------------------------


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def test_spans_partition_the_prompt_and_hold_the_text(llama):
    suffixes = [" and a suffix", "", " !!"]
    tokens = llama.tokenize(PROMPTS, suffixes)
    regions = ("bos", "template_pre", "instruction", "suffix", "template_post")
    counted = sum(tokens.region(name).long() for name in regions)
    assert torch.equal(counted, tokens.mask.long())
    for name, texts in (("instruction", PROMPTS), ("suffix", suffixes)):
        for row, text in enumerate(texts):
            assert llama.tokenizer.decode(tokens.ids[row][tokens.region(name)[row]]) == text
    tail = tokens.ids[:, -tokens.n_post :]
    assert bool((tail == tail[0]).all())  # post-instruction tokens are the template's, the same for all


def test_a_template_with_bos_is_not_doubled():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<s>"
    tokenizer.chat_template = "<s>" + tokenizer.chat_template
    model = HookedChatModel(tiny_bridge("llama"), tokenizer)
    tokens = model.tokenize(["Hello"])
    assert tokens.ids[0].tolist().count(tokenizer.bos_token_id) == 1 and tokens.spans[0].bos == (0, 1)


def test_system_prompt_and_trimming_templates():
    model = HookedChatModel(tiny_bridge("llama"), tiny_tokenizer(), system="Be brief.")
    assert "Be brief." in model.chat.render("x")
    trimming = tiny_tokenizer()
    trimming.chat_template = trimming.chat_template.replace("m.content", "m.content | trim")
    spans = HookedChatModel(tiny_bridge("llama"), trimming).tokenize(["  padded text  "]).spans[0]
    assert spans.instruction[1] - spans.instruction[0] == len("padded text")


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "no chat template"), ("fixed text", "0 times"), ("{{ messages[0].content }}" * 2, "2 times"),
     ("{{ messages[0].content }}", "nothing after"), ("{{ messages[0].content | upper }} end", "0 times"),
     ("{{ raise_exception('no') }}", "refused this conversation")],
)  # fmt: skip
def test_unusable_templates_are_named(template, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=message):
        HookedChatModel(tiny_bridge("llama"), tokenizer)


def test_wrong_prompts_names_and_models_are_refused(llama):
    with pytest.raises(PromptError, match="empty prompt"):
        llama.tokenize(["ok", "   "])
    with pytest.raises(PromptError, match="no prompts"):
        llama.tokenize([])
    with pytest.raises(PromptError, match="takes 256"):
        llama.tokenize(["x" * 300])
    with pytest.raises(PromptError, match="fewer new tokens"):
        llama.generate(["x" * 100], 200)
    with (
        pytest.raises(ModelError, match=r"no hook point 'blocks\.0\.hook_resid_prr'"),
        llama.hooks(("blocks.0.hook_resid_prr", lambda x, hook: x)),
    ):
        pass
    with pytest.raises(ModelError, match="neither a TransformerBridge"):
        HookedChatModel(tiny_hf("llama"))


def test_directions_of_other_models_are_refused(llama):
    unit = random_unit(32, 0)
    for wrong, message in (
        (Direction(unit, 1.0, -1, 1, "raw", "0123456789abcdef"), "fingerprint"),
        (Direction(unit, 1.0, -1, 1, "centred", llama.fingerprint), "basis"),
        (Direction(random_unit(8, 0), 1.0, -1, 1), "another model"),
        (Direction(unit, 1.0, -1, 7), "layer 7 does not exist"),
    ):
        with pytest.raises(DirectionError, match=message), llama.hooks(Ablate(wrong)):
            pass
    assert tiny_model("llama").fingerprint == llama.fingerprint != tiny_model("llama", seed=5).fingerprint
    half = tiny_model("llama", dtype=torch.bfloat16)
    assert half.fingerprint == llama.fingerprint  # dtype does not change identity


def test_a_model_that_hides_a_write_is_not_loaded():
    bridge = tiny_bridge("llama")
    block = bridge.original_model.model.layers[1]
    block.register_forward_hook(lambda m, args, out: out + 0.5)
    with pytest.raises(ModelError, match=r"layer (1|2)"):
        HookedChatModel(bridge, tiny_tokenizer())


def test_cache_keeps_named_sites_only_and_skips_later_layers(llama):
    seen = []

    def spy(x, hook):
        seen.append(1)

    with llama.hooks(("blocks.2.hook_resid_post", spy)):
        cached = llama.cache(PROMPTS, ["blocks.0.hook_resid_pre"], positions=slice(-1, None))
    assert list(cached) == ["blocks.0.hook_resid_pre"] and cached["blocks.0.hook_resid_pre"].shape == (3, 1, 32)
    assert not seen


def test_sampling_is_seeded_and_leaves_the_random_state_alone(llama):
    state = torch.get_rng_state()
    first, again, other = (llama.generate(PROMPTS, 12, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert first == again != other and first != llama.generate(PROMPTS, 12)
    assert torch.equal(torch.get_rng_state(), state)


def test_norms_that_nobody_reads_give_the_same_and_hooks_on_them_still_act(model):
    """Scales are computed only for hooks; with any, TransformerLens's own code runs."""
    if model.name == "tiny-olmo2":
        pytest.skip("no norm stands before its sublayers, and what ln1 names depends on the version")
    tokens = model.tokenize(PROMPTS)
    found = model.logits(tokens)
    seen = []
    with model.hooks(("blocks.1.ln1.hook_scale", lambda x, hook: seen.append(x.clone()))):
        torch.testing.assert_close(model.logits(tokens), found, rtol=0, atol=2e-5)
    zero = ("blocks.1.ln1.hook_normalized", lambda x, hook: 0 * x)
    with model.hooks(zero), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens says that the norm was edited
        assert float((model.logits(tokens) - found).abs().max()) > 1e-3
    x = model.cache(tokens, ["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"]
    centred = x if model.tl.blocks[1].ln1.uses_rms_norm else x - x.mean(-1, keepdim=True)
    rms = centred.pow(2).mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(seen[0], rms, rtol=1e-2, atol=1e-3)
