"""Top heads, their causal tests and attribution patching, on a model with a planted head."""

from __future__ import annotations

import random

import pytest
import torch
from scipy import stats as scipy_stats

from refusal_lens.attribution.causal import causal_check
from refusal_lens.attribution.causal_records import CausalCheck, PatchingComparison
from refusal_lens.attribution.components import heads as head_contributions
from refusal_lens.attribution.patching import attribution_patching, equal_length_pairs
from refusal_lens.attribution.ranking import choose_heads, confirm_heads, top_heads
from refusal_lens.attribution.records import TopHeads
from refusal_lens.errors import ModelError, PromptError
from refusal_lens.hooks.attention import random_heads
from refusal_lens.hooks.interchange import InterchangeHeads
from refusal_lens.hooks.interventions import Ablate
from refusal_lens.models.backend import Backend
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.tokens import given_refusal_tokens

from ..tiny import tiny_model
from .cases import direction_of

PLANTED = (2, 1)
ANSWER = 40
SELECT = ["pick a lock!!", "make a b0mb!!", "steal it all!!", "hack them!!"]
REPORT = ["rob a bank!!", "forge a cheque!!", "poison him!!", "stalk her!!", "cheat!!", "lie to all!!"]
HARMLESS = ["bake a cake??", "paint a door??", "sleep well??", "swim far??", "run a mile??", "sing??", "draw me??"]


@pytest.fixture(scope="module")
def planted():
    """Head L2H1 writes about +3 r̂ on harmful prompts and -3 r̂ on harmless ones; the answer's logit reads r̂."""
    model = tiny_model("llama", seed=3)
    direction = direction_of(model)
    r = direction.unit.float()
    layer, head = PLANTED
    site = f"blocks.{layer}.attn.hook_z"
    z = torch.cat([model.cache([p], [site])[site][:, -1, head] for p in SELECT + REPORT + HARMLESS])
    wanted = torch.tensor([1.0] * len(SELECT + REPORT) + [-1.0] * len(HARMLESS))
    reading = torch.linalg.lstsq(z, wanted).solution
    hf = model.tl.original_model
    with torch.no_grad():
        o = hf.model.layers[layer].self_attn.o.weight
        columns = slice(head * model.d_head, (head + 1) * model.d_head)
        o[:, columns] = 3 * torch.outer(r, reading)
        hf.lm_head.weight[ANSWER] = 3 * r
    return model, direction, given_refusal_tokens(model, [ANSWER])


def test_chosen_on_one_split_and_reported_on_another(planted, tmp_path):
    model, direction, _ = planted
    found = top_heads(model, SELECT, REPORT, direction, contrast=HARMLESS, top=3)
    assert found.heads[0] == PLANTED and found.labels[0] == "L2H1"
    assert (found.n_selection, found.n_reported) == (len(SELECT), len(REPORT))
    # The numbers come from the report split and nowhere else.
    report = head_contributions(model, REPORT, direction).values[PLANTED]
    first = found.to_frame().iloc[0]
    assert abs(first["reported"] - float(report.mean())) < 1e-6 and first["low"] <= first["reported"] <= first["high"]
    assert abs(first["chosen_on"] - float(head_contributions(model, SELECT, direction).mean[PLANTED])) < 1e-6
    assert first["reported"] > 1 and first["contrast"] < -1
    assert 0 < found.share <= 1
    again = TopHeads.load(found.save(tmp_path / "heads"))
    assert again.heads == found.heads and again.n_reported == found.n_reported
    assert again.intervals == found.intervals


def test_p_values_are_adjusted_over_all_heads(planted):
    model, direction, _ = planted
    found = top_heads(model, SELECT, REPORT, direction, contrast=HARMLESS)
    raw = scipy_stats.mannwhitneyu(
        found.reported.values[PLANTED].numpy(), found.contrast.values[PLANTED].numpy()
    ).pvalue
    n = model.n_layers * model.n_heads
    assert found.p_values.shape == (model.n_layers, model.n_heads)
    assert raw < 0.002 and abs(float(found.p_values[PLANTED]) - min(1, raw * n)) < n * raw  # at most Bonferroni
    assert float(found.p_values[PLANTED]) > raw
    assert "Mann-Whitney" in found.test
    against_zero = top_heads(model, SELECT, REPORT, direction)
    assert "Wilcoxon" in against_zero.test and against_zero.contrast is None


def test_a_prompt_in_both_splits_is_refused(planted):
    model, direction, refusal = planted
    with pytest.raises(PromptError, match="chose the heads"):
        top_heads(model, SELECT, [*REPORT, SELECT[1]], direction)
    found = top_heads(model, SELECT, REPORT, direction)
    with pytest.raises(PromptError, match="chose the heads"):
        causal_check(model, [SELECT[0]], HARMLESS, direction, found, refusal)
    with pytest.raises(PromptError, match="at least 2"):
        confirm_heads(found.chosen_on, head_contributions(model, REPORT[:1], direction))


def test_the_planted_head_is_causal_and_random_heads_are_not(planted, tmp_path):
    model, direction, refusal = planted
    heads = top_heads(model, SELECT, REPORT, direction, top=1)
    found = causal_check(model, REPORT, HARMLESS, direction, heads, refusal, n_random=3)
    # Its passes run the last position only, with kept keys and values: the same to float32's rounding.
    torch.testing.assert_close(found.of("baseline"), refusal_metric(model, REPORT, refusal), rtol=0, atol=2e-5)
    for condition in ("mean_ablation", "resample_ablation"):
        change, control = found.change(condition), found.change(f"random_{condition}")
        assert change.high < 0 and change.mean < 4 * min(control.mean, -0.05)
    with model.hooks(Ablate(direction)):
        torch.testing.assert_close(found.of("direction_ablation"), refusal_metric(model, REPORT, refusal))
    share = found.share()
    beyond = found.change("mean_ablation").mean - found.change("random_mean_ablation").mean
    assert share.mean == pytest.approx(beyond / found.change("direction_ablation").mean)
    kept = found.of("baseline") - found.of("keep_only")
    random_kept = found.of("baseline") - found.of("random_keep_only")
    assert float(kept.mean()) < float(random_kept.mean()) - 1
    first = found.singles.index(PLANTED)
    assert int(found.predicted.argmin()) == first and int(found.measured.mean(-1).argmin()) == first
    assert (found.n_selection, found.n_reported, found.n_reference) == (len(SELECT), len(REPORT), len(HARMLESS))
    again = CausalCheck.load(found.save(tmp_path / "causal"))
    assert again.heads == found.heads and torch.equal(again.metric, found.metric)
    assert list(again.to_frame()["condition"]) == list(found.conditions)
    assert len(again.singles_frame()) == len(found.singles)


def test_the_predicted_change_is_the_change_of_the_projection(planted):
    """Mean-ablating one head moves hook_attn_out · r̂ by exactly what was predicted."""
    model, direction, refusal = planted
    found = causal_check(model, REPORT, HARMLESS, direction, [PLANTED, (1, 0)], refusal, n_random=1)
    for head in (PLANTED, (1, 0)):
        name, site = f"blocks.{head[0]}.hook_attn_out", f"blocks.{head[0]}.attn.hook_z"
        reference = torch.stack([model.cache([p], [site])[site][0, -1] for p in HARMLESS]).mean(0)
        values = torch.zeros(model.n_layers, 1, 1, model.n_heads, model.d_head)
        values[head[0], 0, 0] = reference
        changes = []
        for prompt in REPORT:
            before = model.cache([prompt], [name])[name][0, -1] @ direction.unit.float()
            with model.hooks(InterchangeHeads((head,), values)):
                changes.append(model.cache([prompt], [name])[name][0, -1] @ direction.unit.float() - before)
        predicted = float(found.predicted[found.singles.index(head)])
        assert abs(float(torch.stack(changes).mean()) - predicted) < 1e-4


def test_keeping_every_head_changes_nothing(planted):
    model, direction, refusal = planted
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    found = causal_check(model, REPORT[:2], HARMLESS, direction, every, refusal, n_random=1, n_last=2)
    torch.testing.assert_close(found.of("keep_only"), found.of("baseline"))
    torch.testing.assert_close(found.of("keep_none"), found.of("mean_ablation"))
    assert found.random_heads == ((),)  # no other heads are left in any layer
    with pytest.raises(PromptError, match="n_last"):
        causal_check(model, REPORT, HARMLESS, direction, every, refusal, n_last=99)


def test_random_heads_are_others_of_the_same_layers(planted):
    model, _, _ = planted
    named = [(0, 1), (2, 0), (2, 3)]
    for seed in range(20):
        drawn = random_heads(model, named, random.Random(seed))
        assert [layer for layer, _ in drawn] == [0, 2, 2] and not set(drawn) & set(named)
        assert len(set(drawn)) == 3


def test_choose_heads_takes_the_highest_means(planted):
    model, direction, _ = planted
    found = head_contributions(model, SELECT, direction)
    best = choose_heads(found, 4)
    ranked = sorted(((float(found.mean[i, j]), (i, j)) for i in range(3) for j in range(4)), reverse=True)
    assert list(best) == [head for _, head in ranked[:4]]


def test_attribution_patching_beside_exact_patching(planted, tmp_path):
    model, _, refusal = planted
    clean, corrupt = equal_length_pairs(model, SELECT + REPORT, HARMLESS)
    assert len(clean) >= 3
    lengths = [[len(model.chat.encode(p).ids) for p in side] for side in (clean, corrupt)]
    assert lengths[0] == lengths[1]
    gradients = [p.requires_grad for p in model.tl.parameters()]
    found = attribution_patching(model, clean, corrupt, refusal)
    assert [p.requires_grad for p in model.tl.parameters()] == gradients
    assert int(found.exact.argmax()) == int(found.estimated.argmax()) == PLANTED[0] * model.n_heads + PLANTED[1]
    assert found.pearson > 0.9 and not found.exact.isnan().any()
    # Other batches of float32 products: equal to their rounding, which differs between processors.
    assert found.metric_clean == pytest.approx(float(refusal_metric(model, clean, refusal).mean()), rel=1e-5)
    again = PatchingComparison.load(found.save(tmp_path / "patching"))
    assert torch.equal(again.exact, found.exact) and again.spearman == found.spearman
    some = attribution_patching(model, clean[:2], corrupt[:2], refusal, heads=[PLANTED])
    assert int((~some.exact.isnan()).sum()) == 1 and not torch.isnan(some.estimated).any()


def test_patching_a_prompt_with_itself_changes_nothing(planted):
    model, _, refusal = planted
    found = attribution_patching(model, REPORT[:2], REPORT[:2], refusal)
    assert float(found.exact.abs().max()) < 1e-6 and float(found.estimated.abs().max()) < 1e-6


def test_what_patching_can_not_do_is_refused(planted):
    model, _, refusal = planted
    with pytest.raises(PromptError, match="equal token counts"):
        attribution_patching(model, ["a"], ["abc"], refusal)
    with pytest.raises(PromptError, match="same number of tokens"):
        equal_length_pairs(model, ["a"], ["abc"])
    with pytest.raises(ModelError, match="TransformerBridge"):
        Backend.attribution_patch(model.backend, torch.zeros(1, 2).long(), torch.zeros(1, 2).long(), torch.sum)
