"""The investigation: from prompts and suffixes to a report, one file per suffix, resumable."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..attribution.components import heads as head_contributions
from ..attribution.ranking import choose_heads
from ..attribution.sources import attention_patterns, source_contributions
from ..attribution.token_records import SourceContributions
from ..data.prompts import PromptPair, PromptSet, PromptsLike, as_prompts
from ..data.suffixes import Suffix, SuffixSet
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import ModelError, PromptError
from ..models.model import HookedChatModel
from ..progress import Progress, automatic
from ..records.base import Record
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head, index_of, shortened
from ..records.store import Store, content_key
from ..refusal.metric import refused_prompts
from ..refusal.records import RefusalTokens
from ..refusal.tokens import find_refusal_tokens
from ..stats import benjamini_hochberg, paired_p
from .causal import causal_tests
from .controls import check_suffix, fitting, random_controls, shuffled_controls, suffix_ids
from .curves import head_curves
from .detection import Detectors, detectors
from .grid_records import SITES
from .grids import patching_grid
from .observation import observe, split_drop
from .observation_records import Observation, SuffixResult
from .paths import path_curves, path_effects
from .records import Investigation
from .screening import screen, token_effects
from .shifts import attention_shift

LAYOUT = 2  # of a suffix's file: raise it when its meaning changes, and older files are made again


@dataclass(frozen=True)
class Settings:
    """Settings of ``investigate``.

    Attributes:
        top: number of top heads; None for 8 (the paper's) or as many as a layer has, whichever is less.
        max_new_tokens: length of replies; 0 for none (refusals are then judged by the metric's sign).
        n_random: draws of random heads.
        causal: "working" suffixes only, "all", or "none".
        shuffled: also test the suffix's own tokens in another order.
        detail: investigate this many suffixes, those that lower the refusal metric most (all if None); benign ones are
            always investigated.
        prompts: report on at most this many refused prompts, the first ones (all if None).
        forensics: number of prompts for leave-one-token-out, paths and grids.
        shown: number of prompts whose attention patterns are kept.
        grids: sites at which cells of the random run are put into the suffixed one (``patching_grid``): takes long.
        seed: of random suffixes, heads and placebos.
    """

    top: int | None = None
    max_new_tokens: int = 24
    n_random: int = 3
    causal: str = "working"
    shuffled: bool = True
    detail: int | None = None
    prompts: int | None = None
    forensics: int = 16
    shown: int = 3
    grids: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class _Steps:
    """The conditions, and each suffix's observations and tests, as work for an engine."""

    direction: Direction
    tokens: RefusalTokens
    heads: tuple[Head, ...]
    prompts: list[str]
    choosing: list[str]
    settings: Settings

    def prepare(self, model: HookedChatModel) -> tuple[Observation, SourceContributions]:
        """The prompts without a suffix, beside which every suffix stands."""
        return self._observe(model, "plain", self.prompts)

    def run(self, model: HookedChatModel, state: tuple[Observation, SourceContributions], item: Any) -> Record:
        """One step: what ``prepare`` observed (None), another condition, a suffix observed, or its result tested."""
        if item is None:
            return state[0]
        subject, *more = item
        if isinstance(subject, str):
            return self._observe(model, subject, *more)[0]
        step: Any = self._observed if isinstance(subject, Suffix) else self._tested
        return step(model, *state, subject, *more)

    def _observe(
        self, model: HookedChatModel, condition: str, prompts: Sequence[str], suffixes: Any = None, replies: bool = True
    ) -> tuple[Observation, SourceContributions]:
        limit = self.settings.max_new_tokens if replies else 0
        return observe(model, condition, prompts, self.direction, self.heads, self.tokens, suffixes, limit)

    def _observed(
        self, model: HookedChatModel, plain: Observation, before: SourceContributions, suffix: Suffix, seed: int
    ) -> SuffixResult:
        """The suffix beside its controls."""
        prompts, settings = self.prompts, self.settings
        lengths = check_suffix(model.chat, prompts, suffix.text, model.n_ctx)
        suffixed, sources = self._observe(model, "suffix", prompts, suffix.text)
        drawn = random_controls(model.chat, prompts, suffix.text, seed)
        random, random_sources = self._observe(model, "random", prompts, drawn.texts)
        shuffled = None
        if settings.shuffled and max(lengths) > 1:
            mixed = shuffled_controls(model.chat, prompts, suffix.text, seed)
            shuffled = self._observe(model, "shuffled", prompts, mixed.texts)[0]
        p_heads = [paired_p(gap) for gap in (random.heads - suffixed.heads).flatten(0, 1).double().numpy()]
        rise = (suffixed.attention_to("suffix") - random.attention_to("suffix")).mean(-1)
        head = self.heads[int(rise.argmax())]
        shown = itertools.product(prompts[: settings.shown], ("", suffix.text))
        return SuffixResult(
            suffix=suffix,
            n_tokens=lengths,
            suffixed=suffixed,
            random=random,
            shuffled=shuffled,
            from_plain=split_drop(before, sources),
            from_random=split_drop(random_sources, sources),
            p_heads=torch.as_tensor(benjamini_hochberg(p_heads)).reshape(suffixed.heads.shape[:2]),
            p_metric=paired_p((random.metric - suffixed.metric).tolist()),
            patterns=tuple(attention_patterns(model, prompt, (head,), text) for prompt, text in shown),
        )

    def _tested(
        self, model: HookedChatModel, plain: Observation, before: SourceContributions, result: SuffixResult, seed: int
    ) -> SuffixResult:
        """The result with causal tests and token forensics."""
        settings, text, tokens = self.settings, result.suffix.text, None
        how: dict[str, Any] = {"n_random": settings.n_random, "max_new_tokens": settings.max_new_tokens, "seed": seed}
        causal = causal_tests(model, plain, result.suffixed, self.direction, self.heads, self.tokens, **how)
        if some := self.prompts[: settings.forensics]:
            sources = source_contributions(model, some, self.direction, suffixes=[text] * len(some))
            tokens = token_effects(model, some, text, sources, self.heads, self.tokens)
        return replace(result, causal=causal, tokens=tokens, **self._explained(model, result, seed, how))

    def _explained(
        self, model: HookedChatModel, result: SuffixResult, seed: int, how: dict[str, Any]
    ) -> dict[str, Any]:
        """Why attention moves and how many heads are needed; a note where this model or suffix does not allow it."""
        text, found = result.suffix.text, dict[str, Any]()
        inputs = (model, self.prompts, text, result.random.suffixes)
        try:
            check_suffix(model.chat, self.choosing, text, model.n_ctx)
            drawn = random_controls(model.chat, self.choosing, text, seed + 1).texts
            others: dict[str, Any] = {"choosing": self.choosing, "choosing_random": drawn}
            found["curves"] = head_curves(*inputs, self.direction, self.tokens, **(others | how))
            n = self.settings.forensics
            few = (model, self.prompts[:n], text, result.random.suffixes[:n])
            at = (*few, self.direction, self.tokens)
            found["grids"] = tuple(patching_grid(*at, site=site, seed=seed) for site in self.settings.grids if n)
            found["shift"] = attention_shift(*inputs, receivers=len(self.heads), **others)
            if n:
                found["paths"] = path_effects(*at, found["shift"], seed=seed)
                found["path_curves"] = path_curves(*few, self.tokens, found["shift"], seed=seed)
        except (ModelError, PromptError) as error:
            about = shortened(text.strip())
            found["notes"] = (f"{about!r}: why attention moves or how many heads it takes was not measured: {error}",)
        return found


@dataclass
class _Job:
    """What an engine measures, step by step."""

    engine: Engine
    steps: _Steps
    store: Store
    notes: list[str]

    def key(self, *more: Any) -> str:
        """Digest of everything that decides a result."""
        model, steps = self.engine.model, self.steps
        inputs = [LAYOUT, model.fingerprint, model.chat.render("{}"), str(model.dtype)]
        inputs += [steps.direction.unit, steps.direction.label]
        return content_key(*inputs, steps.tokens, steps.prompts, steps.settings.seed, steps.heads, *more)

    def map(self, label: str, items: Sequence[Any], advance: Any, *kept: Any) -> list[Any]:
        """Results of the steps ``items``, kept as ``Engine.each`` says."""
        return self.engine.map(label, self.steps, items, lambda index: advance(1), *kept)

    def measure(
        self, suffixes: SuffixSet, harmless: list[str], borderline: list[str], progress: Progress
    ) -> dict[str, Any]:
        """The measurements of an investigation, by the names of its fields."""
        texts, steps = [item.text for item in suffixes], self.steps
        shared: Any = {"store": self.store, "engine": self.engine}
        with progress("screen the suffixes", len(steps.prompts)) as advance:
            screened = screen(self.engine.model, steps.prompts, texts, steps.tokens, steps.heads, advance, **shared)
        chosen = self._chosen(suffixes, screened.metric)
        calm: list[Any] = [("harmless", harmless), ("borderline", borderline, None, False)]
        conditions = [None, *(one for one in calm if one[1])]
        with progress("read plain and harmless prompts", len(conditions)) as advance:
            plain, *others = self.map("conditions", conditions, advance)
        named = {one.condition: one for one in others}
        results, tested = self._results(suffixes, chosen, progress), None
        if quiet := named.get("harmless"):
            with progress("test the detectors", 0):
                tested = self._detectors(plain, quiet, named.get("borderline"), results)
        found = {"plain": plain, "harmless": quiet, "results": tuple(results), "detectors": tested}
        return {**found, "screened": screened.metric, "screened_strength": screened.strength}

    def _chosen(self, suffixes: SuffixSet, screened: torch.Tensor) -> list[int]:
        """Indices of the suffixes to look into."""
        attacks, detail = [i for i, item in enumerate(suffixes) if item.is_attack], self.steps.settings.detail
        if detail is None or len(attacks) <= detail:
            return list(range(len(suffixes)))
        best = set(sorted(attacks, key=lambda i: float(screened[i].mean()))[:detail])
        self.notes.append(f"{len(attacks) - detail} suffixes that lower the metric less were screened only")
        return [i for i, item in enumerate(suffixes) if i in best or not item.is_attack]

    def _results(self, suffixes: SuffixSet, chosen: list[int], progress: Progress) -> list[SuffixResult]:
        """The observations of each suffix, then the tests of whether it is the cause.

        Both are one file per suffix, filed under two keys, so that other tests do not cost the observations.
        """
        settings, chat = self.steps.settings, self.engine.model.chat
        seeds = [settings.seed + 1000 * (i + 1) for i in chosen]  # each suffix has draws of its own
        about = settings.max_new_tokens, settings.shuffled, settings.shown
        names: list[tuple[str, ...]] = [(f"suffixes/{i:04d}", self.key(suffixes[i], *about)) for i in chosen]
        with progress("observe the suffixes", len(chosen)) as advance:
            items = [(suffixes[i], seed) for i, seed in zip(chosen, seeds, strict=True)]
            seen = self.map("observe", items, advance, self.store, names)
        # A file may hold tests with other settings.
        none = dict.fromkeys(("causal", "tokens", "shift", "curves", "paths", "path_curves"))
        results = [replace(result, **none, grids=(), notes=()) for result in seen]  # type: ignore[arg-type]
        for index, result in zip(chosen, results, strict=True):
            if mixed := result.shuffled:
                pairs = zip(mixed.prompts, mixed.suffixes, result.n_tokens, strict=True)
                if unequal := sum(len(suffix_ids(chat, *pair)) != n for *pair, n in pairs):
                    self.notes.append(f"suffix {index}: {unequal} of {mixed.n} shuffled versions differ in length")
        wanted = settings.causal
        some = [k for k, one in enumerate(results) if wanted == "all" or (wanted == "working" and one.works)]
        how = self.steps.choosing, settings.n_random, settings.forensics, settings.grids
        also = [(*names[k], self.key(names[k][1], "tests, shift, replies, path curves", *how)) for k in some]
        with progress("test the suffixes", len(some)) as advance:
            tested = self.map("test", [(results[k], seeds[k]) for k in some], advance, self.store, also)
        for k, result in zip(some, tested, strict=True):
            results[k] = result
            self.notes += result.notes
        return results

    def _detectors(
        self, plain: Observation, quiet: Observation, edge: Observation | None, results: list[SuffixResult]
    ) -> Detectors:
        """Detectors on plain, suffixed, benign-suffixed and over-refusal-like prompts."""
        harmful, harmless = {"harmful": plain}, {"harmless": quiet}
        attack = next((r for r in sorted(results, key=lambda r: -r.metric_drop.mean) if r.suffix.is_attack), None)
        benign = next((r for r in results if not r.suffix.is_attack), None)
        added = {"the strongest suffix": attack, "a benign suffix": benign}
        found = {label: result for label, result in added.items() if result is not None}
        calm = [(label, quiet.prompts, result.suffix.text, False) for label, result in found.items()]
        for (label, result), seen in zip(found.items(), self.map("calm", calm, lambda n: None), strict=True):
            harmful[f"harmful + {label}"] = result.suffixed
            harmless[f"harmless + {label}"] = seen
        if edge is not None:
            harmless["harmless, looks harmful"] = edge
        return detectors(harmful, harmless, self.steps.direction.layer)


def investigate(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffixes: SuffixSet | Sequence[Any] | str,
    direction: DirectionLike,
    *,
    harmless: PromptsLike = (),
    head_prompts: PromptsLike = (),
    refusal_tokens: RefusalTokens | None = None,
    borderline: PromptsLike = (),
    settings: Settings | None = None,
    folder: str | Path | None = None,
    progress: Progress = automatic,
    engine: Engine | None = None,
) -> Investigation:
    """Investigate suffixes: where each acts, through which heads and tokens, and whether that is the cause.

    Args:
        prompts: harmful requests; those that the model does not refuse are left out. Of a ``PromptSet`` the
            validation split chooses the heads and the test split is reported on. A ``PromptPair`` gives both kinds.
        suffixes: the suffixes (input data): a set, rows, or one string.
        direction: r̂, or the result of ``find_direction`` (then with its refusal tokens).
        harmless: harmless requests, for the detectors, the trace, and to find the refusal tokens.
        head_prompts: harmful requests that choose the top heads; if none, the first third of ``prompts``, which is then
            not reported on.
        refusal_tokens: found from ``head_prompts`` and ``harmless`` if None.
        borderline: harmless requests that look harmful (over-refusal), for the detectors.
        folder: keep each suffix's result here and skip those already there with the same inputs.
        engine: spreads the suffixes over its workers; this process if None.

    Raises:
        PromptError: no refused prompt left, overlapping prompts, or no suffix that fits (see ``check_suffix``).
        DirectionError: a direction of another model.
    """
    if isinstance(prompts, PromptPair):
        harmless = harmless or prompts.harmless
        prompts = prompts.harmful
    refusal_tokens = refusal_tokens or getattr(direction, "refusal_tokens", None)
    direction = as_direction(direction)
    model.check_direction(direction)
    settings = settings or Settings()
    if settings.causal not in ("working", "all", "none"):
        raise PromptError(f"causal={settings.causal!r}: choose working, all or none")
    for site in settings.grids:
        index_of(SITES, site, "site", "patching")
    if not isinstance(suffixes, SuffixSet):
        suffixes = SuffixSet.from_rows([suffixes] if isinstance(suffixes, str) else list(suffixes))
    candidates, choosing = _prompts(prompts, head_prompts)
    harmless, borderline = as_prompts(harmless, "test"), as_prompts(borderline, "test")
    if refusal_tokens is None:
        if not harmless:
            raise PromptError("give harmless prompts (or refusal_tokens), from which the refusal tokens are found")
        refusal_tokens = find_refusal_tokens(model, choosing, harmless)
    with progress("find the refused prompts", 0):
        refused, n_read = refused_prompts(model, candidates, refusal_tokens, settings.prompts)
    notes = list(suffixes.notes)
    if len(refused) < n_read:
        notes.append(f"{n_read - len(refused)} of {n_read} prompts left out: not refused without a suffix")
    suffixes = fitting(model, refused, suffixes, settings.max_new_tokens, notes)
    heads = choose_heads(head_contributions(model, choosing, direction), settings.top or min(8, model.n_heads))
    steps = _Steps(direction, refusal_tokens, heads, refused, choosing, settings)
    job = _Job(engine or LocalEngine(model), steps, Store(folder), notes)
    found = job.measure(suffixes, harmless, borderline, progress)
    report = Investigation(
        model=model.name,
        direction=direction,
        refusal_tokens=refusal_tokens,
        top_heads=heads,
        head_prompts=tuple(choosing),
        suffixes=suffixes.items,
        n_asked=n_read,
        notes=tuple(notes),
        post_labels=model.chat.post_labels(),
        **found,
    )
    return job.store.put("report", report)


def _prompts(prompts: PromptsLike, head_prompts: PromptsLike) -> tuple[list[str], list[str]]:
    """(prompts to report on, prompts that choose the heads), disjoint."""
    reported = as_prompts(prompts, "test")
    choosing = as_prompts(head_prompts, "val")
    if not choosing and isinstance(prompts, PromptSet):
        choosing = list(prompts.val)
    if not choosing:
        third = max(1, len(reported) // 3)
        reported, choosing = reported[third:], reported[:third]
    if not reported:
        raise PromptError("no prompts are left to report on; give at least two")
    if shared := set(reported) & set(choosing):
        raise PromptError(
            f"{len(shared)} prompt(s) would choose the heads and be reported on, e.g. {min(shared)[:60]!r}: remove "
            "them from one of the lists"
        )
    return reported, choosing
