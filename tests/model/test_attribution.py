"""Parts of the stream and of the logits: exact, in the right rows, and refused where they would be wrong."""

from __future__ import annotations

import pytest
import torch

from refusal_lens.attribution.components import component_contributions, neuron_contributions
from refusal_lens.attribution.components import heads as head_contributions
from refusal_lens.attribution.logits import compliance_tokens, direct_logit_attribution
from refusal_lens.attribution.records import ComponentContributions, DirectLogitAttribution
from refusal_lens.errors import DirectionError, ModelError, PromptError, ResultError
from refusal_lens.refusal.tokens import given_refusal_tokens

from .cases import EXACT, KINDS, POST_NORM, PROMPT, THROUGH_NORM, direction_of, exactness, model_of

LAST = slice(-1, None)


def along(model, name, direction, prompt=PROMPT):
    return float(model.cache([prompt], [name], LAST)[name][0, 0].double() @ direction.unit)


@pytest.mark.parametrize("architecture", KINDS)
def test_parts_sum_to_the_stream_at_every_layer(architecture):
    model = model_of(architecture)
    direction = direction_of(model)
    found = component_contributions(model, [PROMPT], direction)
    assert found.errors.shape == (model.n_layers + 1,)
    assert float(found.errors.max()) < exactness(architecture)
    final = along(model, f"blocks.{model.n_layers - 1}.hook_resid_post", direction)
    assert abs(final) > 0.01
    torch.testing.assert_close(float(found.parts.sum(0)), final, rtol=0, atol=exactness(architecture))
    torch.testing.assert_close(float(found.values.sum(0)), final, rtol=0, atol=exactness(architecture))
    assert len(found.part_labels) == len(found.parts) and len(found.labels) == len(found.values)
    assert found.part_labels[1 + 2] == "L0H2" and found.labels[1] == "L0 attn"


@pytest.mark.parametrize("architecture", KINDS)
def test_each_layer_is_split_into_its_own_heads(architecture):
    """Not only the total: every layer's heads and bias give that layer's hook_attn_out · r̂."""
    model = model_of(architecture)
    direction = direction_of(model)
    found = component_contributions(model, [PROMPT], direction, check=False)
    for layer in range(model.n_layers):
        attn = along(model, f"blocks.{layer}.hook_attn_out", direction)
        mlp = along(model, f"blocks.{layer}.hook_mlp_out", direction)
        assert abs(float(found.attn[layer, 0]) - attn) < exactness(architecture)
        assert abs(float(found.mlp[layer, 0]) - mlp) < EXACT


@pytest.mark.parametrize("architecture", [name for name in KINDS if name not in POST_NORM])
def test_a_heads_share_is_what_disappears_with_it(architecture):
    model = model_of(architecture)
    direction = direction_of(model)
    layer, head = 1, 2
    share = float(head_contributions(model, [PROMPT], direction).values[layer, head, 0])
    name = f"blocks.{layer}.hook_attn_out"
    before = along(model, name, direction)

    def silence(z, hook):
        new = z.clone()
        new[:, :, head] = 0
        return new

    with model.hooks((f"blocks.{layer}.attn.hook_z", silence)):
        after = along(model, name, direction)
    assert abs(share) > 1e-3
    assert abs(before - after - share) < EXACT


@pytest.mark.parametrize("architecture", POST_NORM)
def test_behind_a_post_norm_heads_keep_their_proportions(architecture):
    """The frozen scale is one factor for all heads, so shares relate as z · W_O (w ⊙ r̂) do."""
    model = model_of(architecture)
    direction = direction_of(model)
    layer = 1
    shares = head_contributions(model, [PROMPT], direction).values[layer, :, 0]
    block = model.tl.blocks[layer]
    weight = block.ln1_post.weight.detach()
    weight = weight if architecture == "olmo2" else 1 + weight
    z = model.cache([PROMPT], [f"blocks.{layer}.attn.hook_z"], LAST)[f"blocks.{layer}.attn.hook_z"][0, 0]
    raw = torch.stack([z[h] @ block.attn.W_O[h].detach() @ (weight * direction.unit) for h in range(model.n_heads)])
    torch.testing.assert_close(shares / shares[0], raw / raw[0], rtol=1e-9, atol=1e-9)


def test_the_output_bias_is_its_own_row():
    with_bias, without = model_of("llama-bias"), model_of("llama")
    found = component_contributions(with_bias, [PROMPT], direction_of(with_bias))
    bias = with_bias.backend.attn_bias(1) @ direction_of(with_bias).unit
    assert abs(float(found.attn_bias[1, 0] - bias)) < EXACT and abs(float(bias)) > 1e-3
    assert float(component_contributions(without, [PROMPT], direction_of(without)).attn_bias.abs().max()) == 0


@pytest.mark.parametrize("architecture", KINDS)
def test_logit_parts_sum_to_the_models_own_logits(architecture):
    model = model_of(architecture)
    found = direct_logit_attribution(model, [PROMPT], [40, 41], [50])
    logits = model.last_logits([PROMPT])[0]
    assert abs(float(found.measured - (logits[[40, 41]].mean() - logits[50]))) < EXACT
    assert found.error < THROUGH_NORM
    torch.testing.assert_close(found.values.sum(0), found.before_cap, rtol=0, atol=THROUGH_NORM)
    if architecture == "gemma2":
        assert found.cap == 30 and abs(float(found.measured - found.before_cap)) > 0.1
    else:
        assert found.cap == 0
        torch.testing.assert_close(found.before_cap, found.measured, rtol=0, atol=THROUGH_NORM)


def test_layer_norm_is_centred_and_its_bias_counted():
    model = model_of("gpt_neox")
    found = direct_logit_attribution(model, [PROMPT], [40])
    assert abs(float(found.norm_bias)) > 1e-3
    assert found.error < EXACT  # a torch LayerNorm stays in float64
    assert float(direct_logit_attribution(model_of("llama"), [PROMPT], [40]).norm_bias) == 0


@pytest.mark.parametrize("architecture", [name for name in KINDS if name != "mixtral"])
def test_neurons_and_the_rest_sum_to_the_mlp(architecture):
    model = model_of(architecture)
    direction = direction_of(model)
    found = neuron_contributions(model, [PROMPT], direction, top=7)
    total = found.rest.clone()
    for layer, row in zip(found.layers, found.values, strict=True):
        total[layer] += row
    mlp = component_contributions(model, [PROMPT], direction).mlp
    torch.testing.assert_close(total, mlp, rtol=0, atol=exactness(architecture))
    assert len(found.labels) == 7 and float(found.values.abs().min()) > 0
    some = neuron_contributions(model, [PROMPT], direction, top=3, layers=[2])
    assert some.layers == (2, 2, 2)
    torch.testing.assert_close(some.rest[0] + some.values.sum(0), mlp[2], rtol=0, atol=exactness(architecture))


def test_a_mixture_of_experts_has_no_neurons():
    with pytest.raises(ModelError, match="mixture of experts"):
        neuron_contributions(model_of("mixtral"), [PROMPT], direction_of(model_of("mixtral")))


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt_neox"])
def test_padded_prompts_get_their_own_numbers_in_their_own_places(architecture):
    model = model_of(architecture, torch.float32)
    direction = direction_of(model)
    prompts = ["Tell me about the sea and the sky", "Hi", PROMPT]
    suffixes = [" now", "", " please !"]
    found = component_contributions(model, prompts, direction, suffixes=suffixes, pos=-2)
    logits = direct_logit_attribution(model, prompts, [40], [50], suffixes=suffixes)
    assert found.prompts == ("Tell me about the sea and the sky now", "Hi", PROMPT + " please !")
    for i, (prompt, suffix) in enumerate(zip(prompts, suffixes, strict=True)):
        alone = component_contributions(model, [prompt], direction, suffixes=[suffix], pos=-2)
        torch.testing.assert_close(found.parts[:, i], alone.parts[:, 0], rtol=0, atol=1e-5)
        alone = direct_logit_attribution(model, [prompt], [40], [50], suffixes=[suffix])
        torch.testing.assert_close(logits.parts[:, i], alone.parts[:, 0], rtol=0, atol=1e-5)
    assert float((found.parts[:, 0] - found.parts[:, 1]).abs().max()) > 1e-2


def test_an_edited_attention_output_is_refused_unless_asked_for():
    model = model_of("llama")
    direction = direction_of(model)
    with model.hooks(("blocks.1.hook_attn_out", lambda x, hook: 2 * x)):
        with pytest.raises(ModelError, match="layer 1"):
            head_contributions(model, [PROMPT], direction)
        head_contributions(model, [PROMPT], direction, check=False)


def test_logits_that_are_not_the_readout_are_refused():
    model = model_of("llama")
    with (
        model.hooks(("unembed.hook_out", lambda x, hook: 1.1 * x)),
        pytest.raises(ModelError, match="does not give the model's own"),
    ):
        direct_logit_attribution(model, [PROMPT], [40])


def test_wrong_requests_are_refused():
    model = model_of("llama")
    direction = direction_of(model)
    with pytest.raises(PromptError, match="counts from the start"):
        component_contributions(model, [PROMPT], direction, pos=0)
    with pytest.raises(PromptError, match="before the first token"):
        component_contributions(model, [PROMPT], direction, pos=-200)
    with pytest.raises(PromptError, match="in answer and in against"):
        direct_logit_attribution(model, [PROMPT], [40, 41], [41])
    with pytest.raises(DirectionError):
        head_contributions(model, [PROMPT], direction_of(model_of("qwen2")))
    with pytest.raises(ResultError, match="logit difference"):
        direct_logit_attribution(model, [PROMPT], [40]).components.head_contributions()


def test_answers_can_be_named_by_text_and_found_on_prompts():
    model = model_of("llama")
    by_text = direct_logit_attribution(model, [PROMPT], ["I"], ["S"])
    ids = [model.tokenizer("I")["input_ids"][0], model.tokenizer("S")["input_ids"][0]]
    by_id = direct_logit_attribution(model, [PROMPT], ids[:1], ids[1:])
    assert by_text.answer == ("I",) and by_text.against == ("S",)
    torch.testing.assert_close(by_text.parts, by_id.parts)
    first = int(model.last_logits([PROMPT])[0].argmax())
    found = compliance_tokens(model, [PROMPT], given_refusal_tokens(model, [first + 1]))
    assert found.ids == (first,) and found.shares == (1.0,)
    with pytest.raises(ModelError, match="every answer"):
        compliance_tokens(model, [PROMPT], given_refusal_tokens(model, [first]))


def test_records_survive_saving(tmp_path):
    model = model_of("gemma2")
    parts = component_contributions(model, [PROMPT], direction_of(model))
    logits = direct_logit_attribution(model, [PROMPT], [40], [50])
    again = ComponentContributions.load(parts.save(tmp_path / "parts"))
    assert torch.equal(again.parts, parts.parts) and again.prompts == parts.prompts
    loaded = DirectLogitAttribution.load(logits.save(tmp_path / "logits"))
    assert torch.equal(loaded.parts, logits.parts) and loaded.cap == 30 and loaded.answer == logits.answer
    assert list(loaded.to_frame().columns) == ["label", "mean", "low", "high"]
    heads = parts.head_contributions().to_frame()
    assert len(heads) == model.n_layers * model.n_heads and heads["mean"].is_monotonic_decreasing
