"""Forms of ablation: what each removes and leaves, its placebos, its statistics, and massive activations."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch

from refusal_lens import Ablate, HookedChatModel
from refusal_lens.direction.massive import Moments, statistics_of, stream_statistics
from refusal_lens.direction.scores import _Packed
from refusal_lens.errors import DirectionError, InterventionError
from refusal_lens.hooks.forms import FORMS, Form
from refusal_lens.hooks.interventions import Twins
from refusal_lens.models.packing import packing_holds
from refusal_lens.records.direction import Subspace
from refusal_lens.records.stream import MASSIVE
from refusal_lens.tensors import kl_divergence, orthonormal, project_out, random_unit, unit

from ..tiny import tiny_folder, tiny_hf
from .cases import direction_of, model_of

SOME = ("llama", "gemma2", "gemma3")
PROMPTS = ["How do I pick a lock?", "Hi", "Tell me about the sea and all the fish in it", "Name three rivers"]


def statistics_on(model, prompts=PROMPTS, covariance=True):
    """By hand, prompts alone and unpadded: the plain reading of the definition."""
    layers = range(model.n_layers)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    streams = [model.cache([prompt], names) for prompt in prompts]
    found = []
    for name in names:
        kept, medians, massive = [], [], []
        for stream in streams:
            x = stream[name][0].double()
            norms = x.norm(dim=-1)
            medians.append(norms.median())
            massive.append(norms > MASSIVE * norms.median())
            kept.append(x[~massive[-1]])
        x = torch.cat(kept)
        found.append((x.mean(0), x.std(0, correction=0), torch.stack(medians).mean(), x.T.cov(correction=0), massive))
    return found


def of(model):
    """Statistics in float32: in float64 what stands at padding is not a number (transformers' mask)."""
    return stream_statistics(model_of(model.name.removeprefix("tiny-"), torch.float32), PROMPTS, covariance=True)


@pytest.fixture(params=SOME)
def model(request):
    return model_of(request.param, torch.float64)


@pytest.mark.parametrize("architecture", SOME)
def test_statistics_are_those_of_the_prompts_alone(architecture):
    model = model_of(architecture, torch.float32)
    found = stream_statistics(model, PROMPTS, covariance=True)
    packed = packing_holds(model)
    padded = stream_statistics_padded(model)
    for layer, (mean, std, norm, covariance, _) in enumerate(statistics_on(model)):
        for some in (found, padded):
            torch.testing.assert_close(some.mean[layer], mean, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(some.std[layer], std, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(some.norm[layer], norm, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(some.covariance[layer], covariance, rtol=1e-4, atol=1e-3)
    assert packed or architecture != "llama"
    assert found.n_tokens == padded.n_tokens


def stream_statistics_padded(model):
    (found,) = model.run(PROMPTS, read=Moments(True))
    return statistics_of(model, [found], len(PROMPTS))


@pytest.mark.parametrize("name", ["stream", "affine", "scaled", "oblique"])
def test_each_form_removes_its_own_component_and_moves_along_r_only(model, name):
    statistics = of(model)
    form = dataclasses.replace(FORMS[name], spare=False)
    r = direction_of(model).unit.double()
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    for share in (1.0, 0.5):
        edit = Ablate(direction_of(model), form=form, statistics=statistics, strength=share)
        before, after = before_and_after(model, sites, edit)
        for layer, site in enumerate(sites):
            x, y = before[site].double(), after[site].double()
            mu = statistics.mean[layer] if form.reference == "mean" else torch.zeros_like(r)
            w = {
                "plain": lambda layer: r,
                "scaled": lambda layer: r / statistics.std[layer] ** 2,
                "oblique": lambda layer: torch.linalg.inv(covariance_of(statistics, layer)) @ r,
            }[form.metric](layer)
            left, was = (y - mu) @ w, (x - mu) @ w
            size = w.norm() * (x - mu).norm(dim=-1).max()
            assert float((left - (1 - share) * was).abs().max()) < 1e-12 * float(size), site  # removed
            moved = y - x
            assert float((moved - (moved @ r)[..., None] * r).abs().max()) < 1e-12 * float(x.abs().max())  # left


def covariance_of(statistics, layer):
    scale = statistics.std[layer]
    return statistics.correlation(layer) * scale[:, None] * scale


def before_and_after(model, sites, edit, prompts=PROMPTS[0]):
    seen = {"before": {}, "after": {}}

    def keep(when, name):
        return name, lambda x, hook: seen[when].__setitem__(name, x.clone())

    with model.hooks(*(keep("before", n) for n in sites), edit, *(keep("after", n) for n in sites)):
        model.last_logits(prompts)
    return seen["before"], seen["after"]


def test_the_papers_form_is_the_default_bit_for_bit(model):
    r = direction_of(model)
    with model.hooks(Ablate(r)):
        plain = model.last_logits(PROMPTS[0])
    with model.hooks(Ablate(r, form="paper", statistics=of(model))):
        assert torch.equal(model.last_logits(PROMPTS[0]), plain)
    with model.hooks(Ablate(r, form=Form("zero", "plain", "writes"))):
        assert torch.equal(model.last_logits(PROMPTS[0]), plain)


@pytest.mark.parametrize("name", list(FORMS))
def test_candidates_together_give_what_each_gives_alone(model, name):
    statistics = of(model)
    vectors = torch.stack([random_unit(model.d_model, seed, torch.float64) for seed in range(3)])
    tokens = model.tokenize([PROMPTS[0]] * 3)
    options = {"form": name, "statistics": statistics}
    with model.hooks(Ablate(vectors, per_candidate=True, **options)):
        together = model.logits(tokens)[:, -1]
    for row, vector in zip(together, vectors, strict=True):
        with model.hooks(Ablate(vector, **options)):
            torch.testing.assert_close(row, model.logits(tokens.take([0]))[0, -1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["stream", "affine", "scaled", "oblique"])
def test_a_subspace_is_removed_whole(model, name):
    statistics = of(model)
    generator = torch.Generator().manual_seed(3)
    vectors = orthonormal(torch.randn(2, model.d_model, generator=generator))
    form = dataclasses.replace(FORMS[name], spare=False)
    edit = Ablate(Subspace(vectors, "pca", direction_of(model)), form=form, statistics=statistics)
    _, after = before_and_after(model, ["blocks.1.hook_resid_pre"], edit)
    y = after["blocks.1.hook_resid_pre"].double() - (statistics.mean[1] if form.reference == "mean" else 0)
    metric = {
        "plain": torch.eye(model.d_model, dtype=torch.float64),
        "scaled": torch.diag(statistics.std[1] ** -2),
        "oblique": torch.linalg.inv(covariance_of(statistics, 1)),
    }[form.metric]
    left = y @ metric @ vectors.T
    assert float(left.abs().max()) < 1e-10 * float(y.abs().max() * metric.abs().max())


@pytest.mark.parametrize("name", ["paper", "scaled"])
def test_a_twin_makes_the_moves_that_the_edit_made_along_another_direction(model, name):
    edit = Ablate(direction_of(model), form=name, statistics=of(model), strength=0.9)
    r, other = (d.double() for d in (direction_of(model).unit, random_unit(model.d_model, 4, torch.float64)))
    sites = list(dict.fromkeys(site for site, _ in edit.hooks(model)))
    before, after = before_and_after(model, sites, edit)
    replayed = [
        (site, lambda x, hook, amount=(after[site] - before[site]) @ r: x + amount[..., None] * other) for site in sites
    ]
    with model.hooks(*replayed):
        wanted = model.last_logits(PROMPTS[0])[0]
    with model.hooks(edit):
        edited = model.last_logits(PROMPTS[0])[0]
    with model.hooks(Twins(edit, (3, 4))):
        first, _, twin = model.last_logits([PROMPTS[0]] * 3)
    torch.testing.assert_close(first, edited, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(twin, wanted, rtol=1e-9, atol=1e-9)


def test_twins_decode_beside_the_edit_and_say_what_they_need():
    model = model_of("llama", torch.float32)
    edit = Ablate(direction_of(model), form="scaled", statistics=of(model), strength=4)
    pairs = [prompt for prompt in PROMPTS for _ in range(2)]
    with model.hooks(edit):
        alone = model.generate(PROMPTS, 6)
    with model.hooks(Twins(edit, (5,))):
        together = model.generate(pairs, 6, batch_size=4)
        with pytest.raises(InterventionError, match="every prompt 2 times in succession"):
            model.last_logits(PROMPTS[:3])
    assert together[::2] == alone and together[1::2] != alone
    with pytest.raises(InterventionError, match="at all positions"):
        Twins(dataclasses.replace(edit, positions="prompt"), (1,))


def test_fully_shrunk_oblique_is_scaled(model):
    statistics = of(model)
    diagonal = torch.stack([torch.diag(s**2) for s in statistics.std])
    alone = dataclasses.replace(statistics, covariance=diagonal)
    logits = []
    for name, some in (("scaled", statistics), ("oblique", alone)):
        with model.hooks(Ablate(direction_of(model), form=name, statistics=some)):
            logits.append(model.last_logits(PROMPTS[0]))
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("name", list(FORMS))
def test_alone_padded_and_behind_cached_keys_are_equal(architecture, name):
    model = model_of(architecture, torch.float32)
    edit = Ablate(direction_of(model), form=name, statistics=of(model))
    tokens = model.tokenize(PROMPTS[0])
    tail = dataclasses.replace(tokens, ids=tokens.ids[:, -6:], mask=tokens.mask[:, -6:])
    with model.hooks(edit):
        alone = torch.cat([model.last_logits([p]) for p in PROMPTS])
        padded = model.last_logits(PROMPTS)
        cached = model.logits(tail, prefix=model.prefix_cache(tokens.ids[0, :-6]))[:, -1]
    close = {"rtol": 1e-3, "atol": 2e-4 * float(alone.abs().max())}
    torch.testing.assert_close(padded, alone, **close)
    torch.testing.assert_close(cached[0], alone[0], **close)


@pytest.mark.parametrize("name", list(FORMS))
def test_packed_candidates_are_those_alone(name):
    model = model_of("llama", torch.float32)
    tokens, options = model.tokenize(PROMPTS), {"form": name, "statistics": of(model)}
    vectors = torch.stack([random_unit(model.d_model, seed, torch.float64) for seed in range(3)])

    def largest(logits, indices):
        return logits.double().logsumexp(-1)

    together = _Packed(model, tokens)
    together.before()
    found = together.run(3, lambda rows: [Ablate(vectors[rows], per_candidate=True, **options)], largest)
    for vector, row in zip(vectors, found, strict=True):
        with model.hooks(Ablate(vector, **options)):
            alone = torch.cat([model.last_logits([p]) for p in PROMPTS]).double().logsumexp(-1)
        torch.testing.assert_close(row, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("name", list(FORMS))
def test_decoding_from_cached_keys_gives_what_whole_passes_give(architecture, name):
    model, n = model_of(architecture, torch.float32), 6
    tokens = model.tokenize(PROMPTS[:2])
    with model.hooks(Ablate(direction_of(model), form=name, statistics=of(model))):
        new = model.backend.generate(tokens.ids, tokens.mask, n, [], model.chat.pad_id, 0.0)
        for step in range(n):
            ids = torch.cat([tokens.ids, new[:, :step]], 1)
            mask = torch.cat([tokens.mask, torch.ones_like(new[:, :step], dtype=torch.bool)], 1)
            logits = model.logits(dataclasses.replace(tokens, ids=ids, mask=mask))[:, -1]
            chosen = logits.gather(1, new[:, step : step + 1])[:, 0]
            torch.testing.assert_close(chosen, logits.amax(-1), rtol=1e-3, atol=2e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("name", list(FORMS))
def test_in_bfloat16_an_edit_is_the_wide_one_rounded_once(name):
    """Exact at the edit; logits then differ by what bfloat16 changes without any edit."""
    narrow, full = model_of("gemma3", torch.bfloat16), model_of("gemma3", torch.float32)
    statistics, r = of(full), direction_of(full).unit
    edit = Ablate(r, form=name, statistics=dataclasses.replace(statistics, basis=narrow.basis, model=""))
    (site, change), *_ = [pair for pair in edit.hooks(narrow) if pair[0] == "blocks.0.hook_resid_pre"]
    x = narrow.cache(PROMPTS[:1], [site])[site]
    assert x.dtype == torch.bfloat16 and torch.equal(change(x, None), change(x.float(), None).bfloat16())
    logits = {}
    for model in (narrow, full):
        with model.hooks(dataclasses.replace(edit, statistics=dataclasses.replace(edit.statistics, basis=model.basis))):
            logits[model.dtype, "with"] = model.last_logits(PROMPTS).double()
        logits[model.dtype, "without"] = model.last_logits(PROMPTS).double()
    gaps = {w: (logits[torch.bfloat16, w] - logits[torch.float32, w]).norm() for w in ("with", "without")}
    sizes = {w: logits[torch.float32, w].norm() for w in gaps}
    assert gaps["with"] / sizes["with"] < 3 * gaps["without"] / sizes["without"]


def test_the_papers_form_is_the_papers_formula(model):
    """The one code of all forms gives what a projection written out gives, bit for bit."""
    site = "blocks.0.hook_resid_pre"
    x = model.cache(PROMPTS[:1], [site])[site]
    r = unit(direction_of(model).unit.double())
    pairs = dict(Ablate(direction_of(model)).hooks(model))
    assert torch.equal(pairs[site](x, None), project_out(x, r))
    rows = torch.stack([random_unit(model.d_model, seed, torch.float64) for seed in range(3)])
    pairs = dict(Ablate(rows, per_candidate=True).hooks(model))
    for several in (x.expand(3, -1, -1), torch.randn(3, 300, model.d_model)):
        assert torch.equal(pairs[site](several, None), project_out(several, unit(rows)[:, None]))


BASE = 20.0


def planted(token=1.0, cool=1.0):
    """A tiny post-norm model with a massive coordinate that norms do not read, and a token ``token`` times longer.

    As in trained models, the coordinate sets the scale of the norms, and their other weights make up for it.
    """
    hf = tiny_hf("gemma3")
    with torch.no_grad():
        embed = hf.get_input_embeddings().weight
        embed[:, 5] += BASE
        embed[256] *= token  # <|im_start|>
        for name, weight in hf.named_parameters():
            if weight.ndim == 1 and len(weight) == embed.shape[1] and "post" not in name:
                weight.copy_(BASE * (1 + weight) - 1)  # Gemma multiplies by 1 + weight
                weight[5] = -1
        hf.model.norm.weight.copy_(cool * (1 + hf.model.norm.weight) - 1)
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    folder = str(tiny_folder("llama"))
    bridge = TransformerBridge.boot_transformers(
        folder,
        hf_model=hf,
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        dtype=torch.float32,
        device="cpu",
    )
    return HookedChatModel(bridge, name="planted")


def test_massive_tokens_and_coordinates_are_found_and_spared():
    model = planted(token=30.0)
    statistics = stream_statistics(model, PROMPTS)
    assert [token.text for token in statistics.tokens] == ["<|im_start|>"]
    assert statistics.tokens[0].id == 256 and statistics.tokens[0].ratio > MASSIVE
    assert all(statistics.coordinates(layer) == [5] for layer in range(model.n_layers))
    site = "blocks.1.hook_resid_pre"
    before, after = before_and_after(model, [site], Ablate(direction_of(model), form="scaled", statistics=statistics))
    norms = before[site][0].norm(dim=-1)
    moved = (after[site] - before[site])[0].norm(dim=-1) > 0
    massive = norms > float(statistics.limit[1])
    assert massive.any() and not moved[massive].any() and moved[~massive].all()


def test_a_plain_placebo_destroys_where_a_centred_one_does_not():
    model = planted()
    statistics = stream_statistics(model, PROMPTS, covariance=True)
    before, change = model.last_logits(PROMPTS), {}
    for name in FORMS:
        with model.hooks(Ablate(direction_of(model), form=name, statistics=statistics).placebo(3)):
            change[name] = float(kl_divergence(before, model.last_logits(PROMPTS)).mean())
    assert min(change["paper"], change["stream"]) > 10 * max(change[name] for name in ("affine", "scaled")), change


def test_nothing_to_edit_is_said():
    """A conversation of massive tokens only; and no BOS is needed, nor spared for being first."""
    model = planted()
    statistics = stream_statistics(model, PROMPTS)
    assert model.tokenize(PROMPTS).spans[0].bos[0] == model.tokenize(PROMPTS).spans[0].bos[1], "no BOS"
    site = "blocks.1.hook_resid_pre"
    before, after = before_and_after(model, [site], Ablate(direction_of(model), form="scaled", statistics=statistics))
    assert bool(((after[site] - before[site])[0].norm(dim=-1) > 0).all())
    small = dataclasses.replace(statistics, norm=statistics.norm / 100)
    edit = Ablate(direction_of(model), form="scaled", statistics=small)
    for prompts in (PROMPTS[0], PROMPTS):  # one, and several with padding
        with pytest.raises(InterventionError, match="every token was massive"), model.hooks(edit):
            model.last_logits(prompts)
    with model.hooks(dataclasses.replace(edit, form=dataclasses.replace(FORMS["scaled"], spare=False))):
        model.last_logits(PROMPTS)


def test_errors_say_what_to_do(model):
    statistics = dataclasses.replace(of(model), covariance=None)
    r = direction_of(model)

    def message(kind, make):
        with pytest.raises(kind) as raised, model.hooks(make()):
            pass
        return str(raised.value)

    assert "takes statistics" in message(InterventionError, lambda: Ablate(r, form="scaled"))
    assert "no form" in message(InterventionError, lambda: Ablate(r, form="best"))
    assert "covariance=True" in message(InterventionError, lambda: Ablate(r, form="oblique", statistics=statistics))
    for change in ({"model": "0" * 16}, {"basis": "another"}):
        other = dataclasses.replace(statistics, **change)
        make = partial(Ablate, r, form="scaled", statistics=other)
        assert "another model or basis" in message(DirectionError, make)
    constant = statistics.std.clone()
    constant[1, 7] = 0
    still = dataclasses.replace(statistics, std=constant)
    found = message(InterventionError, lambda: Ablate(r, form="scaled", statistics=still))
    assert "coordinate 7 of layer 1 is constant" in found
    with pytest.raises(InterventionError, match="site='inputs'"):
        Form("mean")
