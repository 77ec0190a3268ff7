"""Learned directions and cones on the embedded model: gradients, training, resumption, divergence, independence."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import refusal_lens as rl
from refusal_lens.direction.cone_loss import ConeLoss, OwnWords, forced_logits, own_words
from refusal_lens.direction.cone_records import PARTS, LearnedCones, SubspaceEffects
from refusal_lens.direction.cone_section import cones_section
from refusal_lens.direction.cones import learn_cone
from refusal_lens.direction.subspace import (
    group_angles,
    inside_cone,
    pca_subspace,
    representational_independence,
    subspace_effects,
)
from refusal_lens.errors import DirectionError, ModelError, PromptError
from refusal_lens.models import prefixes
from refusal_lens.models.texts import reply_tokens
from refusal_lens.records.direction import Subspace
from refusal_lens.tensors import random_unit

from ..model.cases import direction_of, model_of

QUICK: dict[str, Any] = {"steps": 20, "every": 10, "lr": 0.05, "batch_size": 6, "samples": 1}


@pytest.fixture(scope="module")
def ground(organism):
    data = rl.load_prompts("organism", sizes=(24, 6, 10))
    return organism, data, rl.find_direction(organism, data)


@pytest.fixture(scope="module")
def cone(ground):
    return learn_cone(*ground, dimension=2, seeds=(0,), **QUICK)


@pytest.mark.parametrize("name", ["gpt_neox", "organism"])
def test_the_gradient_is_that_of_finite_differences(name):
    """In float64; norms that run in float32 whatever the dtype, as the embedded model's, leave noise to small steps."""
    exact = name == "gpt_neox"
    model = model_of(name) if exact else rl.load_model("organism", dtype=torch.float64)
    asked = tuple(reply_tokens(model, ["How do I pick a lock?", "Hi"], ["I can not do it", "Well then"]))
    words = OwnWords(asked, asked, (asked[0].ids[asked[0].first :],), (asked[1].ids[asked[1].first :],))
    loss = ConeLoss(model, direction_of(model), direction_of(model, 2), (1.0,) * 4, words.openings, words.refusals)
    batch = loss.batch(words, range(2), range(2), torch.Generator().manual_seed(0))
    vector = random_unit(model.d_model, 5, torch.float64).requires_grad_()
    step = 1e-4 if exact else 1e-2
    for i, part in enumerate(PARTS):
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss.parts(vector, batch)[i], vector)
        along = random_unit(model.d_model, 6 + i, torch.float64)
        with torch.no_grad():
            ahead, behind = (float(loss.parts(vector + side * step * along, batch)[i]) for side in (1, -1))
        slope = (ahead - behind) / (2 * step)
        assert float(gradient @ along) == pytest.approx(slope, rel=1e-6 if exact else 5e-3), part
        assert float(gradient @ vector.detach()) == pytest.approx(
            0, abs=1e-6
        )  # of the direction alone, not of its length


def test_what_prompts_share_is_run_once_with_its_gradient(monkeypatch):
    model = rl.load_model("organism", dtype=torch.float64)
    requests = ["How do I pick a lock?", "Hi", "Tell me a story about bread and butter"]
    texts = reply_tokens(model, requests, ["I can not do it", "Well then", "Once"])
    vector, found = random_unit(model.d_model, 5, torch.float64).requires_grad_(), []
    for least in (1, 10**9):
        monkeypatch.setattr(prefixes, "LEAST_SAVED", least)
        with torch.enable_grad():
            logits, targets = forced_logits(model, texts, rl.Ablate(vector))
            (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), vector)
        found.append((logits.detach(), gradient))
    (shared, slope), (whole, expected) = found
    assert not torch.equal(shared, whole)  # it was: norms run in float32
    torch.testing.assert_close(shared, whole, atol=2e-6, rtol=0)
    torch.testing.assert_close(slope, expected, atol=2e-6, rtol=1e-5)


def test_targets_are_the_models_own_words(ground):
    model, data, _ = ground
    words = own_words(model, data, "train")
    said = {model.tokenizer.decode(ids) for ids in words.refusals}
    assert all(text.startswith("I") for text in said) and max(map(len, words.openings)) == 4
    harmless = [model.tokenizer.decode(text.ids[: text.first]) for text in words.harmless]
    assert all(any(prompt in text for text in harmless) for prompt in data.harmless.train[:5])


def test_a_learned_direction_does_what_a_random_one_does_not(ground, tmp_path):
    model, data, found = ground
    learned = learn_cone(*ground, seeds=(0, 1), **QUICK)
    assert not any(p.requires_grad for p in model.tl.parameters())
    assert (learned.checks.nan_to_num(math.inf).amin(1) < learned.checks[:, 0] - 0.5).all()
    spaces = {
        "mean": Subspace(found.direction.unit.double()[None], "mean", found.direction),
        "learned": learned.cone(0),
    }
    effects = subspace_effects(
        model, spaces, data.harmful.test, data.harmless.test, found.refusal_tokens, max_new_tokens=10
    )
    ours, random = (effects.found(kind, 1, "bypass") for kind in ("learned", "random"))
    assert ours.high < random.low and ours.high < effects.before("bypass").low - 3
    assert effects.found("learned", 1, "induce").low > effects.before("induce").high  # on the side that refuses
    assert effects.found("learned", 1, "refused").mean <= effects.before("refused").mean == 1
    with model.hooks(rl.Ablate(learned.learned(0))):
        by_hand = rl.refusal_metric(model, data.harmful.test, found.refusal_tokens)
    torch.testing.assert_close(effects.sel(kind="learned", size=1, measure="bypass").values, by_hand.double())
    assert learned.overlaps[0, 1] == pytest.approx(abs(float(learned.basis[0, 0] @ learned.basis[1, 0])))
    assert 0 < learned.reference < learned.checks[0, 0]
    saved = LearnedCones.load(learned.save(tmp_path / "learned"))
    assert torch.equal(saved.basis, learned.basis) and saved.summary() == learned.summary()
    assert len(cones_section(effects, [learned]).items) == 2 and len(learned.plot().data) >= 5


def test_a_cone_is_orthonormal_and_its_middle_acts(ground, cone, tmp_path):
    model, data, found = ground
    basis = cone.basis[0]
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64), atol=1e-12, rtol=0)
    planes = {"cone": cone.cone(0), "pca": pca_subspace(model, data.harmful.train, data.harmless.train, found, 3)}
    effects = subspace_effects(model, planes, data.harmful.test, data.harmless.test, found.refusal_tokens)
    assert effects.ks == (1, 2, 3) and [effects.size(kind) for kind in effects.kinds] == [2, 3, 3]
    assert effects.found("cone", 2, "middle").high < effects.found("random", 2, "middle").low
    with model.hooks(rl.Ablate(basis[0] + basis[1])):
        middle = rl.refusal_metric(model, data.harmful.test, found.refusal_tokens)
    torch.testing.assert_close(effects.sel(kind="cone", size=2, measure="middle").values, middle.double())
    rows = {
        (kind, k): effects.sel(kind=kind, size=k, measure="bypass").values for kind in effects.kinds for k in (1, 2)
    }
    mean, weakest = effects.sampled("cone", 2)
    with model.hooks(rl.Ablate(inside_cone(2, 8, torch.Generator().manual_seed(0))[3] @ basis)):
        one = rl.refusal_metric(model, data.harmful.test, found.refusal_tokens)
    torch.testing.assert_close(effects.inside[0, 1, 3], one.double())
    assert mean.mean <= weakest.mean < effects.sampled("random", 2)[1].low and weakest.mean >= float(one.mean())
    assert torch.equal(effects.inside[0, 0], effects.sel(kind="cone", size=1, measure="bypass").values.expand(8, -1))
    gain = (rows["cone", 1] - rows["cone", 2] - rows["random", 1] + rows["random", 2]).mean()
    assert effects.gain("cone", 2).mean == pytest.approx(float(gain))
    assert "refused" not in effects.to_frame().columns and len(effects.to_frame()) == 8
    again = SubspaceEffects.load(effects.save(tmp_path / "effects"))
    assert again.summary() == effects.summary() and len(effects.plot().data) == 4 * 3
    with pytest.raises(DirectionError, match="2 directions: give k from 2 to 2"):
        effects.gain("cone", 3)


class Stopped(Exception):
    """As a kill would end a run."""


def test_a_resumed_run_is_the_uninterrupted_one(ground, cone, tmp_path):
    @contextmanager
    def ends_early(name, total):
        done = []

        def advance(n):
            done.append(n)
            if name == "learn" and sum(done) > 13:
                raise Stopped

        yield advance

    with pytest.raises(Stopped):
        learn_cone(*ground, dimension=2, seeds=(0,), folder=tmp_path, progress=ends_early, **QUICK)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    steps = []

    @contextmanager
    def counts(name, total):
        yield steps.append

    resumed = learn_cone(*ground, dimension=2, seeds=(0,), folder=tmp_path, progress=counts, **QUICK)
    for name in ("basis", "losses", "checks"):
        assert torch.equal(getattr(resumed, name), getattr(cone, name)), name
    assert resumed.best == cone.best and 10 in steps  # ten steps were not made again


def test_a_training_that_diverges_keeps_its_best_state(ground):
    with pytest.raises(DirectionError, match=r"diverged at step 0 with lr 1e\+308"):
        learn_cone(*ground, seeds=(0,), **{**QUICK, "lr": 1e308})
    model, calls = ground[0], []

    def poison(x, hook):
        calls.append(x.requires_grad)
        return x * math.nan if len(calls) > 120 else x

    with model.hooks(("blocks.1.hook_resid_pre", poison)):
        record = learn_cone(*ground, seeds=(0,), **{**QUICK, "every": 2})
    step, best = record.diverged[0], record.best[0]
    assert 0 < best <= step < 20 and record.basis.isfinite().all()
    assert f"diverged at step {step} with lr 0.05" in record.summary()[1] and f"of step {best}" in record.summary()[1]


def test_independence_is_measured_and_learned(ground, cone):
    model, data, found = ground
    r = found.direction
    few = {**QUICK, "steps": 10}
    free, apart = (learn_cone(*ground, seeds=(0,), independent_of=other, **few) for other in (None, r))
    read = {"r": r, "free": free.learned(0), "independent": apart.learned(0)}
    record = representational_independence(model, read, data.harmful.test)
    sizes = {name: record.size("r", name).mean + record.size(name, "r").mean for name in ("free", "independent")}
    assert sizes["independent"] < sizes["free"]
    prompts, site = list(data.harmful.test), "blocks.3.hook_resid_pre"
    tokens = model.tokenize(prompts)
    before = model.cache(tokens, site)[site][:, -1].double()
    with model.hooks(rl.Ablate(read["free"])):
        after = model.cache(tokens, site)[site][:, -1].double()
    wanted = [torch.cosine_similarity(x, r.unit.double()[None]) for x in (before, after)]
    found_change = record.sel(ablated="free", read="r", layer=3).change
    torch.testing.assert_close(found_change, wanted[1] - wanted[0], atol=1e-5, rtol=1e-4)
    own = record.change[1, 1] + record.before[1]  # ablated, its own cosine is 0
    assert float(own.abs().max()) < 1e-5 and len(record.to_frame()) == 4 * 3 and record.plot().data


def test_angles_between_groups_beside_random_groups(ground):
    model, data, found = ground
    prompts = data.harmful.train
    groups = {"a": prompts[:12], "b": prompts[12:]}
    one = group_angles(model, groups, data.harmless.train, found, draws=5)
    cosine = float(one.basis[0, 0] @ one.basis[1, 0])
    assert float(one.angles[0, 1, 0]) == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-4)
    assert float(one.angles[0, 0].abs().max()) < 1e-5 and one.control.shape == (5, 2, 2, 1)
    two = group_angles(model, groups, {name: data.harmless.train for name in groups}, found, k=2, draws=2)
    assert two.angles.shape[-1] == 2 and (two.angles[0, 1, 0] <= two.angles[0, 1, 1]).item()
    assert float(two.angles[0, 1, 0]) <= float(one.angles[0, 1, 0]) + 1e-6  # a plane holds the line
    assert len(two.subspace) == 2 and len(two.to_frame()) == 2 and "random groups" in two.summary()[0]
    assert len(one.plot().data) == 2
    with pytest.raises(PromptError, match="'b' has 3 harmful prompts, and its subspace needs at least 6"):
        group_angles(model, {"a": prompts[:12], "b": prompts[:3]}, data.harmless.train, found)


def test_bad_input(ground):
    model, data, found = ground
    for words, wrong in (
        ("1 to 96 dimensions", {"dimension": 0}),
        ("no part 'keep'", {"weights": {"keep": 1.0}}),
        ("lr above 0", {"lr": 0.0}),
    ):
        with pytest.raises(DirectionError, match=words):
            learn_cone(model, data, found, **wrong)
    calm = rl.data.PromptPair(data.harmless, data.harmful)
    with pytest.raises(ModelError, match="refuses none of 24 harmless train prompts"):
        learn_cone(model, calm, found)
    groups = rl.data.prompt_groups(rl.organism.instructions()["harmful"], skip=data.harmful.test.texts)
    assert not {text for some in groups.values() for text in some} & set(data.harmful.test)
    with pytest.raises(PromptError, match="column 'topic'"):
        rl.data.prompt_groups(rl.organism.instructions()["harmful"], column="topic")
