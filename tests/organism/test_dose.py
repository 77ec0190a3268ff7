"""Effect and damage by strength and place on the embedded model."""

from __future__ import annotations

import pytest
import torch

import refusal_lens as rl
from refusal_lens.direction.dose import Scope, dose_response
from refusal_lens.direction.dose_records import MEASURES, DoseResponse
from refusal_lens.errors import DirectionError, InterventionError


@pytest.fixture(scope="module")
def ground(organism):
    data = rl.load_prompts("organism", sizes=(48, 12, 8))
    return organism, data, rl.find_direction(organism, data)


@pytest.fixture(scope="module")
def curves(ground):
    strengths = {"ablation": (0.0, 1.0), "addition": (0.0, 2.0), "capping": (0.0, 100.0)}
    scopes = {"all": Scope(), "reply": Scope(positions="reply"), "some layers": Scope(layers=slice(1, 3))}
    return dose_response(*ground, strengths=strengths, scopes=scopes, max_new_tokens=8)


def test_no_dose_is_the_baseline_bit_for_bit(curves):
    """Ablation and addition of nothing, and a ceiling that nothing reaches."""
    for dose, effect in (("ablation 0", "ablation"), ("addition 0", "addition"), ("capping 100", "capping")):
        for scope in curves.scopes:
            for condition in ("direction", "random"):
                found = curves.sel(scope=scope, dose=dose, condition=condition)
                assert torch.equal(found.values, curves.baseline[curves.effects.index(effect)]), (dose, scope)
    assert (curves.baseline[:, MEASURES.index("kl")] == 0).all()


def test_the_measures_are_those_of_their_own_functions(ground, curves):
    model, data, found = ground
    edit = rl.Ablate(found)
    metric = rl.refusal_metric(model, data.harmful.test, found.refusal_tokens, under=(edit,))
    told = rl.refusal.complete(model, data.harmful.test, {"ablation": [edit]}, "harmful", 8)
    point = {m: curves.sel(scope="all", dose="ablation 1", condition="direction", measure=m).values for m in MEASURES}
    assert torch.equal(point["metric"], metric.double())
    assert point["refused"].tolist() == [float(item.refused) for item in told]
    assert curves.found("all", "ablation 1", "direction", "refused") == told.rates["ablation"]
    assert curves.before("ablation", "refused").mean > 0.5 and float(point["kl"].mean()) > 0
    # KL at the first reply token is that of the prompt's last position: with replies of one token, all there is
    short = dose_response(*ground, strengths={"ablation": [1.0]}, scopes={"all": Scope()}, max_new_tokens=1).sel(
        scope="all", dose="ablation 1", condition="direction", measure="loss"
    )
    (reader, prompts) = (rl.hooks.NextLogits(), data.harmless.test)
    first = model.run(prompts, read=reader)[reader].argmax(-1)
    under = model.run(prompts, read=reader, under=[edit])[reader].double().log_softmax(-1)
    assert torch.allclose(short.values, -under.gather(-1, first[:, None])[:, 0], atol=1e-4)


def test_what_acts_on_replies_leaves_the_metric(curves):
    found = curves.sel(scope="reply", dose="ablation 1", condition="direction", measure="metric").values
    assert torch.equal(found, curves.baseline[0, MEASURES.index("metric")])
    assert curves.found("reply", "addition 2", "direction", "kl").mean > 0


def test_the_usable_window_is_named(curves, tmp_path):
    frame = curves.to_frame()
    assert len(frame) == 3 * 6 * 2 and not frame.query("condition == 'random'")["usable"].any()
    for effect, words in zip(curves.effects, curves.summary(), strict=True):
        usable = frame.query("effect == @effect and usable")
        assert ("none of these" in words) == usable.empty
        assert words.startswith(effect.capitalize())
        for row in usable.itertuples():
            assert f"{row.strength:g}" in words and row.kl < 0.1 and row.degenerate < 0.1
            assert (row.readable >= 0.9) if effect == "addition" else (row.refused <= 0.1)
        scope, strength = curves.best(effect)
        assert usable.empty or strength in curves.window(effect, scope)
    assert curves.lacks("all", "ablation 0")  # nothing changed, so nothing is reached
    saved = DoseResponse.load(curves.save(tmp_path / "curves"))
    assert torch.equal(saved.values, curves.values) and saved.summary() == curves.summary()
    assert len(saved.plot(effect="addition").data) == 4 * 3 * 2


def test_replies_only_where_asked(ground):
    """The other measures stay what they are with replies at every strength, and an unread dose is not called usable."""
    how = {"strengths": {"ablation": (0.5, 1.0)}, "scopes": {"all": Scope()}, "max_new_tokens": 8}
    every, some = dose_response(*ground, **how), dose_response(*ground, **how, replies_at=[1.0])
    assert some.replied() == ("ablation 1",) and every.replied() == every.doses
    unread = some.sel(scope="all", dose="ablation 0.5")
    for i, name in enumerate(MEASURES):
        assert torch.equal(some.values[:, 1, :, i], every.values[:, 1, :, i])
        judged = name in ("refused", "readable", "degenerate")
        same = torch.equal(unread.values[:, i], every.values[0, 0, :, i])
        assert bool(unread.values[:, i].isnan().all()) if judged else same
    assert some.lacks("all", "ablation 0.5") == ("no replies were generated",)
    assert some.best("ablation") == ("all", 1.0) and 0.5 not in some.window("ablation", "all")
    lines = some.plot().data
    assert {len(line.x) for line in lines} == {1, 2}


def test_bad_input(ground):
    model, data, found = ground
    with pytest.raises(DirectionError, match="find_direction"):
        dose_response(model, data, found.direction)
    with pytest.raises(InterventionError, match="'ablate'"):
        dose_response(model, data, found, strengths={"ablate": [1.0]})
    with pytest.raises(InterventionError, match="nothing to measure"):
        dose_response(model, data, found, strengths={"ablation": []})
    with pytest.raises(InterventionError, match="choose from 0 to"):
        dose_response(model, data, found, scopes={"far": Scope(layers=99)})
