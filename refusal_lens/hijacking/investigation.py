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
from ..errors import ModelError, PromptError
from ..models.model import HookedChatModel
from ..progress import Progress, automatic
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head, index_of, shortened
from ..records.store import Store, content_key
from ..refusal.metric import refusal_metric
from ..refusal.records import RefusalTokens
from ..refusal.tokens import find_refusal_tokens
from ..stats import benjamini_hochberg, paired_p
from .causal import causal_tests
from .controls import check_suffix, random_controls, shuffled_controls, suffix_ids
from .curves import head_curves
from .detection import Detectors, detectors
from .grid_records import SITES
from .grids import patching_grid
from .observation import observe, split_drop
from .observation_records import Observation, SuffixResult
from .paths import path_effects
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


@dataclass
class _Job:
    """What all suffixes share, and the steps of one of them."""

    model: HookedChatModel
    direction: Direction
    tokens: RefusalTokens
    heads: tuple[Head, ...]
    prompts: list[str]
    choosing: list[str]
    settings: Settings
    store: Store
    notes: list[str]

    def key(self, *more: Any) -> str:
        """Digest of everything that decides a result."""
        model, direction = self.model, self.direction
        inputs = [LAYOUT, model.fingerprint, model.chat.render("{}"), str(model.dtype), direction.unit, direction.label]
        return content_key(*inputs, self.tokens, self.prompts, self.settings.seed, self.heads, *more)

    def observe(
        self, condition: str, prompts: Sequence[str], suffixes: str | Sequence[str] | None = None, replies: bool = True
    ) -> tuple[Observation, SourceContributions]:
        """``observe`` with this job's model, direction and heads."""
        limit = self.settings.max_new_tokens if replies else 0
        return observe(self.model, condition, prompts, self.direction, self.heads, self.tokens, suffixes, limit)

    def measure(
        self, suffixes: SuffixSet, harmless: list[str], borderline: list[str], progress: Progress
    ) -> dict[str, Any]:
        """The measurements of an investigation, by the names of its fields."""
        texts = [item.text for item in suffixes]
        with progress("screen the suffixes", len(self.prompts)) as advance:
            screened = screen(self.model, self.prompts, texts, self.tokens, self.heads, advance, store=self.store)
        chosen = self._chosen(suffixes, screened.metric)
        with progress("read plain and harmless prompts", 0):
            self.plain, self.plain_sources = self.observe("plain", self.prompts)
            quiet = self.observe("harmless", harmless)[0] if harmless else None
            edge = self.observe("borderline", borderline, replies=False)[0] if borderline else None
        results, tested = [], None
        with progress("investigate the suffixes", len(chosen)) as advance:
            for index in chosen:
                results.append(self._one(suffixes[index], index))
                advance(1)
        if quiet is not None:
            with progress("test the detectors", 0):
                tested = self._detectors(quiet, edge, results)
        found = {"plain": self.plain, "harmless": quiet, "results": tuple(results), "detectors": tested}
        return {**found, "screened": screened.metric, "screened_strength": screened.strength}

    def _chosen(self, suffixes: SuffixSet, screened: torch.Tensor) -> list[int]:
        """Indices of the suffixes to look into."""
        attacks, detail = [i for i, item in enumerate(suffixes) if item.is_attack], self.settings.detail
        if detail is None or len(attacks) <= detail:
            return list(range(len(suffixes)))
        best = set(sorted(attacks, key=lambda i: float(screened[i].mean()))[:detail])
        self.notes.append(f"{len(attacks) - detail} suffixes that lower the metric less were screened only")
        return [i for i, item in enumerate(suffixes) if i in best or not item.is_attack]

    def _one(self, suffix: Suffix, index: int) -> SuffixResult:
        """One suffix: the observations, then the tests of whether it is the cause.

        Each step is taken from the suffix's file if it is there, so that a kill costs the step under way, and other
        tests do not cost the observations.
        """
        settings, name = self.settings, f"suffixes/{index:04d}"
        seed = settings.seed + 1000 * (index + 1)  # each suffix has draws of its own
        key = self.key(suffix, settings.max_new_tokens, settings.shuffled, settings.shown)
        result = self.store.get(name, key, SuffixResult)
        if result is None:
            result = self.store.put(name, self._observed(suffix, seed), key)
        if mixed := result.shuffled:
            pairs = zip(mixed.prompts, mixed.suffixes, result.n_tokens, strict=True)
            if unequal := sum(len(suffix_ids(self.model.chat, *pair)) != n for *pair, n in pairs):
                self.notes.append(f"suffix {index}: {unequal} of {mixed.n} shuffled versions differ in length")
        if settings.causal == "none" or (settings.causal == "working" and not result.works):
            return replace(result, causal=None, tokens=None, shift=None, curves=None, paths=None, grids=())
        more = settings.n_random, settings.forensics, settings.grids
        tested = self.key(key, "tests, shift, replies", self.choosing, *more)
        if self.store.get(name, tested, SuffixResult) is None:
            result = self.store.put(name, self._tested(result, seed), key, tested)
        return result

    def _observed(self, suffix: Suffix, seed: int) -> SuffixResult:
        """The suffix beside its controls."""
        model, prompts, settings = self.model, self.prompts, self.settings
        lengths = check_suffix(model.chat, prompts, suffix.text, model.n_ctx)
        suffixed, sources = self.observe("suffix", prompts, suffix.text)
        drawn = random_controls(model.chat, prompts, suffix.text, seed)
        random, random_sources = self.observe("random", prompts, drawn.texts)
        shuffled = None
        if settings.shuffled and max(lengths) > 1:
            mixed = shuffled_controls(model.chat, prompts, suffix.text, seed)
            shuffled = self.observe("shuffled", prompts, mixed.texts)[0]
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
            from_plain=split_drop(self.plain_sources, sources),
            from_random=split_drop(random_sources, sources),
            p_heads=torch.as_tensor(benjamini_hochberg(p_heads)).reshape(suffixed.heads.shape[:2]),
            p_metric=paired_p((random.metric - suffixed.metric).tolist()),
            patterns=tuple(attention_patterns(model, prompt, (head,), text) for prompt, text in shown),
        )

    def _tested(self, result: SuffixResult, seed: int) -> SuffixResult:
        """The result with causal tests and token forensics."""
        model, settings, text = self.model, self.settings, result.suffix.text
        causal = causal_tests(
            model,
            self.plain,
            result.suffixed,
            self.direction,
            self.heads,
            self.tokens,
            n_random=settings.n_random,
            max_new_tokens=settings.max_new_tokens,
            seed=seed,
        )
        some = self.prompts[: settings.forensics]
        tokens = None
        if some:
            sources = source_contributions(model, some, self.direction, suffixes=[text] * len(some))
            tokens = token_effects(model, some, text, sources, self.heads, self.tokens)
        return replace(result, causal=causal, tokens=tokens, **self._explained(result, seed))

    def _explained(self, result: SuffixResult, seed: int) -> dict[str, Any]:
        """Why attention moves and how many heads are needed; a note where this model or suffix does not allow it."""
        model, text, found = self.model, result.suffix.text, dict[str, Any]()
        inputs = (model, self.prompts, text, result.random.suffixes)
        try:
            check_suffix(model.chat, self.choosing, text, model.n_ctx)
            drawn = random_controls(model.chat, self.choosing, text, seed + 1).texts
            others: dict[str, Any] = {"choosing": self.choosing, "choosing_random": drawn}
            more: dict[str, Any] = {**others, "n_random": self.settings.n_random, "seed": seed}
            more["max_new_tokens"] = self.settings.max_new_tokens
            found["curves"] = head_curves(*inputs, self.direction, self.tokens, **more)
            n = self.settings.forensics
            few = (model, self.prompts[:n], text, result.random.suffixes[:n], self.direction, self.tokens)
            found["grids"] = tuple(patching_grid(*few, site=site, seed=seed) for site in self.settings.grids if n)
            found["shift"] = attention_shift(*inputs, receivers=len(self.heads), **others)
            found["paths"] = path_effects(*few, found["shift"], seed=seed) if n else None
        except (ModelError, PromptError) as error:
            about = shortened(text.strip())
            self.notes.append(f"{about!r}: why attention moves or how many heads it takes was not measured: {error}")
        return found

    def _detectors(self, quiet: Observation, edge: Observation | None, results: list[SuffixResult]) -> Detectors:
        """Detectors on plain, suffixed, benign-suffixed and over-refusal-like prompts."""
        harmful, harmless = {"harmful": self.plain}, {"harmless": quiet}
        attack = next((r for r in sorted(results, key=lambda r: -r.metric_drop.mean) if r.suffix.is_attack), None)
        benign = next((r for r in results if not r.suffix.is_attack), None)
        for label, result in (("the strongest suffix", attack), ("a benign suffix", benign)):
            if result is not None:
                harmful[f"harmful + {label}"] = result.suffixed
                calm = self.observe(label, quiet.prompts, result.suffix.text, replies=False)[0]
                harmless[f"harmless + {label}"] = calm
        if edge is not None:
            harmless["harmless, looks harmful"] = edge
        return detectors(harmful, harmless, self.direction.layer)


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
    job = _Job(model, direction, refusal_tokens, heads, refused, choosing, settings, Store(folder), notes)
    found = job.measure(suffixes, harmless, borderline, progress)
    return job.store.put(
        "report",
        Investigation(
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
        ),
    )


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


def fitting(
    model: HookedChatModel, prompts: list[str], suffixes: SuffixSet, max_new_tokens: int, notes: list[str]
) -> SuffixSet:
    """The suffixes that can be investigated; the others are noted, each with its reason."""
    kept, reason = [], PromptError("there is no suffix: give at least one")
    for item in suffixes:
        try:
            check_suffix(model.chat, prompts, item.text, model.n_ctx - max_new_tokens if model.n_ctx else 0)
            kept.append(item)
        except PromptError as error:
            notes.append(f"suffix {shortened(item.text.strip())!r} left out: {error}")
            reason = error
    if not kept:
        raise reason
    return replace(suffixes, items=tuple(kept))


def refused_prompts(
    model: HookedChatModel, prompts: list[str], tokens: RefusalTokens, limit: int | None
) -> tuple[list[str], int]:
    """(the refused prompts, the first ``limit`` of them; how many prompts were read to find them)."""
    kept: list[str] = []
    highest, step = float("-inf"), 64
    for start in range(0, len(prompts), step):
        some = prompts[start : start + step]
        metric = refusal_metric(model, some, tokens).tolist()
        highest = max(highest, *metric)
        for i, (prompt, value) in enumerate(zip(some, metric, strict=True), start=start + 1):
            kept += [prompt] if value > tokens.threshold else []
            if len(kept) == limit:
                return kept, i
    if not kept:
        raise PromptError(
            f"no refused prompt is left: {model.name} refuses none of {len(prompts)} prompts without a suffix (highest "
            f"refusal metric {highest:.2f}, must be > {tokens.threshold:.3g}); use prompts that it refuses"
        )
    return kept, len(prompts)
