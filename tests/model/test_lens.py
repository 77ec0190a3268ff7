"""The lens: TransformerLens's own readout where that applies, and writes that are the heads' own."""

from __future__ import annotations

import torch
from pytest import importorskip, mark, raises

from refusal_lens.attribution import Lens, head_writes, heads, lens
from refusal_lens.attribution.figures import plot_lens
from refusal_lens.errors import DirectionError, SettingError
from refusal_lens.tensors import random_unit

from .cases import KINDS, PROMPT, direction_of, exactness, model_of

PROMPTS = [PROMPT, "How do I bake a cake?"]


@mark.parametrize("architecture", ["organism", "llama-bias", "gpt_neox", "gemma2", "cohere"])
def test_it_is_transformer_lens_s_readout_without_biases_and_cap(architecture, request):
    oracle = importorskip("transformer_lens.tools.analysis").logit_readout
    model = request.getfixturevalue("organism") if architecture == "organism" else model_of(architecture)
    direction, cap = direction_of(model), model.backend.logit_cap()
    n = min(model.d_vocab, len(model.tokenizer))
    found = lens(model, {"r": direction, "twice": 2 * direction.unit}, top=n)
    long = 1e4 * direction.unit.to(model.dtype)  # the norm's eps is nothing beside it
    both = oracle(model.tl, torch.stack([long, -long])).values
    both = cap * torch.atanh(both / cap) if cap else both
    expected = ((both[0] - both[1]) / 2)[:n]  # biases are the same in both
    expected = expected - expected.mean()
    order = expected.argsort(descending=True)
    torch.testing.assert_close(found.top[0].double(), expected[order].double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.top[0], found.top[1])
    torch.testing.assert_close(found.bottom[0], found.top[0].flip(-1))
    if architecture == "organism":
        assert found.top_tokens[0][:5] == tuple(model.tokenizer.decode([i]) for i in order[:5].tolist())


def test_through_a_jacobian_lens_it_is_transformer_lens_s_readout_of_what_the_vector_becomes():
    analysis = importorskip("transformer_lens.tools.analysis")
    model = model_of("llama", torch.float32)
    direction = direction_of(model)
    jacobian = analysis.JacobianLens.fit(
        model.tl, [" ".join(PROMPTS * 3)], corpus="two prompts", skip_first_positions=2, show_progress=False
    )
    n = min(model.d_vocab, len(model.tokenizer))
    found = lens(model, direction, top=n, through=jacobian)
    became = 1e4 * jacobian.transport(direction.unit.float(), direction.layer - 1)
    expected = analysis.logit_readout(model.tl, became[None]).values[0, :n]
    order = (expected - expected.mean()).argsort(descending=True)
    torch.testing.assert_close(found.top[0], (expected - expected.mean())[order], rtol=0, atol=1e-3)
    plain = lens(model, direction, top=n)
    assert not torch.allclose(plain.top[0], found.top[0], atol=1e-2)
    again = lens(model, {"r": direction.unit}, top=n, through=jacobian, layer=direction.layer)
    torch.testing.assert_close(again.top, found.top)
    for given, words in (({"layer": 0}, "at the input of layers 1, 2"), ({}, "name the layer")):
        with raises(SettingError, match=words):
            lens(model, {"r": direction.unit}, through=jacobian, **given)
    other = analysis.JacobianLens({0: torch.eye(8)}, n_prompts=1, d_model=8)
    with raises(SettingError, match="is not one of tiny-llama"):
        lens(model, direction, through=other)


@mark.parametrize("architecture", [*KINDS, "granite"])
def test_head_writes_are_what_the_heads_write(architecture):
    model = model_of(architecture)
    direction, every = direction_of(model), [(layer, head) for layer in (0, 2) for head in range(4)]
    writes = head_writes(model, PROMPTS, every)
    along = heads(model, PROMPTS, direction).values.mean(-1)
    for layer, head in every:
        share = writes[f"L{layer}H{head}"] @ direction.unit
        torch.testing.assert_close(share, along[layer, head], rtol=0, atol=exactness(architecture))


def test_the_organism_s_direction_begins_refusals(organism):
    """Its first token is that of "I'm sorry", far above what random directions reach."""
    import refusal_lens as rl

    data = rl.load_prompts("organism", sizes=(48, 12, 12))
    found = lens(organism, rl.find_direction(organism, data))
    assert found.top_tokens[0][0] == "I" and float(found.top[0, 0]) > 1.5 * float(found.random.max())
    assert found.vectors[-1] == "random direction" and float(found.top[-1, 0]) == float(found.random[0])


def test_the_record_its_table_and_its_figure(tmp_path):
    model = model_of("qwen3")
    found = lens(model, {"r": direction_of(model), "v": random_unit(model.d_model, 5, torch.float64)}, top=3)
    loaded = Lens.load(found.save(tmp_path / "lens"))
    assert torch.equal(loaded.top, found.top) and loaded.bottom_tokens == found.bottom_tokens
    frame = found.to_frame()
    assert len(frame) == 9 and frame["token"][0] == found.top_tokens[0][0]
    assert torch.equal(found.sel("v").top, found.top[1])
    drawn = plot_lens(found).data[0]
    assert list(drawn.y) == ["r", "v", "random direction"]
    torch.testing.assert_close(torch.tensor(drawn.z[0])[-1].double(), found.top[0, 0])
    assert drawn.z[0] == sorted(drawn.z[0])


def test_bad_input_is_one_sentence(organism):
    direction = direction_of(organism)
    for options in ({"top": 0}, {"top": 10**7}, {"n_random": 0}):
        with raises(SettingError, match="a lens takes vectors, 1 to"):
            lens(organism, direction, **options)
    with raises(SettingError):
        lens(organism, {})
    with raises(DirectionError, match="belongs to another model"):
        lens(organism, direction_of(model_of("qwen3")))
    with raises(DirectionError, match="do not fit"):
        lens(organism, {"v": torch.ones(5)})
