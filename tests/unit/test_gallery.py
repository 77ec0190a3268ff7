"""Every figure of the package, drawn from real records of the embedded model: it stands alone on paper."""

from __future__ import annotations

import functools
import importlib
import re

import pandas as pd
import pytest

from refusal_lens.behaviour.records import HarnessScore, HarnessScores
from refusal_lens.records import base
from refusal_lens.report import style
from refusal_lens.report.drawing import Drawing
from refusal_lens.report.views import View
from refusal_lens.study.sweep_section import plot_depth, plot_sweep
from scripts import gallery

pytestmark = pytest.mark.slow
PALETTE = {*style.CONDITION_COLOURS.values(), *style.REGION_COLOURS.values(), *style.CYCLE}


def by_hand() -> list[tuple[str, Drawing]]:
    """Figures that need more than one model, or lm-eval."""
    scores = [HarnessScore(condition, "task", "acc", 0.5, 0.1, 9) for condition in ("baseline", "ablation")]
    harness = HarnessScores(tuple(scores), "1")
    rows = [("a model", kind, "baseline", 0.5, 0.4, 0.6) for kind in ("harmful", "harmless")]
    sweep = plot_sweep(pd.DataFrame(rows, columns=["model", "prompts", "condition", "rate", "low", "high"]))
    return [("harness", harness.plot()), ("sweep", sweep), ("depth", plot_depth({"a model": (3, 5)}))]


@pytest.fixture(scope="module")
def shown():
    """Name -> figure, and the registered functions that drew none of them."""
    missing = set()

    def noted(function):
        @functools.wraps(function)
        def draw(*args, **options):
            missing.discard(function)
            return function(*args, **options)

        return draw

    before = {}

    def watch(cls, kind):
        if (cls, kind) not in before:
            before[cls, kind] = function = base._FIGURES[cls][kind]
            missing.add(function)
            base._FIGURES[cls][kind] = noted(function)

    import refusal_lens as rl

    dir(rl.plots)  # registers every slice's figures
    importlib.import_module("refusal_lens.explorer.figures")
    for cls, kinds in list(base._FIGURES.items()):
        for kind in list(kinds):
            if cls.__module__.startswith("refusal_lens."):
                watch(cls, kind)
    found = [(code, figure) for _, code, figure in gallery.figures()] + by_hand()
    for (cls, kind), function in before.items():
        base._FIGURES[cls][kind] = function
    yield dict(found), missing


@pytest.fixture(scope="module")
def drawings(shown) -> dict[str, Drawing]:
    return {name: figure.drawing() if isinstance(figure, View) else figure for name, figure in shown[0].items()}


def test_the_gallery_shows_every_figure(shown):
    names = {function.__name__ for function in shown[1]}
    # Of a study, of other records, and what an investigation draws through its own.
    through = {"causal_tests", "token_effects", "attention_shift", "curves", "path_effects"}
    through = {f"plot_{name}" for name in through}
    assert names <= {"plot_metrics", "plot_numbers"} | through


def test_each_saves_itself_and_has_a_title(drawings):
    for name, figure in drawings.items():
        assert isinstance(figure, Drawing), name
        assert len(figure.layout.title.text) > 10, name


def test_every_axis_says_what_it_is(drawings):
    """By its title; by that of the axis that it follows or stands above; on y, by the heading of its panel."""
    for name, figure in drawings.items():
        stacked = any(axis.title.text for axis in figure.select_xaxes()) and len(figure._grid_ref or ()) > 1
        headed = any(a.yref == "paper" and a.yanchor == "bottom" for a in figure.layout.annotations)
        for x in figure.select_xaxes():
            assert x.visible is False or x.title.text or stacked, name
        for y in figure.select_yaxes():
            assert y.visible is False or y.title.text or y.matches or headed, name


def colours_of(trace) -> set[str]:
    """Solid colours of a trace: of its marker and its line."""
    found = set()
    for part in (trace.marker if "marker" in trace else None, trace.line if "line" in trace else None):
        value = getattr(part, "color", None)
        found |= {value} if isinstance(value, str) else set(value or ())
    return {c for c in found if isinstance(c, str)}


def test_colours_come_from_the_one_map_and_a_condition_has_one(drawings):
    seen: dict[str, set[str]] = {}
    for name, figure in drawings.items():
        for trace in figure.data:
            assert colours_of(trace) <= PALETTE, (name, colours_of(trace) - PALETTE)
            condition = re.sub(r"(,| \().*", "", trace.name or "").replace(" ", "_")
            if condition in style.CONDITION_COLOURS and colours_of(trace):
                seen.setdefault(condition, set()).update(colours_of(trace))
    assert len(seen) >= 12
    assert seen == {name: {style.CONDITION_COLOURS[name]} for name in seen}


def test_light_and_dark_are_the_same(drawings):
    for name, figure in drawings.items():
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "#fff", name
