"""A row for every stage of a default run, beside a plain implementation where one makes sense, and one for the run."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusal_lens.data.organism import suffixes as embedded_suffixes
from refusal_lens.data.prompts import load_prompts
from refusal_lens.data.suffixes import SuffixSet
from refusal_lens.direction.dose import FIRST, STRENGTHS
from refusal_lens.direction.select import SelectionRule, choose
from refusal_lens.direction.stage import REPLIES_AT, STRENGTH_PROMPTS, STRENGTH_TOKENS
from refusal_lens.engines.local import LocalEngine
from refusal_lens.engines.stage import Job, Stage
from refusal_lens.errors import RefusalLensError
from refusal_lens.hooks.attention import random_heads
from refusal_lens.models.texts import reply_tokens
from refusal_lens.progress import silent
from refusal_lens.refusal.phrases import is_refusal
from refusal_lens.refusal.tokens import N_PROMPTS
from refusal_lens.study.config import StudyConfig
from refusal_lens.study.pipeline import run_study
from refusal_lens.study.stages import planned

from . import plain_stages
from .measure import Measured, measure
from .plain import Plain, nonzero
from .rows import Ground, Row, beside, row

NOTHING = Measured(None, math.nan, math.nan, math.nan, 0.0)
Side = tuple[Callable[[], Any], Callable[[Any, Any], str]]  # plain work; (ours, plain) -> how they agree


class Bench(Job):
    """A study's job without its folder: every stage runs anew."""

    progress = staticmethod(silent)

    def __init__(self, g: Ground, config: StudyConfig, folder: Path):
        self.g, self.config, self.folder = g, config, folder
        self.made = LocalEngine(g.model)

    @property
    def model(self) -> Any:
        """The model of all rows."""
        return self.g.model

    @property
    def engine(self) -> Any:
        """This process."""
        return self.made

    def input(self, name: str) -> Any:
        """Prompts and suffixes of the settings."""
        if name == "prompts":
            return tuple(load_prompts(*self.config.sources(), sizes=self.config.sizes, seed=self.config.seed))
        chosen = self.config.suffixes
        return SuffixSet.load(embedded_suffixes() if chosen == "organism" else str(chosen))


def stage_rows(g: Ground) -> Iterator[Row]:
    """Every stage in order, each on what the stages before it made."""
    made = dict[str, Any]()
    g = replace(g, plain=Plain(g.plain.hf, g.plain.tokenize, g.tokens.ids))  # the study finds tokens of its own
    with tempfile.TemporaryDirectory() as folder:
        for stage in planned(g.config):
            job = Bench(g, g.config, Path(folder))
            given = [made[name] for name in stage.needs]

            def ours(stage: Stage = stage, given: list[Any] = given, job: Bench = job) -> Any:
                job.folder = Path(tempfile.mkdtemp(dir=folder))  # a stage with files of its own would read them again
                return stage.run(job, *given)

            if any(x is None for x in given):
                made[stage.name] = None
                continue
            try:
                found, plain, note = _sides(g, ours, _plain(g, job, stage.name, made), stage.name)
            except RefusalLensError as error:
                if not stage.optional:
                    raise
                made[stage.name] = None
                print(f"stage {stage.name} is left out: {error}", flush=True)
                continue
            made[stage.name] = found.value
            yield row(f"stage {stage.name}", 2 * sum(g.config.sizes), found, plain, 0, 0.0, note)


def _sides(g: Ground, ours: Callable[[], Any], side: Side | None, name: str) -> tuple[Measured, Measured, str]:
    """Both sides and how they agree; ours alone, once, where there is no plain one."""
    if side is None:
        return measure(ours), NOTHING, ALONE.get(name, "seconds only")
    found, plain = beside(g, ours, side[0], times=g.turns)
    return found, plain, side[1](found.value, plain.value)


def run_row(g: Ground) -> Row:
    """The whole run: all stages, files and report."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(lambda: run_study(g.config, Path(folder) / "run", progress=silent, model=g.model))
    note = "seconds only: all stages, their files and the report; plain sides stand at the stages"
    return row("whole run", 2 * sum(g.config.sizes), found, NOTHING, 0, 0.0, note)


ALONE = {
    "conversations": "seconds only: a forward of two conversations per condition, and texts",
    "harm": "seconds only: projections of the trace, at one more token, and placebos",
    "stability": "seconds only: extraction and selection above, once per resample",
    "logits": "seconds only: heads above, along an unembedding",
    "lens": "seconds only: one product with the unembedding",
    "attacks": "seconds only: the rows suffix batch, split and curve are its parts",
    "certificate": "seconds only: it compares identities, each with a plain side of its own",
    "model": "seconds only: nothing is run",
}


def _plain(g: Ground, job: Bench, name: str, made: Mapping[str, Any]) -> Side | None:
    """The plain side of a stage, or None."""
    sides: dict[str, Callable[[], Side]] = {
        "refusal_tokens": lambda: _tokens(g, job),
        "prompts": lambda: _filter(g, job, made["refusal_tokens"]),
        "candidates": lambda: _candidates(g, made),
        "selection": lambda: _selection(g, job, made),
        "trace": lambda: _trace(g, made),
        "metrics": lambda: _metrics(g, job, made),
        "completions_harmful": lambda: _replies(g, job, made, 0),
        "completions_harmless": lambda: _replies(g, job, made, 1),
        "strengths": lambda: _strengths(g, job, made),
        "heads": lambda: _heads(g, made),
        "causal": lambda: _causal(g, job, made),
        "propagation": lambda: _travel(g, job, made),
        "sources": lambda: _sources(g, job, made),
        "patterns": lambda: _patterns(g, made),
    }
    return sides[name]() if name in sides else None


def _told(g: Ground, prompts: Sequence[str], new: int) -> list[list[int]]:
    return plain_stages.replies(g.plain, prompts, new, g.model.eos_ids, g.model.chat.pad_id)


def _texts(g: Ground, ids: Sequence[Sequence[int]]) -> list[str]:
    return [g.model.tokenizer.decode(row, skip_special_tokens=True) for row in ids]


def _tokens(g: Ground, job: Bench) -> Side:
    some = [list(p.train[:N_PROMPTS]) for p in job.input("prompts")]

    def work() -> tuple[Tensor, list[bool]]:
        logits = torch.cat([g.plain.last_logits(texts, keep=1) for texts in some])
        said = [text for texts in some for text in _texts(g, _told(g, texts, 24))]
        return logits, [is_refusal(text) for text in said]

    def agree(ours: Any, plain: Any) -> str:
        g.plain.refusal_ids = list(ours.ids)
        gap = g.gap("metric", torch.tensor(ours.calibration.metric), g.plain.metric(plain[0]))
        same = sum(a == b for a, b in zip(ours.calibration.refused, plain[1], strict=True))
        return f"{gap}; {same} of {len(plain[1])} verdicts equal"

    return work, agree


def _filter(g: Ground, job: Bench, tokens: Any) -> Side:
    def work() -> list[list[str]]:
        found = []
        for kind, refused in zip(job.input("prompts"), (True, False), strict=True):
            for some, spare in ((kind.train, kind.spare_train), (kind.val, kind.spare_val)):
                found.append(plain_stages.kept(g.plain, list(some), list(spare), refused, tokens.threshold))
        return found

    def agree(ours: Any, plain: Any) -> str:
        same = [list(getattr(kind, split)) for kind in ours for split in ("train", "val")] == plain
        return f"the same prompts kept: {same}"

    return work, agree


def _pair(made: Mapping[str, Any], split: str) -> tuple[list[str], list[str]]:
    harmful, harmless = (list(getattr(kind, split)) for kind in made["prompts"])
    return harmful, harmless


def _candidates(g: Ground, made: Mapping[str, Any]) -> Side:
    n = len(g.model.chat.post_labels())
    return (
        lambda: g.plain.mean_diff(*_pair(made, "train"), n),
        lambda ours, plain: (
            g.gap("mean differences", ours.mean_diff, plain) + "; ours also takes the stream's statistics"
        ),
    )


def _selection(g: Ground, job: Bench, made: Mapping[str, Any]) -> Side:
    r, val = made["candidates"].mean_diff, _pair(made, "val")
    timed = nonzero(r)[:: g.every]
    rule = SelectionRule(job.config.max_kl, made["refusal_tokens"].threshold, job.config.layer_cutoff)

    def agree(ours: Any, plain: Tensor) -> str:
        known = ~torch.isnan(plain[0]) & ~torch.isnan(ours.scores.bypass)
        gap = g.gap("bypass", ours.scores.bypass[known], plain[0][known])
        if len(timed) < len(nonzero(r)):
            return f"{gap}; plain on {len(timed)} of {len(nonzero(r))} candidates"
        scores = type(ours.scores)(*plain)
        return f"{gap}; the same winner: {choose(scores, rule).chosen == (ours.chosen.pos, ours.chosen.layer)}"

    return lambda: g.plain.select(r, *val, job.config.coeff, timed), agree


def _trace(g: Ground, made: Mapping[str, Any]) -> Side:
    unit, sets = made["selection"].chosen.unit, _pair(made, "test")
    n = min(map(len, sets))
    return (
        lambda: torch.stack([plain_stages.trace(g.plain, texts[:n], unit) for texts in sets]),
        lambda ours, plain: g.gap("projections", ours.projection, plain),
    )


def _conditions(g: Ground, job: Bench, made: Mapping[str, Any]) -> list[list[Callable[[], AbstractContextManager]]]:
    """By kind of prompt: baseline, the effect, its placebo."""
    direction = made["selection"].chosen
    placebo = direction.random_control(job.config.seed + 1)
    both = [direction.vector.double(), placebo.vector.double()]
    ablations = [lambda r=r: g.plain.ablated(r) for r in both]
    additions = [lambda r=r: g.plain.added(direction.coeff * r, direction.layer) for r in both]
    return [[nullcontext, *ablations], [nullcontext, *additions]]


def _metrics(g: Ground, job: Bench, made: Mapping[str, Any]) -> Side:
    sets, conditions = _pair(made, "test"), _conditions(g, job, made)

    def work() -> Tensor:
        means = []
        for prompts, under in zip(sets, conditions, strict=True):
            for enter in under:
                with enter():
                    means.append(g.plain.metric(g.plain.last_logits(prompts, keep=1)).mean())
        return torch.stack(means)

    def agree(ours: Any, plain: Tensor) -> str:
        means = [x.mean for kind in (ours.harmful_all, ours.harmless) for x in kind.values()]
        return g.gap("means", torch.tensor(means, dtype=torch.float64), plain)

    return work, agree


def _replies(g: Ground, job: Bench, made: Mapping[str, Any], kind: int) -> Side:
    prompts, conditions = _pair(made, "test")[kind], _conditions(g, job, made)[kind]

    def work() -> list[str]:
        found = []
        for enter in conditions:
            with enter():
                found += _texts(g, _told(g, prompts, job.config.max_new_tokens))
        return found

    def agree(ours: Any, plain: list[str]) -> str:
        said = [item.response for item in ours.items]
        same = sum(a == g.model.chat.split(b).answer for a, b in zip(said, plain, strict=True))
        return f"{same} of {len(plain)} replies equal, to the letter"

    return work, agree


def _strengths(g: Ground, job: Bench, made: Mapping[str, Any]) -> Side:
    sides = [texts[:STRENGTH_PROMPTS] for texts in _pair(made, "test")]
    n = min(map(len, sides))
    sides, direction = [texts[:n] for texts in sides], made["selection"].chosen
    grid = {name: STRENGTHS[name] for name in ("ablation", "addition")}

    def work() -> Tensor:
        said = [_texts(g, _told(g, texts, STRENGTH_TOKENS)) for texts in sides]
        own = [reply_tokens(g.model, texts, told) for texts, told in zip(sides, said, strict=True)]
        acts = {"ablation": (sides[0], own[1]), "addition": (sides[1], own[0])}
        under = plain_stages.edits(g.plain, direction, direction.random_control(job.config.seed + 1), grid)
        found = []
        for name, strengths in grid.items():
            found.append(plain_stages.doses(g.plain, *acts[name], under[name], FIRST))
            for i, edit in enumerate(under[name]):
                if strengths[i // 2] in REPLIES_AT:
                    with edit():
                        _told(g, acts[name][0], STRENGTH_TOKENS)
        return torch.cat(found)

    def agree(ours: Any, plain: Tensor) -> str:
        measured = ours.values[0, :, :, 2:5].reshape(-1, 3, n)
        return "; ".join(g.gap(name, measured[:, i], plain[:, i]) for i, name in enumerate(("metric", "KL", "loss")))

    return work, agree


def _heads(g: Ground, made: Mapping[str, Any]) -> Side:
    unit, (harmful, harmless) = made["selection"].chosen.unit, made["prompts"]
    sets = [list(harmful.val), list(harmful.test), list(harmless.test)]

    def agree(ours: Any, plain: list[Tensor]) -> str:
        found = torch.cat([x.values for x in (ours.chosen_on, ours.reported, ours.contrast)], -1)
        return g.gap("writes", found, torch.cat(plain, -1)) + "; ours also tests and adds intervals"

    return lambda: [plain_stages.heads(g.plain, texts, unit) for texts in sets], agree


def _some(job: Bench, made: Mapping[str, Any]) -> list[str]:
    return _pair(made, "test")[0][: job.config.inside_prompts]


def _causal(g: Ground, job: Bench, made: Mapping[str, Any]) -> Side:
    """Every set of heads replaced by the mean over harmless prompts, or by the outputs on one of them."""
    some, reference = (texts[: job.config.inside_prompts] for texts in _pair(made, "test"))
    named, direction = made["heads"].heads, made["selection"].chosen
    every = [(layer, head) for layer in range(g.model.n_layers) for head in range(g.model.n_heads)]

    def work() -> tuple[Tensor, Tensor]:
        rng = random.Random(0)
        z = plain_stages.last_z(g.plain, reference)
        mean = z.float().mean(1, keepdim=True).to(z.dtype)
        donors = z[:, [rng.randrange(len(reference)) for _ in some]]
        draws = [random_heads(g.model, named, rng) for _ in range(5)]

        def metric(heads: Any, values: Tensor = mean) -> Tensor:
            return plain_stages.replaced(g.plain, some, values, heads)

        def effects(heads: Any) -> Tensor:
            others = [head for head in every if head not in heads]
            return torch.stack([metric(heads), metric(heads, donors), metric(others)])

        rows = [metric(()), *effects(named), *torch.stack([effects(draw) for draw in draws]).mean(0), metric(every)]
        with g.plain.ablated(direction.vector.double()):
            rows.append(g.plain.metric(g.plain.last_logits(some, keep=1)).cpu())
        singles = dict.fromkeys([*named, *(head for draw in draws for head in draw)])
        return torch.stack(rows), torch.stack([metric([head]) - rows[0] for head in singles])

    def agree(ours: Any, plain: tuple[Tensor, Tensor]) -> str:
        return g.gap("conditions", ours.metric, plain[0]) + "; " + g.gap("single heads", ours.measured, plain[1])

    return work, agree


def _travel(g: Ground, job: Bench, made: Mapping[str, Any]) -> Side:
    unit, some = made["selection"].chosen.unit, _some(job, made)

    def agree(ours: Any, plain: Tensor) -> str:
        there = ours.projection[0].isfinite()
        return (
            g.gap("projections", ours.projection[:, there], plain) + "; ours also reads what attention and MLPs write"
        )

    return lambda: plain_stages.travel(g.plain, some, unit), agree


def _sources(g: Ground, job: Bench, made: Mapping[str, Any]) -> Side:
    unit, some = made["selection"].chosen.unit, _some(job, made)

    def agree(ours: Any, plain: list[Tensor]) -> str:
        own = [ours.values[:, :, i, -x.shape[-1] :].flatten() for i, x in enumerate(plain)]
        return g.gap("contributions", torch.cat(own), torch.cat([x.flatten() for x in plain]))

    return lambda: [found for found, _ in plain_stages.sources(g.plain, some, unit)], agree


def _patterns(g: Ground, made: Mapping[str, Any]) -> Side:
    unit, prompt = made["selection"].chosen.unit, _pair(made, "test")[0][:1]

    def agree(ours: Any, plain: Tensor) -> str:
        return g.gap("weights", ours.values, torch.stack([plain[layer, head] for layer, head in ours.heads]))

    return lambda: next(plain_stages.sources(g.plain, prompt, unit))[1], agree
