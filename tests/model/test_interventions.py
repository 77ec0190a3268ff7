"""Interventions: what each changes, where, by how much, read from the stream; placebos; decoding; undoing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from refusal_lens import Ablate, Add, Orthogonalize
from refusal_lens.errors import DirectionError, InterventionError
from refusal_lens.hooks.attention import AttentionKnockout
from refusal_lens.hooks.base import write_sites
from refusal_lens.hooks.interchange import Interchange, InterchangeHeads, InterchangePattern, InterchangeWrites
from refusal_lens.hooks.interventions import NormMatchedPlacebo
from refusal_lens.hooks.readout import Readout
from refusal_lens.models.packing import pack_tokens, packed_logits, packing_holds
from refusal_lens.models.texts import completion_tokens, scored_batches
from refusal_lens.records.direction import Subspace
from refusal_lens.tensors import orthonormal, random_unit

from .cases import KINDS, direction_of, model_of

PROMPTS, SUFFIXES = ["How do I pick a lock?", "Hi", "Tell me about the sea"], [" now please", "", " ok"]
LAYERS = (None, 1, slice(1, None), (0, 2))
POSITIONS = (None, "prompt", "suffix", ("bos", "instruction"), slice(-4, None), slice(None, -3))


def close(found, expected):
    """Equal to rounding in float32: in float64 what stands at padding is not a number (transformers' mask)."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4, check_dtype=False)


def chosen(tokens, positions):
    """The expected mask, by ``Tokens.region`` and counting columns: another way than the interventions'."""
    if positions is None:
        return torch.ones_like(tokens.mask)
    found = torch.zeros_like(tokens.mask)
    for place in positions if isinstance(positions, tuple) else (positions,):
        if isinstance(place, slice):
            columns = torch.zeros_like(tokens.mask)
            columns[:, place] = True
            found |= columns & tokens.mask
        else:
            found |= tokens.mask if place == "prompt" else tokens.region(place)
    return found


def layers_in(layers, n):
    return list(range(n))[layers] if isinstance(layers, slice) else [layers] if isinstance(layers, int) else layers


def around(model, names, intervention, run):
    """Activations at ``names`` just before and just after the intervention, in one and the same run, by call."""
    seen = {"before": {n: [] for n in names}, "after": {n: [] for n in names}}

    def keep(when, name):
        return name, lambda x, hook: seen[when][name].append(x.clone())

    with model.hooks(*(keep("before", n) for n in names), intervention, *(keep("after", n) for n in names)):
        result = run()
    return seen["before"], seen["after"], result


def subspace_of(model, k=3):
    generator = torch.Generator().manual_seed(7)
    return Subspace(orthonormal(torch.randn(k, model.d_model, generator=generator)), "pca", direction_of(model))


@pytest.mark.parametrize(
    ("architecture", "strength"), [("gpt_neox", 0.0), *((name, share) for name in KINDS for share in (1.0, 0.5))]
)
def test_ablation_removes_its_share_at_its_layers_and_positions(architecture, strength):
    model = model_of(architecture, torch.float32)
    tokens, subspace = model.tokenize(PROMPTS, SUFFIXES), subspace_of(model)
    kinds = {"direction": direction_of(model), "vector": 3 * subspace.vectors[0], "subspace": subspace}
    for layers in LAYERS:
        for positions in POSITIONS:
            for kind, what in kinds.items():
                edit = Ablate(what, layers=layers, positions=positions, strength=strength)
                sites = write_sites(model.n_layers)
                before, after, _ = around(model, sites, edit, lambda: model.logits(tokens))
                where = chosen(tokens, positions)
                basis = direction_of(model).unit[None] if kind == "direction" else subspace.vectors
                basis = basis[:1] if kind == "vector" else basis
                for site in sites:
                    x, y = before[site][0].double(), after[site][0].double()
                    acts = int(site.split(".")[1]) in (layers_in(layers, 3) if layers is not None else range(3))
                    expected = x - strength * (x @ basis.T) @ basis if acts else x
                    close(y[where], expected[where])
                    assert torch.equal(y[~where], x[~where]), (site, positions)


@pytest.mark.parametrize("strength", [1.0, -0.5])
@pytest.mark.parametrize("architecture", KINDS)
def test_addition_adds_at_its_layers_and_positions(architecture, strength):
    model = model_of(architecture, torch.float32)
    tokens, direction = model.tokenize(PROMPTS, SUFFIXES), direction_of(model)
    sites = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
    for layers in LAYERS:
        for positions in POSITIONS:
            edit = Add(direction, 3.0, layers=layers, positions=positions, strength=strength)
            before, after, _ = around(model, sites, edit, lambda: model.logits(tokens))
            where = chosen(tokens, positions)
            acts = [direction.layer] if layers is None else layers_in(layers, 3)
            for i, site in enumerate(sites):
                moved = after[site][0] - before[site][0]
                step = strength * 3.0 * direction.vector * (i in acts)
                close(moved[where], step.expand_as(moved[where]))
                assert not moved[~where].any()


def test_candidates_share_a_batch_as_if_each_ran_alone():
    model = model_of("llama", torch.float32)
    tokens = model.tokenize(PROMPTS, SUFFIXES)
    twice = tokens.take([0, 1, 2, 0, 1, 2])
    vectors = torch.stack([random_unit(model.d_model, s, torch.float64) for s in (1, 2)])
    for together, alone in (
        (Ablate(vectors, per_candidate=True), [Ablate(v) for v in vectors]),
        (Add(vectors, layers=1), [Add(v, layers=1) for v in vectors]),
    ):
        with model.hooks(together):
            both = model.logits(twice)
        for half, edit in zip(both.split(3), alone, strict=True):
            with model.hooks(edit):
                close(half, model.logits(tokens))
    with pytest.raises(InterventionError, match="no equal parts for 2"), model.hooks(Add(vectors, layers=1)):
        model.logits(tokens)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_prompt_and_reply_split_a_generation(architecture):
    """The pass over the prompts is the prompt, every later step the reply; together they are everything."""
    model = model_of(architecture, torch.float32)
    tokens, site = model.tokenize(PROMPTS, SUFFIXES), "blocks.1.hook_resid_pre"
    for positions, acts in (("prompt", (True, False)), ("reply", (False, True)), (slice(-2, None), (True, False))):
        edit = Add(direction_of(model), 3.0, positions=positions)
        before, after, _ = around(model, [site], edit, lambda: model.generate(tokens, 4))
        changed = [not torch.equal(a, b) for a, b in zip(before[site], after[site], strict=True)]
        assert len(changed) == 4 and changed == [acts[0]] + [acts[1]] * 3
    replies = []
    for positions in (None, ("prompt", "reply")):
        with model.hooks(Add(direction_of(model), 30.0, positions=positions)):
            replies.append(model.generate(tokens, 6))
    assert replies[0] == replies[1] != model.generate(tokens, 6)
    # Rows of one batch keep their own positions: the same replies alone.
    edit = Add(direction_of(model), 30.0, positions=("suffix", "reply"))
    with model.hooks(edit):
        together = model.generate(tokens, 6)
    alone = []
    for prompt, suffix in zip(PROMPTS, SUFFIXES, strict=True):
        with model.hooks(edit):
            alone += model.generate([prompt], 6, suffixes=[suffix])
    assert together == alone


def test_a_completion_that_is_scored_is_a_reply():
    model = model_of("llama")
    texts = completion_tokens(model, PROMPTS[:2], ["Sure thing", "No"])
    site = "blocks.1.hook_resid_pre"
    for tokens in scored_batches(model, texts):
        counts = torch.tensor([len(texts[i].ids) - texts[i].first for i in tokens.indices])
        for positions in ("reply", "prompt"):
            edit = Add(direction_of(model), positions=positions)
            before, after, _ = around(model, [site], edit, lambda tokens=tokens: model.logits(tokens))
            moved = (after[site][0] - before[site][0]).abs().sum(-1) > 0
            assert torch.equal(moved.sum(-1), counts if positions == "reply" else tokens.lengths - counts)
            assert not (moved & ~tokens.mask).any()


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_positions_are_the_same_behind_cached_keys(architecture):
    model = model_of(architecture, torch.float32)
    tokens = model.tokenize(PROMPTS, SUFFIXES)
    n = tokens.n_post
    tail = dataclasses.replace(tokens, ids=tokens.ids[:, -n:], mask=tokens.mask[:, -n:])
    direction = direction_of(model)
    for edit in (
        Ablate(direction, positions="template_post", strength=0.5),
        Add(direction, positions=slice(-2, None)),
        AttentionKnockout(positions=slice(-2, None), source=("suffix", "instruction")),
        Interchange(direction, torch.ones(3, 1, 2, dtype=torch.float64)),
    ):
        with model.hooks(edit):
            whole = model.logits(tokens)
        before = model.prefix_cache(tokens.ids[:, :-n], mask=tokens.mask[:, :-n])
        with model.hooks(edit):
            split = model.logits(tail, prefix=before, prefix_mask=tokens.mask[:, :-n])
        close(split, whole)
        assert float((whole - model.logits(tokens)).abs().max()) > 1e-4, edit.label


def test_rows_that_hold_several_prompts_are_padded_instead_or_refused():
    model = model_of("llama", torch.float32)
    tokens, edit = model.tokenize(PROMPTS), Ablate(direction_of(model), positions="instruction")
    assert packing_holds(model)
    with model.hooks(edit):
        assert model.counts_positions and not packing_holds(model)
        with pytest.raises(InterventionError, match="counts positions"):
            packed_logits(model, pack_tokens(tokens))
        model.logits(tokens)
    assert not model.counts_positions and model.running is None and packing_holds(model)


# -- interchange ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.25])
@pytest.mark.parametrize("architecture", KINDS)
def test_an_interchange_sets_the_coordinates_of_its_prompts(architecture, strength):
    model = model_of(architecture, torch.float32)
    subspace, direction = subspace_of(model), direction_of(model)
    sites = [f"blocks.{i}.hook_resid_pre" for i in range(3)]
    values = torch.randn(3, len(PROMPTS), 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = model.tokenize(PROMPTS, SUFFIXES)
    for layers in (None, 1, (0, 2)):
        for positions in (None, slice(-2, None), "template_post"):
            for what, wanted in ((subspace, values), (direction, values[..., 0])):
                edit = Interchange(what, wanted, layers=layers, positions=positions, strength=strength)
                for rows in ([0, 1, 2], [2, 0]):  # batches in any order take the values of their own prompts
                    batch = tokens.take(rows)
                    before, after, _ = around(model, sites, edit, lambda batch=batch: model.logits(batch))
                    basis = subspace.vectors if what is subspace else direction.unit[None]
                    for i, site in enumerate(sites):
                        x, y = before[site][0].double(), after[site][0].double()
                        where = chosen(batch, positions)[:, -4:] & (i in (layers_in(layers, 3) if layers else (1, 2)))
                        goal = wanted[i][rows] if what is subspace else wanted[i][rows][..., None]
                        step = strength * (goal - x[:, -4:] @ basis.T) @ basis
                        close(y[:, -4:][where], (x[:, -4:] + step)[where])
                        assert torch.equal(y[:, -4:][~where], x[:, -4:][~where])
                        assert torch.equal(y[:, :-4], x[:, :-4])
    few = Interchange(direction, values[:, :2, :, 0])
    with pytest.raises(InterventionError, match="values for 2 prompts, and prompt 2 is run"), model.hooks(few):
        model.logits(tokens)


def test_interchange_is_that_of_transformer_lens():
    oracle = pytest.importorskip("transformer_lens.tools.analysis.interchange")
    model = model_of("llama")
    basis, site = subspace_of(model).vectors, "blocks.1.hook_resid_pre"
    tokens, others = (model.tokenize(p) for p in (["Hello you", "Hello me!"], ["Rivers up", "Seas blue"]))
    source = model.cache(others, [site])[site][:, -1]
    at = torch.full((2,), tokens.ids.shape[1] - 1)
    for strength in (1.0, 0.3):
        theirs = oracle.SubspaceInterchange(basis.T, strength)
        expected = oracle.run_with_intervention(
            model.tl, site, theirs, tokens.ids, source, lambda ids: model.tl(ids)[:, -1], positions=at
        )
        mine = Interchange(basis, {1: (source @ basis.T)[:, None]}, layers=1, strength=strength)
        with model.hooks(mine):
            torch.testing.assert_close(model.logits(tokens)[:, -1], expected.detach(), rtol=0, atol=1e-9)
        # Its placebo: as far, in a random subspace; ours made of the same displacement has the same norm.
        base = model.cache(tokens, [site])[site]
        placebo = oracle.NormMatchedPlacebo(theirs, oracle.random_basis(model.d_model, 3, 0))
        far = (placebo(base[:, -1], source) - base[:, -1]).norm(dim=-1)
        with model.hooks(mine):
            moved = model.cache(tokens, [site])[site]
        own = NormMatchedPlacebo.between({site: base[:, -1:]}, {site: moved[:, -1:]}, seed=0)
        torch.testing.assert_close(own.changes[site][:, 0].norm(dim=-1), far)
        with model.hooks(mine.placebo(3)):
            other = model.cache(tokens, [site])[site]
        torch.testing.assert_close((other - base)[:, -1].norm(dim=-1), far)
        assert float(((other - base)[:, -1] @ basis.T).abs().max()) < 1e-12


def test_heads_and_writes_are_set_at_their_strength():
    model = model_of("qwen2", torch.float32)
    tokens, direction = model.tokenize(PROMPTS, SUFFIXES), direction_of(model)
    z, out = "blocks.1.attn.hook_z", "blocks.1.hook_attn_out"
    values = torch.randn(3, 3, 2, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    plain = model.cache(tokens, [z, out])
    shape = (len(PROMPTS), -1, 4, 8)
    for strength in (1.0, 0.5):
        with model.hooks(InterchangeHeads(((1, 0), (1, 3)), values, positions=slice(-1, None), strength=strength)):
            x, y = plain[z].reshape(shape), model.cache(tokens, [z])[z].reshape(shape)
        close(y[:, -1, [0, 3]], torch.lerp(x[:, -1], values[1][:, 1], strength)[:, [0, 3]])
        assert torch.equal(y[:, :-1], x[:, :-1]) and torch.equal(y[:, -1, 1:3], x[:, -1, 1:3])
        far = InterchangeHeads(((1, 0), (2, 3)), values, layers=1, strength=strength)
        with model.hooks(far.placebo(5)):
            moved = model.cache(tokens, [z])[z].reshape(shape)[:, -2:, 0] - x[:, -2:, 0]
        close(moved.norm(dim=-1), strength * (values[1][:, :, 0] - x[:, -2:, 0]).norm(dim=-1))
        readout = Readout.of(model, direction.unit)
        along = torch.randn(3, 4, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
        edit = InterchangeWrites(((1, 2),), readout, along, strength=strength)
        now = torch.einsum("bqd,d->bq", x[:, -2:, 2], readout.heads[1, 2])
        with model.hooks(edit):
            step = (model.cache(tokens, [out])[out] - plain[out])[:, -2:]
        close(step, (strength * (along[1, 2] - now))[..., None] * direction.unit)
        with model.hooks(edit.placebo(2)):
            other = (model.cache(tokens, [out])[out] - plain[out])[:, -2:]
        close(other.norm(dim=-1), step.norm(dim=-1))
        assert float((other.double() @ direction.unit).abs().max()) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_knockout_cuts_its_share_of_its_edges(architecture):
    model = model_of(architecture, torch.float32)
    tokens, site = model.tokenize(PROMPTS, SUFFIXES), "blocks.0.attn.hook_pattern"
    plain = model.cache(tokens, [site])[site]
    for positions in ("template_post", slice(-1, None), None):
        for strength in (1.0, 0.5):
            edit = AttentionKnockout(((0, 1), (1, 2)), "instruction", positions=positions, strength=strength)
            with model.hooks(edit):
                found = model.cache(tokens, [site])[site]
            gone = chosen(tokens, positions)[:, :, None] & tokens.region("instruction")[:, None]
            left = torch.where(gone[:, None], plain * (1 - strength), plain)
            expected = left / left.sum(-1, keepdim=True)
            # A row that saw the instruction only, e.g. padding, has nothing left; no real row is such a one.
            real = tokens.mask[:, None, :].expand(-1, 4, -1)
            torch.testing.assert_close(found[:, 1][real[:, 1]], expected[:, 1][real[:, 1]], rtol=0, atol=1e-6)
            assert torch.equal(found[:, [0, 2, 3]], plain[:, [0, 2, 3]])
    # In decoding steps too: nothing of a reply looks at the instruction any longer.
    seen = []
    keep = (site, lambda p, hook: seen.append(p[:, 1]))
    with model.hooks(AttentionKnockout(((0, 1),), "instruction", positions="reply"), keep):
        model.generate(tokens, 3)
    inside = tokens.region("instruction")
    order = sorted(range(3), key=lambda i: int(tokens.lengths[i]))
    assert float(seen[0][tokens.region("template_post")[order][:, :, None] & inside[order][:, None]].min()) > 0
    for step in seen[1:]:
        assert float(step[:, 0, : inside.shape[1]][inside[order]].abs().max()) == 0


# -- labels, placebos, weights, undoing, bad scopes -------------------------------------------------------------------


def test_placebos_are_of_equal_size_and_elsewhere():
    model = model_of("llama")
    direction, subspace = direction_of(model), subspace_of(model)
    scope = {"layers": 1, "positions": "suffix", "strength": 0.5}
    for edit in (Ablate(direction, **scope), Add(direction, 2.0, **scope)):
        other = edit.placebo(3)
        assert type(other) is type(edit) and (other.layers, other.positions, other.strength) == (1, "suffix", 0.5)
        assert torch.equal(other.direction.unit, direction.random_control(3).unit)
        assert (
            other.direction.norm == direction.norm and abs(float(other.direction.unit @ direction.unit.float())) < 0.9
        )
    drawn = Ablate(subspace).placebo(1).direction.vectors
    torch.testing.assert_close(drawn @ drawn.T, torch.eye(3, dtype=torch.float64))
    vector = 5 * direction.unit
    assert float(Add(vector, layers=1).placebo(0).direction.norm()) == pytest.approx(5)
    rows = torch.stack([vector, 2 * vector])
    assert Add(rows, layers=1).placebo(0).direction.norm(dim=-1).tolist() == pytest.approx([5, 10])
    placebo = Orthogonalize(direction, strength=0.5).placebo(3).direction
    assert placebo.label == f"random direction 3 for {direction.label}"
    for edit in (
        AttentionKnockout(((0, 1), (2, 3))),
        InterchangePattern(((0, 1),), {0: torch.zeros(1, 4, 2, 5)}, torch.zeros(1, 5).long()),
    ):
        layers = edit.by_layer(model)
        others = edit.placebo(2).by_layer(model)
        assert {k: len(v) for k, v in layers.items()} == {k: len(v) for k, v in others.items()}
        assert not any(set(layers[k]) & set(others[k]) for k in layers)
    change = NormMatchedPlacebo({"blocks.1.hook_attn_out": torch.randn(2, 3, model.d_model).double()})
    again = change.placebo(1).changes["blocks.1.hook_attn_out"]
    torch.testing.assert_close(again.norm(dim=-1), change.changes["blocks.1.hook_attn_out"].norm(dim=-1))
    with pytest.raises(InterventionError, match="no other heads"), model.hooks(AttentionKnockout().placebo(0)):
        pass


def test_labels_say_what_acts_and_where():
    direction = direction_of(model_of("llama"))
    assert Ablate(direction).label == "Ablate (-1, 1)"
    assert Add(direction, -1.0, positions=("suffix", slice(-5, None)), strength=0.5).label == (
        "Add -1 x (-1, 1), positions suffix, -5:, strength 0.5"
    )
    assert AttentionKnockout(((0, 1),), layers=(0, 2)).label == "AttentionKnockout L0H1 to suffix, layers 0, 2"
    assert AttentionKnockout(positions="reply").label == "AttentionKnockout all heads to suffix, positions reply"


@pytest.mark.parametrize("architecture", ["llama-bias", "gemma2"])
def test_weights_are_edited_by_layer_and_share(architecture):
    model = model_of(architecture)
    r = direction_of(model).unit
    before = {w.where: w.parameter.detach().clone() for w in model.writing_weights()}
    edit = Orthogonalize(direction_of(model), allow_gap=True, layers=slice(1, None), strength=0.25)
    with edit.applied(model):
        for weight in model.writing_weights():
            part = weight.where.split(".")
            kept = 0.75 if part[0] == "blocks" and part[1] != "0" else 1.0
            now, was = (x.detach().movedim(weight.axis, -1) @ r for x in (weight.parameter, before[weight.where]))
            torch.testing.assert_close(now, kept * was, rtol=0, atol=1e-12)
    for weight in model.writing_weights():
        assert torch.equal(weight.parameter, before[weight.where])


def test_hooks_takes_all_kinds_and_leaves_the_model_as_it_was():
    model = model_of("llama", torch.float32)
    direction, tokens = direction_of(model), model.tokenize(PROMPTS, SUFFIXES)
    plain, weights = model.logits(tokens), {k: v.clone() for k, v in model.tl.state_dict().items()}
    edits = [
        Add(direction, positions="suffix"),
        Orthogonalize(direction),
        ("blocks.2.hook_mlp_out", lambda x, hook: 0.5 * x),
        AttentionKnockout(((0, 1),)),
    ]
    with model.hooks(*edits):
        together = model.logits(tokens)
        with model.hooks(Ablate(direction, positions="prompt", layers=2)):
            deeper = model.logits(tokens)
        assert torch.equal(model.logits(tokens), together) and not torch.equal(deeper, together)
    with edits[1].applied(model), edits[0].applied(model), model.hooks(*edits[2:]):
        assert torch.equal(model.logits(tokens), together)
    assert torch.equal(model.logits(tokens), plain) and not torch.equal(together, plain)
    assert all(torch.equal(weights[k], v) for k, v in model.tl.state_dict().items())
    with pytest.raises(ZeroDivisionError), model.hooks(*edits):
        raise ZeroDivisionError
    assert torch.equal(model.logits(tokens), plain) and not model.counts_positions


def test_a_scope_that_does_not_fit_is_one_clear_sentence():
    model = model_of("llama", torch.float32)
    direction = direction_of(model)
    for make, message in (
        (
            lambda: Ablate(direction, positions="sufix"),
            "there are no positions 'sufix'; choose from prompt, reply, system",
        ),
        (lambda: Ablate(direction, positions=slice(0, 5)), "count from the prompt's end"),
        (lambda: Ablate(direction, positions=slice(-3, -5)), "count from the prompt's end"),
        (lambda: AttentionKnockout(source="nowhere"), "there are no positions 'nowhere'"),
        (lambda: AttentionKnockout(source=None), "name the tokens to cut off"),
        (lambda: AttentionKnockout(strength=2.0), "a share from 0 to 1"),
        (lambda: Orthogonalize(direction, positions="reply"), "weights act on every token"),
    ):
        with pytest.raises(InterventionError, match=message):
            make()
    for edit, error, message in (
        (Ablate(direction, layers=3), InterventionError, "choose from 0 to 2"),
        (Ablate(direction, layers=(0, 9)), InterventionError, "layers=0, 9"),
        (Add(direction.unit), InterventionError, "say where to add them"),
        (Ablate(torch.ones(5)), DirectionError, "vectors of 5 entries"),
        (AttentionKnockout(((0, 7),)), InterventionError, "no head L0H7"),
        (3, InterventionError, "int is not an intervention"),
        (Interchange(torch.ones(2, 32), torch.ones(3, 1, 1, 2)), InterventionError, "must be orthonormal"),
    ):
        with pytest.raises(error, match=message), model.hooks(edit):
            pass
    for what in ("r", 3):
        with pytest.raises(DirectionError, match="is not a direction"):
            Ablate(what)
    with pytest.raises(DirectionError, match="no vector to add"):
        Add(subspace_of(model))
    # Positions that nobody has are named when the context is left; without a pass nothing was asked.
    for edit in (Ablate(direction, positions="suffix"), AttentionKnockout(), Add(direction, positions="reply")):
        with pytest.raises(InterventionError, match="nothing changed"), model.hooks(edit):
            model.last_logits(PROMPTS)
        with model.hooks(edit):
            pass
