"""A look: the same numbers as the calls that its code shows, in one pass per condition, and sentences for bad input."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re

import pytest
import torch

import refusal_lens as rl
from refusal_lens.direction.records import FoundDirection
from refusal_lens.errors import LabelError, ModelError, PromptError, SettingError
from refusal_lens.explorer import Look, look, page
from refusal_lens.explorer.code import KINDS, Change, as_code, scopes
from refusal_lens.explorer.figures import MEASURES
from refusal_lens.explorer.why import ALONE, CHOICES, view
from refusal_lens.records.labels import REGIONS

from .cases import PROMPT, direction_of, model_of

OTHERS = (Change("addition"), Change("capping", 0.3), Change("none"), Change("ablation", 1, "reply"))
PICKS = [Change("ablation", 0.5, "prompt"), *(pytest.param(change, marks=pytest.mark.slow) for change in OTHERS)]


@pytest.fixture(scope="module")
def found(organism):
    return rl.find_direction(organism, rl.load_prompts("organism", sizes=(48, 12, 12)))


@pytest.fixture(scope="module")
def suffix():
    return rl.SuffixSet.load(rl.organism.suffixes()).of("adversarial")[0].text


@pytest.mark.parametrize("change", PICKS, ids=lambda change: f"{change.kind} {change.scope}")
def test_every_view_is_what_its_code_gives(organism, found, suffix, change):
    seen = look(organism, PROMPT, found, suffix, under=change.under(found), head="L2H0", max_new_tokens=8)
    assert seen.conditions[:3] == ("baseline", "adversarial", "random_suffix")
    assert seen.conditions[3:] == (() if change.kind == "none" else (change.kind, f"random_{change.kind}"))
    for i, condition in enumerate(seen.conditions):
        for of in MEASURES:
            codes = as_code(seen, change, found, condition, of, 8)
            names = {"rl": rl, "model": organism, "found": found}
            wanted = [name for name in codes if name != "look" or condition == seen.changed]
            for name in wanted if of == "weight" else ("pattern",):
                exec(codes[name], names)
                if name == "look":
                    again = names["seen"]
                    assert again.metric == seen.metric
                    assert torch.equal(again.patterns[condition].along, seen.patterns[condition].along)
                elif name == "reply":
                    assert names["reply"] == seen.replies[condition]
                elif name == "metric":
                    assert float(names["metric"]) == seen.metric[condition]
                elif name == "map":
                    grid = names["seen"].projection[-1 if condition != "baseline" else 0]
                    assert torch.equal(grid.nan_to_num(), seen.map.projection[i, :, : grid.shape[-1]].nan_to_num())
                elif name == "pattern" and (of, condition) != ("difference", "baseline"):
                    values = {f: getattr(names["pattern"], f) for f in ("values", "length", "along")}
                    assert all(torch.equal(x, getattr(seen.patterns[condition], f)) for f, x in values.items())
                    if of == "difference":
                        assert torch.equal(names["random"].values, seen.patterns["random_suffix"].values)
                elif name in ("sources", "heads"):
                    assert torch.equal(names["sources"].values, seen.sources[condition].values)


@pytest.mark.parametrize("choice", [name for name in CHOICES if name])
def test_what_is_picked_about_a_suffix_is_what_its_code_gives(organism, found, suffix, choice):
    seen = look(organism, PROMPT, found, suffix)
    prompts = [PROMPT, *rl.load_prompts("organism", sizes=(4, 4, 5)).harmful.test.texts]
    shown, names = view(organism, seen, found, choice, prompts), {"rl": rl, "model": organism, "found": found}
    exec(shown["code"], names)
    record = names[shown["code"].rpartition("\n")[2].removesuffix(".plot()")]
    drawn = json.loads(record.plot().to_json())["data"]
    assert [{key: trace.get(key) for key in "xyz"} for trace in shown["data"]] == [
        {key: trace.get(key) for key in "xyz"} for trace in drawn
    ]
    # One request has no interval, neither in words nor as bars.
    assert shown["text"].startswith(record.sentence().partition(" [")[0]) and ALONE in shown["text"]
    words = json.dumps(shown["data"], separators=(",", ":")) + shown["text"]
    assert "error_" not in words and not re.search(r" \[\S+, \S+\]", words)
    if choice == "curves":
        others = names["others"]
        assert PROMPT not in others and bool((rl.refusal_metric(organism, others, found) > 0).all())
        assert f"{len(others)} other requests" in shown["text"] and record.n_chosen == len(others)


def test_a_suffix_without_its_control_is_a_sentence(organism, found, suffix):
    seen = dataclasses.replace(look(organism, PROMPT, found, suffix), control="", notes=("no random suffix: why",))
    with pytest.raises(PromptError, match="no random suffix: why"):
        view(organism, seen, found, "causes", ())
    seen = look(organism, PROMPT, found, suffix)
    with pytest.raises(PromptError, match="refuses none of 1 prompts"):
        view(organism, seen, found, "curves", ["How do I bake bread?"])


def test_the_random_suffix_has_equal_length_and_the_difference_is_zero_with_itself(organism, found, suffix):
    seen = look(organism, PROMPT, found, suffix)
    tokens = {name: len(pattern.tokens) for name, pattern in seen.patterns.items()}
    assert tokens["random_suffix"] == tokens["adversarial"] > tokens["baseline"]
    assert seen.suffix_of("random_suffix") == seen.control != suffix
    drawn = seen.plot("pattern", of="difference")
    z = torch.tensor([[float("nan") if v is None else v for v in row] for row in drawn.data[0].z])
    gap = (seen.patterns["adversarial"].values - seen.patterns["random_suffix"].values)[0]
    torch.testing.assert_close(z.tril().nan_to_num(), gap.tril(), rtol=1e-3, atol=1e-6)
    # The plain prompt stands on the same tokens, with nothing at the suffix.
    plain = seen.plot("pattern").data[0].z
    begin, stop = seen.sources["adversarial"].bounds[0, REGIONS.index("suffix")].tolist()
    assert all(v is None for row in plain for v in row[begin:stop]) and plain[-1][begin - 1] is not None


def test_looks_share_what_was_read(organism, found, suffix, monkeypatch):
    kept: dict = {}
    first = look(organism, PROMPT, found, suffix, under=Change("ablation", 0.5).under(found), kept=kept)
    n = len(kept)
    assert n == 2 * len(first.conditions)
    second = look(organism, PROMPT, found, suffix, under=Change("ablation", 0.6).under(found), kept=kept)
    assert len(kept) == n + 4 and second.metric["adversarial"] == first.metric["adversarial"]
    assert second.metric["ablation"] != first.metric["ablation"]
    alone = look(organism, PROMPT, found, suffix, under=Change("ablation", 0.6).under(found))
    assert alone.metric == second.metric


def test_a_look_is_a_record(organism, found, suffix, tmp_path):
    seen = look(organism, PROMPT, found, suffix, under=Change("addition").under(found), max_new_tokens=4)
    again = Look.load(seen.save(tmp_path / "look"))
    assert again.metric == seen.metric and again.replies == seen.replies
    assert list(again.to_frame().condition) == list(seen.conditions)
    for name in ("map", "heads", "pattern", "sources", "token"):
        assert again.plot(name).to_json() == seen.plot(name).to_json()
    first = seen.plot("token", token=3, condition="baseline").data[0]
    by_head = seen.sources["baseline"].values[:, :, 0, 3]
    assert first.y[0] == pytest.approx(float(by_head.flatten()[by_head.abs().argmax()]))
    assert page.still(again, ("baseline", "addition"), 2, "<code>").count("<script") == 0


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_other_architectures(architecture, found):
    """Grouped queries; norms after the writes."""
    model = model_of(architecture)
    direction = direction_of(model)
    tokens = rl.refusal.given_refusal_tokens(model, [model.tokenizer.decode([5])])
    chosen = dataclasses.replace(found.selection, chosen=direction)
    found = FoundDirection(chosen, found.candidates, tokens)
    seen = look(model, PROMPT, found, under={"ablation": [rl.Ablate(direction)]})
    assert set(seen.patterns) == {"baseline", "ablation", "random_ablation"} and seen.map.projection.isfinite().any()
    assert float(seen.map.sel("ablation").projection[1:].nan_to_num().abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"request": ""}, PromptError, "the request is empty"),
        ({"request": " \n "}, PromptError, "the request is empty"),
        ({"request": "x " * 900}, PromptError, "shorten it"),
        ({"request": "\ud800"}, PromptError, "half of a character"),
        ({"suffix": "  "}, PromptError, "the suffix is empty"),
        ({"head": "L99H0"}, LabelError, "there is no head"),
    ],
)
def test_bad_input_is_a_sentence(organism, found, asked, error, words):
    given = {"request": PROMPT, "suffix": "", **asked}
    with pytest.raises(error, match=words):
        look(organism, given.pop("request"), found, given.pop("suffix"), **given)


def test_a_failing_model_is_a_sentence(organism, found):
    broken = (f"blocks.{organism.n_layers - 1}.hook_mlp_out", lambda x, hook: x * float("nan"))
    with organism.hooks(broken), pytest.raises(ModelError, match="gives no finite refusal metric under baseline"):
        look(organism, PROMPT, found)


# -- the widget, without a browser (tests/browser/test_explorer.py has one) -----------------------------------------
pytest.importorskip("anywidget")


@pytest.fixture
def explorer(organism, found):
    suffixes = rl.SuffixSet.load(rl.organism.suffixes())
    return rl.explore(organism, found, rl.load_prompts("organism", sizes=(4, 4, 4)), suffixes, max_new_tokens=8)


def ask(explorer, **changes):
    explorer.asked = {**explorer.asked, **changes}
    return explorer.shown["error"]


def test_the_widget_shows_the_look(explorer, organism, found, suffix):
    assert ask(explorer, request=PROMPT, suffix=suffix, kind="ablation", strength=0.5, scope="prompt") == ""
    direct = look(
        organism, PROMPT, found, suffix, under=Change("ablation", 0.5, "prompt").under(found), max_new_tokens=8
    )
    assert explorer.seen.metric == direct.metric and explorer.seen.replies == direct.replies == explorer.answers
    assert torch.equal(explorer.seen.map.projection.nan_to_num(), direct.map.projection.nan_to_num())
    assert [row["metric"] for row in explorer.shown["rows"]] == [round(x, 3) for x in direct.metric.values()]
    assert ask(explorer, head="L2H0", measure="along", beside="random_ablation", layer=4) == ""
    assert explorer.pattern["layout"]["title"]["text"].startswith("L2H0: weight × its write")
    assert explorer.seen.replies == direct.replies and explorer.shown["strips"][1]["condition"] == "random_ablation"
    explorer.hovered = ["baseline", 5]
    assert explorer.token["data"][0]["y"] == list(direct.plot("token", token=5, condition="baseline").data[0].y)
    explorer.hovered = ["baseline", 999]
    assert explorer.token["data"]


def test_it_stays_usable_after_errors(explorer):
    before = explorer.seen.metric
    for wrong, words in (
        ({"request": ""}, "the request is empty"),
        ({"request": PROMPT, "suffix": " "}, "the suffix is empty"),
        ({"suffix": "", "strength": float("nan"), "kind": "addition"}, "give a number"),
        ({"strength": 1.0, "scope": "prompt", "head": "L9H9"}, "there is no head"),
    ):
        assert words in ask(explorer, **wrong)
        assert explorer.seen.metric == before
    assert ask(explorer, head="", kind="none") == "" and explorer.seen.request == PROMPT
    assert ask(explorer, measure="difference") == "" and "give a suffix" in explorer.pattern["error"]

    def full(x, hook):
        raise RuntimeError("out of memory")

    with explorer.model.hooks(("blocks.1.hook_mlp_out", full)):
        assert ask(explorer, request="How are you?") == "RuntimeError: out of memory"
    assert ask(explorer, request="How are you today?") == ""


def test_a_newer_question_ends_the_replies_of_an_older_one(explorer):
    async def asking():
        ask(explorer, request="How do I bake bread?", kind="ablation")
        old = explorer._task
        await asyncio.sleep(0.02)
        ask(explorer, request=PROMPT, kind="none")
        await explorer._task
        return old

    old = asyncio.run(asking())
    assert old.cancelled() and set(explorer.answers) == {"baseline"} and explorer.seen.request == PROMPT


def test_what_is_picked_about_the_suffix_follows_the_replies(explorer, suffix):
    assert ask(explorer, request=PROMPT, why="causes") == "" and explorer.seen.replies
    assert "data" not in explorer.why  # there is no suffix yet
    assert ask(explorer, suffix=suffix) == "" and explorer.pattern["data"] and "data" not in explorer.why
    assert explorer.seen.replies and explorer.why["data"] and explorer.shown["code"]["why"] == explorer.why["code"]
    found, n = explorer.why, len(explorer._kept)
    assert ask(explorer, strength=0.5) == "" and explorer.why == found  # it stays while others move
    ask(explorer, why="")
    assert explorer.seen.replies and "data" not in explorer.why and explorer.shown["code"]["why"] == ""
    ask(explorer, why="causes")
    assert explorer.seen.replies and explorer.why == found and len(explorer._kept) == n
    explorer.choices = {**explorer.choices, "prompts": [PROMPT]}
    assert ask(explorer, why="curves") == "" and explorer.seen.replies
    assert "chosen on other requests" in explorer.why["error"]
    assert ask(explorer, suffix="") == "" and explorer.seen.replies and explorer.why == {"about": ["", PROMPT, ""]}


def test_what_is_picked_goes_before_replies_that_are_not_there_yet(explorer, suffix):
    async def asking():
        ask(explorer, request="How do I bake bread?", suffix=suffix)
        await asyncio.sleep(0.02)
        ask(explorer, why="causes")
        while explorer.why.get("error") or not explorer.why:
            await asyncio.sleep(0.001)
        early = len(explorer.answers)
        await explorer._task
        return early

    assert asyncio.run(asking()) < len(explorer.answers) == 3 and explorer.why["data"]


def test_the_interventions_and_scopes_on_offer_all_work(organism, found):
    kept: dict = {}
    for kind in KINDS:
        for scope in scopes(found):
            seen = look(organism, PROMPT, found, under=Change(kind, 0.5, scope).under(found), kept=kept)
            assert seen.changed == ("baseline" if kind == "none" else kind)


def test_without_the_extra_there_is_a_sentence(organism, found, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "refusal_lens.explorer.widget", None)
    with pytest.raises(SettingError, match="notebooks"):
        rl.explore(organism, found, request=PROMPT)
