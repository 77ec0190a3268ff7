"""The table of conditions on the embedded model: what each condition does, resuming, and the command."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager

import pytest
import torch
import typer
from typer.testing import CliRunner

from refusal_lens import Ablate
from refusal_lens.behaviour.judges.base import JudgeError, Judgement, SubstringJudge
from refusal_lens.behaviour.records import EvaluationTable
from refusal_lens.behaviour.table import evaluate_table, read_prompts
from refusal_lens.cli import evaluate as command
from refusal_lens.errors import ModelError, PromptError, RefusalLensError
from refusal_lens.hooks.conditions import CONDITIONS, named_conditions
from refusal_lens.records.store import Store
from refusal_lens.refusal.replies import complete
from tests.tiny import tiny_model

from .cases import direction_of, model_of

N, NEW = 16, 16


@pytest.fixture(scope="module")
def run(study):
    """The session's study of the embedded model."""
    return study


@pytest.fixture(scope="module")
def sets(run):
    return {"harmful": run.harmful.test.texts[:N], "harmless": run.harmless.test.texts[:N]}


@pytest.fixture(scope="module")
def table(organism, run, sets):
    return evaluate_table(organism, run.selection.chosen, sets, max_new_tokens=NEW)


def test_the_direction_is_necessary_and_sufficient_and_random_ones_are_not(table):
    rate = {(name, condition): r.rate for (name, condition, _), r in table.rates.items()}
    assert set(rate) == {(name, c) for name in ("harmful", "harmless") for c in CONDITIONS}
    assert rate["harmful", "baseline"] > 0.8 and rate["harmless", "baseline"] < 0.2
    for bypass in ("ablation", "orthogonalized"):
        assert rate["harmful", bypass] < rate["harmful", f"random_{bypass}"] - 0.4
    assert rate["harmless", "addition"] > rate["harmless", "random_addition"] + 0.4
    frame = table.to_frame()
    assert len(frame) == 18 and (frame["n"] == N).all() and (frame["low"] <= frame["rate"]).all()


def test_orthogonalized_weights_give_the_replies_of_ablation(table):
    for completions in table.completions:
        by_hooks, by_weights = (
            [item.response for item in completions.of(name)] for name in ("ablation", "orthogonalized")
        )
        assert sum(a != b for a, b in zip(by_hooks, by_weights, strict=True)) <= 1  # float32: a tie may break


def test_subtraction_takes_away_once_what_addition_adds():
    model = model_of("llama")
    direction = dataclasses.replace(direction_of(model), coeff=3.0)
    edits = named_conditions(direction, seed=5)
    tokens, name = model.tokenize(["Hi"]), "blocks.1.hook_resid_pre"
    plain = model.cache(tokens, [name])[name]
    for condition, coeff in (("addition", 3.0), ("subtraction", -1.0)):
        for prefix, r in (("", direction), ("random_", direction.random_control(5))):
            with model.hooks(*edits[prefix + condition]):
                assert torch.allclose(model.cache(tokens, [name])[name], plain + coeff * r.vector)
    with model.hooks(*edits["ablation"]):
        ablated = model.last_logits(["Hi"])
    with model.hooks(*edits["orthogonalized"]):
        assert torch.allclose(model.last_logits(["Hi"]), ablated, atol=2e-6)
    with pytest.raises(RefusalLensError, match="no condition 'ablate'"):
        named_conditions(direction, ["ablate"])


def test_weight_edits_and_hooks_combine_and_complete_takes_them():
    model = model_of("qwen2", torch.float32)
    direction, other = direction_of(model, 1), direction_of(model, 2)
    both = [*named_conditions(direction, ["orthogonalized"])["orthogonalized"], Ablate(other)]
    found = complete(model, ["Hi", "Ho"], {"baseline": [], "both": both}, "set", 4)
    assert found.conditions == ("baseline", "both") and set(found.rates) == {"baseline", "both"}
    again = complete(model, ["Hi", "Ho"], {"baseline": []}, "set", 4)
    assert found.of("baseline") == again.of("baseline")


class Killed(BaseException):
    """Like a kill: nothing in the code catches it."""


@contextmanager
def dies_at(monkeypatch, model, call):
    """``model.generate`` works until the given call."""
    calls = []
    real = type(model).generate

    def generate(self, prompts, *args, **kwargs):
        calls.append(list(prompts))
        if call and len(calls) == call:
            raise Killed
        return real(self, prompts, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "generate", generate)
        yield calls


def test_a_killed_table_goes_on_where_it_stopped(organism, run, sets, table, tmp_path, monkeypatch):
    options = {"conditions": ["baseline", "ablation"], "max_new_tokens": NEW, "batch_size": 8}
    direction = run.selection.chosen
    with dies_at(monkeypatch, organism, 4), pytest.raises(Killed):
        evaluate_table(organism, direction, sets, tmp_path, **options)
    (half,) = (tmp_path / "replies").glob("harmful.ablation-*.json")
    assert len(json.loads(half.read_text())) == 8
    half.write_bytes(half.read_bytes()[:-7])  # a damaged disk: these eight are answered again
    steps = []

    @contextmanager
    def progress(name, total):
        steps.append([name, total, 0])

        def advance(n):
            steps[-1][2] += n

        yield advance

    with dies_at(monkeypatch, organism, 0) as calls:
        found = evaluate_table(organism, direction, sets, tmp_path, progress=progress, **options)
    asked = [prompt for batch in calls for prompt in batch]
    assert len(asked) == 16 + 2 * N and all(done == total for _, total, done in steps)
    for mine, whole in zip(found.completions, table.completions, strict=True):
        assert mine.of("baseline") == whole.of("baseline")
    with dies_at(monkeypatch, organism, 0) as calls:
        assert evaluate_table(organism, direction, sets, tmp_path, **options) == found and not calls
        # Another seed changes the random condition only; another length everything.
        evaluate_table(organism, direction, sets, tmp_path, **{**options, "seed": 9})
        assert not calls
        evaluate_table(organism, direction, sets, tmp_path, **{**options, "max_new_tokens": 4})
        assert sum(map(len, calls)) == 4 * N
    loaded = EvaluationTable.load(tmp_path / "table")
    assert loaded.rates.keys() == found.rates.keys() and loaded.completions[0].max_new_tokens == 4


class Moody:
    """A judge that fails after a few replies, and disagrees with the phrases."""

    name, kind, batch_size, identity = "moody", "safety", 2, "moody"

    def __init__(self, patience):
        self.patience, self.asked = patience, 0

    def judge(self, pairs):
        self.asked += len(pairs)
        if self.asked > self.patience:
            raise JudgeError("gone")
        return [Judgement(True) for _ in pairs]


def test_a_failing_judge_costs_no_reply_and_no_verdict(organism, run, sets, tmp_path, monkeypatch):
    options = {"conditions": ["baseline"], "max_new_tokens": NEW}
    with pytest.raises(JudgeError):
        judges = [SubstringJudge(), Moody(5)]
        evaluate_table(organism, run.selection.chosen, sets, tmp_path, judges=judges, **options)
    moody = Moody(1000)
    with dies_at(monkeypatch, organism, 1):
        found = evaluate_table(
            organism, run.selection.chosen, sets, tmp_path, judges=[SubstringJudge(), moody], **options
        )
    different = len({(i.prompt, i.response) for c in found.completions for i in c})
    assert moody.asked == different - 4
    (agreement,) = found.agreements
    assert agreement.agreed.n == 2 * N and len(agreement.disagreements) == sum(
        not item.refused for c in found.completions for item in c
    )


def test_nan_logits_are_refused_and_nothing_is_lost(tmp_path):
    model = tiny_model("llama", seed=8)
    direction = direction_of(model)
    options = {"conditions": ["baseline", "addition"], "max_new_tokens": 2}
    broken = dataclasses.replace(direction, norm=1e38, coeff=1e3)
    with pytest.raises(ModelError, match="NaN or infinite logits under addition"):
        evaluate_table(model, broken, {"set": ["Hi", "Ho"]}, tmp_path, **options)
    assert len(Store(tmp_path).entries("replies/set.baseline")) == 2


def test_post_norm_models_need_the_gap_allowed():
    model = model_of("gemma2", torch.float32)
    options = {"conditions": ["orthogonalized"], "max_new_tokens": 2}
    with pytest.raises(ModelError, match="norm after its writes"):
        evaluate_table(model, direction_of(model), {"set": ["Hi"]}, **options)
    assert evaluate_table(model, direction_of(model), {"set": ["Hi"]}, allow_gap=True, **options).rates


def test_prompt_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\none\n")
    notes: list[str] = []
    assert read_prompts(str(tmp_path / "a.txt"), notes) == ("a", ["one", "two"])
    assert notes == ["1 duplicate dropped"]
    (tmp_path / "b.json").write_text(json.dumps({"train": ["x"], "test": [{"instruction": "y"}]}))
    assert read_prompts(f"mine={tmp_path / 'b.json'}", notes) == ("mine", ["y"])
    (tmp_path / "c.json").write_text("{}")
    for bad, message in (("nothing.txt", "no prompt file"), (str(tmp_path / "c.json"), "no test split")):
        with pytest.raises(PromptError, match=message):
            read_prompts(bad, notes)


def test_the_command(run, table, tmp_path):
    app = typer.Typer()
    app.command()(command.evaluate)
    (tmp_path / "mine.txt").write_text("\n".join(run.harmless.test.texts[:3]))
    base = [str(run.folder), "--condition", "baseline", "--condition", "ablation"]
    base += ["--max-new-tokens", str(NEW)]
    result = CliRunner().invoke(app, [*base, "--limit", "4", "--out", str(tmp_path / "all")])
    assert result.exit_code == 0, result.output
    assert "harmful" in result.output and "substrings" in result.output
    found = EvaluationTable.load(tmp_path / "all" / "table")
    assert found.completions[0].of("baseline") == table.completions[0].of("baseline")[:4]
    result = CliRunner().invoke(app, [*base, f"own={tmp_path / 'mine.txt'}", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "own" in result.output
    assert EvaluationTable.load(tmp_path / "out" / "table").to_frame()["n"].tolist() == [3, 3]
    twice = CliRunner().invoke(app, [*base, str(tmp_path / "mine.txt"), f"mine={tmp_path / 'mine.txt'}"])
    assert isinstance(twice.exception, PromptError) and "two prompt sets are called 'mine'" in str(twice.exception)
    result = CliRunner().invoke(app, [*base, "--judge", "oracle"])
    assert isinstance(result.exception, JudgeError)
