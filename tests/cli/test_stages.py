"""Stages: what decides each, running one alone, their state without a model, and those that a model can't have."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from refusal_lens.direction.records import Selection
from refusal_lens.errors import ModelError, SettingError
from refusal_lens.progress import silent
from refusal_lens.refusal.records import RefusalTokens
from refusal_lens.report.claims import few_in
from refusal_lens.study.config import StudyConfig
from refusal_lens.study.folder import Study
from refusal_lens.study.pipeline import run_stage, run_study, stage_states
from refusal_lens.study.stages import PIPELINE, planned

SMALL = StudyConfig(sizes=(8, 4, 4), max_new_tokens=2, max_kl=9.0)


def _states(config, folder):
    return {state.name: state for state in stage_states(config, folder)}


@pytest.fixture(scope="module")
def selected(organism, tmp_path_factory):
    folder = tmp_path_factory.mktemp("selected")
    return run_stage("selection", SMALL, folder, model=organism), folder


def test_one_stage_runs_with_what_it_needs_and_no_more(selected):
    selection, folder = selected
    assert isinstance(selection, Selection)
    assert torch.equal(selection.chosen.unit, Selection.load(folder / "selection").chosen.unit)
    states = _states(SMALL, folder)
    done = [name for name, state in states.items() if state.state == "done"]
    assert done == ["refusal_tokens", "prompts", "candidates", "selection"] and not (folder / "study.json").exists()
    assert all(states[name].seconds >= 0 for name in done) and states["trace"].seconds != states["trace"].seconds
    ran = states["selection"]
    assert ran.passes > 0 and ran.tokens > 24 * ran.passes and states["prompts"].passes > 0
    assert states["selection"].settings["max_kl"] == 9.0 and states["trace"].state == "to do"


def test_what_is_consumed_decides(selected, organism):
    """Another setting runs its stage again, and those that take its result only where that has changed."""
    folder = selected[1]
    run_stage("trace", SMALL, folder, model=organism)
    other = replace(SMALL, relax=True)
    states = _states(other, folder)
    assert states["selection"].state == "to do" and states["selection"].changed == ("relax: False -> True",)
    assert states["candidates"].state == "done"
    run_stage("selection", other, folder, model=organism)  # it passes without: the same direction
    assert _states(other, folder)["trace"].state == "done"
    run_stage("selection", replace(SMALL, coeff=2.0), folder, model=organism)
    assert _states(replace(SMALL, coeff=2.0), folder)["trace"].state == "to do"
    (folder / "candidates.safetensors").write_bytes(b"changed")
    assert [n for n, s in _states(SMALL, folder).items() if s.state == "done"] == ["refusal_tokens", "prompts"]


def test_an_older_folder_has_seconds_only(partial, tmp_path):
    """And one whose file is broken has none: both are listed and shown."""
    study = shutil.copytree(partial[0].folder, tmp_path / "old")
    costs = {name: took["seconds"] for name, took in json.loads((study / "seconds.json").read_text()).items()}
    for content, seconds in ((json.dumps(costs), costs["selection"]), ("[1, {", math.nan)):
        (study / "seconds.json").write_text(content)
        state = _states(SMALL, study)["selection"]
        assert state.state == "done" and math.isnan(state.passes) and str(state.seconds) == str(seconds)
        tables = {item.id: item for item in Study(study).page().sections[-1].items}
        assert ("stage-costs" in tables) == (seconds == seconds)
        if "stage-costs" in tables:
            rows = {row[0]: row[1:] for row in tables["stage-costs"].rows}
            assert rows["selection"] == (f"{seconds:.1f}", "", "") and rows["together"][1:] == ("", "")


def test_the_report_says_what_each_stage_took(partial):
    costs = json.loads((partial[0].folder / "seconds.json").read_text())
    rows = {row[0]: row[1:] for row in partial[0].page().sections[-1].items[1].rows}
    assert list(rows) == [*costs, "together"] and set(costs) == {stage.name for stage in planned(SMALL)}
    assert rows["candidates"][1] == f"{costs['candidates']['passes']:,.0f}"
    for column, name in enumerate(("seconds", "passes", "tokens")):
        together = float(rows["together"][column].replace(",", ""))
        assert together == pytest.approx(sum(cost[name] for cost in costs.values()), abs=0.06)


def test_stages_that_can_not_run_are_said(tmp_path):
    for name, message in (
        ("x", "there is no stage 'x'; the stages are"),
        ("evaluation", "is made by `refusal-lens evaluate`, not by a run"),
    ):
        with pytest.raises(SettingError, match=message):
            run_stage(name, SMALL, tmp_path / "out")
    with pytest.raises(SettingError, match="set stability"):
        run_stage("stability", SMALL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_need_is_a_stage_before_and_every_use_is_a_setting():
    before: set[str] = set()
    for stage in PIPELINE:
        assert set(stage.needs) <= before and all(hasattr(SMALL, name) for name in (*stage.uses, *stage.when.split()))
        before.add(stage.name)
    assert "stability" not in [s.name for s in planned(SMALL)]
    assert "stability" in [s.name for s in planned(replace(SMALL, stability=3))]


@pytest.fixture(scope="module")
def partial(organism, tmp_path_factory):
    """A study whose sources can't be had; no model that we have lacks them, so the function says so itself."""

    def lacks(model, *_, **__):
        raise ModelError(f"{model.name} computed no attention pattern; load it with eager attention")

    importlib.import_module("refusal_lens.exactness.identities")  # before the patch, which it would keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refusal_lens.attribution.sources.source_contributions", lacks)
        study = run_study(SMALL, tmp_path_factory.mktemp("partial"), model=organism)
    return study, organism


def test_what_a_model_can_not_have_is_written_down_and_the_report_is_made(partial):
    study, model = partial
    assert set(study.missing) == {"sources", "patterns"}
    assert "eager attention" in study.missing["sources"] and "takes the stage 'sources'" in study.missing["patterns"]
    assert study.sources is None and set(study.inside) == {"heads", "causal", "logits", "propagation", "lens"}
    page = study.page()
    assert any(line.startswith("Not available on this model: sources (") for line in page.missing)
    inside = next(s for s in page.sections if s.id == "inside")
    assert {"dla", "lens", "head-map", "causal-check", "propagation"} <= {item.id for item in inside.items}
    kept = (study.folder / "stages" / "sources.json").stat().st_mtime_ns
    assert run_study(SMALL, study.folder, model=model).missing == study.missing
    assert (study.folder / "stages" / "sources.json").stat().st_mtime_ns == kept
    with pytest.raises(ModelError, match="eager attention"):
        run_stage("sources", SMALL, study.folder, model=model)


def test_a_study_lists_its_stages(partial):
    study = Study(partial[0].folder)
    assert {"selection", "heads", "completions_harmful", "page", "harmful"} <= set(dir(study))
    assert study.selection is study.selection and study.stability is None
    with pytest.raises(AttributeError, match=r"a study has no 'selektion'; it has .*selection"):
        study.selektion  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_kl": -1.0}, "max_kl is -1.0; it must be above 0"),
        ({"sizes": [8, 0, 4]}, "sizes is 0; it must be at least 1"),
        ({"layer_cutoff": 1.5}, "layer_cutoff is 1.5; it must be at most 1"),
        ({"relax": "yes"}, "relax is a str, which does not fit"),
        ({"sizes": [8, 4]}, "sizes is a tuple"),
        ({"seed": True}, "seed is a bool"),
        ({"filter": "best"}, "filter is 'best'; it must be one of calibrated, accuracy, equal_error, paper"),
        ({"coef": 1.0}, "there is no setting 'coef'; did you mean coeff"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(SettingError, match=message):
        StudyConfig.of(settings)


@pytest.mark.slow
def test_a_direction_that_so_few_prompts_do_not_give_is_named_and_the_report_made(organism, tmp_path):
    few = run_study(StudyConfig(sizes=(12, 6, 8), max_new_tokens=4, relax=True), tmp_path / "few", model=organism)
    assert few.harm is None and "finite and not zero" in few.missing["harm"]
    assert "finite and not zero" in (tmp_path / "few" / "report.html").read_text("utf-8")


def test_few_prompts_stand_first_on_the_page(study):
    page = study.page()
    (first,), second = page.caution, page.summary[0]
    assert page.render().index("Few prompts") < page.render().index("What was found")
    assert first.startswith("Few prompts (under 32): 24 harmful for choosing the direction and the heads")
    assert "24 harmless for the report" in first and "direction" in second
    enough = {kind: dict.fromkeys(("train", "val", "test"), 32) for kind in ("harmful", "harmless")}
    metric = {"harmful": {"baseline": {"n": 32}}}
    summary = study.summary | {"prompts": enough, "refusal_metric": metric}
    assert not few_in(summary) and not few_in(summary, 32)
    assert few_in(summary, 6).startswith("Few prompts (under 32): 6 harmful for the causal check of the heads")
    assert f"{len(study.causal.prompts)} harmful for the causal check" in first


def test_the_filters_point_is_a_setting_and_the_rule_follows_it(organism, tmp_path):
    small = {"sizes": (24, 8, 8), "relax": True}
    for name, settings, least in (
        ("calibrated", {}, None),
        ("paper", {"filter": "paper"}, 0.0),
        ("by hand", {"min_induce": -3.0}, -3.0),
    ):
        config = StudyConfig(**small, **settings)
        selection = run_stage("selection", config, tmp_path / name, silent, model=organism)
        tokens = RefusalTokens.load(tmp_path / name / "refusal_tokens")
        assert tokens.calibration.point == settings.get("filter", "calibrated")
        assert selection.thresholds["min_induce"] == (tokens.threshold if least is None else least)
        assert (tokens.threshold == 0) == (name == "paper")
