"""The investigation: from prompts and suffixes to a report, one file per suffix, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..attribution.components import heads as head_contributions
from ..attribution.ranking import choose_heads
from ..attribution.sources import attention_patterns, source_contributions
from ..attribution.token_records import SourceContributions
from ..data.prompts import PromptPair, PromptSet, PromptsLike, as_prompts
from ..data.suffixes import Suffix, SuffixSet
from ..errors import PromptError
from ..models.model import HookedChatModel
from ..progress import Progress, automatic
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head
from ..records.store import Store, content_key
from ..refusal.metric import refusal_metric
from ..refusal.records import RefusalTokens
from ..refusal.tokens import find_refusal_tokens
from ..stats import benjamini_hochberg
from .causal import causal_tests
from .controls import check_suffix, random_controls, shuffled_controls, suffix_length
from .detection import detectors
from .observation import observe, split_drop
from .observation_records import Observation, SuffixResult
from .records import Investigation
from .screening import screen
from .statistics import paired_p
from .tokens import token_effects

LAYOUT = 2  # of a suffix's file: raise it when its meaning changes, and older files are made again


@dataclass(frozen=True)
class Settings:
    """What ``hijacking`` does beyond its inputs.

    Attributes:
        top: number of top heads; 8 (the paper's) or as many as a layer has, whichever is less, if None.
        max_new_tokens: length of replies; 0 for none (refusals are then judged by the metric's sign).
        n_random: draws of random heads.
        causal: "working" suffixes only, "all", or "none".
        shuffled: also the suffix's own tokens in another order.
        detail: look into this many suffixes, those that lower the refusal metric most (all if None); benign ones are
            always looked into.
        prompts: report on this many refused prompts at most, the first ones (all if None).
        forensics: prompts for leave-one-token-out.
        shown: prompts of which attention patterns are kept.
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
    seed: int = 0


@dataclass
class _Job:
    """What all suffixes share."""

    model: HookedChatModel
    direction: Direction
    tokens: RefusalTokens
    settings: Settings
    store: Store
    inputs: list[Any]
    heads: tuple[Head, ...] = ()
    notes: list[str] = field(default_factory=list)

    def observe(
        self, condition: str, prompts: Sequence[str], suffixes: Sequence[str] | None = None, replies: bool = True
    ) -> tuple[Observation, SourceContributions]:
        """``observe`` with this job's model, direction and heads."""
        limit = self.settings.max_new_tokens if replies else 0
        return observe(self.model, condition, prompts, self.direction, self.heads, self.tokens, suffixes, limit)

    def key(self, *more: Any) -> str:
        """Digest of everything that decides a result."""
        return content_key(*self.inputs, self.heads, *more)


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
    """Take suffixes apart: where each acts, through which heads and tokens, and whether that is the cause.

    Args:
        model: the model.
        prompts: harmful requests; those that the model does not refuse are left out. Of a ``PromptSet`` the
            validation split chooses the heads and the test split is reported on. A ``PromptPair`` gives both kinds.
        suffixes: the suffixes (input data): a set, rows, or one string.
        direction: r̂, or what ``find_direction`` returned (then with its refusal tokens).
        harmless: harmless requests, for the detectors, the trace, and to find the refusal tokens.
        head_prompts: harmful requests that choose the top heads; if none, the first third of ``prompts``, which is then
            not reported on.
        refusal_tokens: found from ``head_prompts`` and ``harmless`` if None.
        borderline: harmless requests that look harmful (over-refusal), for the detectors.
        settings: see ``Settings``.
        folder: keep each suffix's result here and skip those already there with the same inputs.
        progress: called with a stage's name and its total.

    Raises:
        PromptError: no refused prompt left, overlapping prompts, or a suffix that does not fit (see ``check_suffix``).
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
    if not isinstance(suffixes, SuffixSet):
        suffixes = SuffixSet.from_rows([suffixes] if isinstance(suffixes, str) else list(suffixes))
    candidates, choosing = _prompts(prompts, head_prompts)
    harmless, borderline = as_prompts(harmless, "test"), as_prompts(borderline, "test")
    if refusal_tokens is None:
        if not harmless:
            raise PromptError("give harmless prompts (or refusal_tokens), from which the refusal tokens are found")
        refusal_tokens = find_refusal_tokens(model, choosing, harmless)
    with progress("find the refused prompts", 0):
        refused, n_read = _refused(model, candidates, refusal_tokens, settings.prompts)
    notes = list(suffixes.notes)
    if len(refused) < n_read:
        notes.append(f"{n_read - len(refused)} of {n_read} prompts left out: not refused without a suffix")
    for item in suffixes:
        check_suffix(model.chat, refused, item.text, model.n_ctx - settings.max_new_tokens if model.n_ctx else 0)
    inputs = [LAYOUT, model.fingerprint, model.chat.render("{}"), str(model.dtype)]
    inputs += [direction.unit, direction.label, refusal_tokens, refused, settings.seed]
    job = _Job(model, direction, refusal_tokens, settings, Store(folder), inputs, notes=notes)
    job.heads = choose_heads(head_contributions(model, choosing, direction), settings.top or min(8, model.n_heads))
    made = _investigated(job, suffixes, refused, harmless, borderline, progress)
    return job.store.put(
        "report",
        Investigation(
            model=model.name,
            direction=direction,
            refusal_tokens=refusal_tokens,
            top_heads=job.heads,
            head_prompts=tuple(choosing),
            suffixes=suffixes.items,
            n_asked=n_read,
            notes=tuple(job.notes),
            post_labels=model.chat.post_labels(),
            **made,
        ),
    )


def _investigated(
    job: _Job, suffixes: SuffixSet, refused: list[str], harmless: list[str], borderline: list[str], progress: Progress
) -> dict[str, Any]:
    """The measurements of an investigation, by the names of its fields."""
    texts = [item.text for item in suffixes]
    with progress("screen the suffixes", len(refused)) as advance:
        screened = screen(job.model, refused, texts, job.tokens, job.heads, advance, store=job.store)
    chosen = _chosen(suffixes, screened.metric, job.settings.detail, job.notes)
    with progress("look at plain and harmless prompts", 0):
        plain, plain_sources = job.observe("plain", refused)
        on_harmless = job.observe("harmless", harmless)[0] if harmless else None
        on_borderline = job.observe("borderline", borderline, replies=False)[0] if borderline else None
    results = []
    with progress("look into the suffixes", len(chosen)) as advance:
        for index in chosen:
            results.append(_one(job, suffixes[index], index, refused, plain, plain_sources))
            advance(1)
    tested = None
    if on_harmless is not None:
        with progress("test the detectors", 0):
            tested = _detectors(job, plain, on_harmless, on_borderline, results)
    return {
        "plain": plain,
        "harmless": on_harmless,
        "results": tuple(results),
        "screened": screened.metric,
        "screened_strength": screened.strength,
        "detectors": tested,
    }


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
            f"{len(shared)} prompt(s) would choose the heads and be reported on, e.g. {min(shared)[:60]!r}: take them "
            "from one of the lists"
        )
    return reported, choosing


def _refused(
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
            kept += [prompt] if value > 0 else []
            if len(kept) == limit:
                return kept, i
    if not kept:
        raise PromptError(
            f"no refused prompt is left: {model.name} refuses none of {len(prompts)} prompts without a suffix (highest "
            f"refusal metric {highest:.2f}, must be > 0); use prompts that it refuses"
        )
    return kept, len(prompts)


def _chosen(suffixes: SuffixSet, screened: torch.Tensor, detail: int | None, notes: list[str]) -> list[int]:
    """Indices of the suffixes to look into."""
    attacks = [i for i, item in enumerate(suffixes) if item.is_attack]
    if detail is None or len(attacks) <= detail:
        return list(range(len(suffixes)))
    best = set(sorted(attacks, key=lambda i: float(screened[i].mean()))[:detail])
    notes.append(f"{len(attacks) - detail} suffixes that lower the metric less were screened only")
    return [i for i, item in enumerate(suffixes) if i in best or not item.is_attack]


def _one(
    job: _Job, suffix: Suffix, index: int, prompts: list[str], plain: Observation, plain_sources: SourceContributions
) -> SuffixResult:
    """One suffix: what is seen, then the tests of whether it is the cause. Each step is taken from the suffix's file if
    it is there, so that a kill costs the step under way, and other tests do not cost the observations."""
    settings, name = job.settings, f"suffixes/{index:04d}"
    # Not the same draws for every suffix: a seed of its own.
    seed = settings.seed + 1000 * (index + 1)
    key = job.key(suffix, settings.max_new_tokens, settings.shuffled, settings.shown)
    result = job.store.get(name, key, SuffixResult)
    if result is None:
        result = job.store.put(name, _seen(job, suffix, prompts, plain_sources, seed), key)
    if result.shuffled is not None and (unequal := sum(a != b for a, b in _lengths(job.model, result))):
        job.notes.append(f"suffix {index}: {unequal} of {len(prompts)} shuffled versions differ in length")
    if settings.causal == "none" or (settings.causal == "working" and not result.works):
        return replace(result, causal=None, tokens=None)
    tested = job.key(key, "tests", settings.n_random, settings.forensics)
    if job.store.get(name, tested, SuffixResult) is None:
        result = job.store.put(name, replace(result, **_tests(job, result, plain, seed)), key, tested)
    return result


def _lengths(model: HookedChatModel, result: SuffixResult) -> list[tuple[int, int]]:
    """Tokens of the suffix and of its shuffled version, by prompt."""
    assert result.shuffled is not None
    pairs = zip(result.shuffled.prompts, result.shuffled.suffixes, strict=True)
    return [(n, suffix_length(model.chat, *pair)) for n, pair in zip(result.n_tokens, pairs, strict=True)]


def _seen(job: _Job, suffix: Suffix, prompts: list[str], plain_sources: SourceContributions, seed: int) -> SuffixResult:
    """The suffix beside its controls."""
    model, settings = job.model, job.settings
    lengths = check_suffix(model.chat, prompts, suffix.text, model.n_ctx)
    suffixed, sources = job.observe("suffix", prompts, [suffix.text] * len(prompts))
    drawn = random_controls(model.chat, prompts, suffix.text, seed)
    random, random_sources = job.observe("random", prompts, drawn.texts)
    shuffled = None
    if settings.shuffled and max(lengths) > 1:
        mixed = shuffled_controls(model.chat, prompts, suffix.text, seed)
        shuffled = job.observe("shuffled", prompts, mixed.texts)[0]
    gaps = (random.heads - suffixed.heads).flatten(0, 1).double().numpy()
    rise = (suffixed.attention_to("suffix") - random.attention_to("suffix")).mean(-1)
    head = job.heads[int(rise.argmax())]
    patterns = [
        attention_patterns(model, prompt, (head,), text)
        for prompt in prompts[: settings.shown]
        for text in ("", suffix.text)
    ]
    return SuffixResult(
        suffix=suffix,
        n_tokens=lengths,
        suffixed=suffixed,
        random=random,
        shuffled=shuffled,
        from_plain=split_drop(plain_sources, sources),
        from_random=split_drop(random_sources, sources),
        p_heads=torch.as_tensor(benjamini_hochberg([paired_p(g) for g in gaps])).reshape(suffixed.heads.shape[:2]),
        p_metric=paired_p((random.metric - suffixed.metric).tolist()),
        patterns=tuple(patterns),
    )


def _tests(job: _Job, result: SuffixResult, plain: Observation, seed: int) -> dict[str, Any]:
    """Causal tests and token forensics of one suffix."""
    model, settings, text = job.model, job.settings, result.suffix.text
    causal = causal_tests(
        model,
        plain,
        result.suffixed,
        job.direction,
        job.heads,
        job.tokens,
        n_random=settings.n_random,
        max_new_tokens=settings.max_new_tokens,
        seed=seed,
    )
    some = list(plain.prompts[: settings.forensics])
    tokens = None
    if some:
        sources = source_contributions(model, some, job.direction, suffixes=[text] * len(some))
        tokens = token_effects(model, some, text, sources, job.heads, job.tokens)
    return {"causal": causal, "tokens": tokens}


def _detectors(
    job: _Job, plain: Observation, quiet: Observation, edge: Observation | None, results: list[SuffixResult]
):
    """Detectors on plain, suffixed, benign-suffixed and over-refusal-like prompts."""
    harmful = {"harmful": plain}
    harmless = {"harmless": quiet}
    attack = next((r for r in sorted(results, key=lambda r: -r.metric_drop.mean) if r.suffix.is_attack), None)
    benign = next((r for r in results if not r.suffix.is_attack), None)
    calm = list(quiet.prompts)
    for label, result in (("the strongest suffix", attack), ("a benign suffix", benign)):
        if result is not None:
            harmful[f"harmful + {label}"] = result.suffixed
            harmless[f"harmless + {label}"] = job.observe(label, calm, [result.suffix.text] * len(calm), replies=False)[
                0
            ]
    if edge is not None:
        harmless["harmless, looks harmful"] = edge
    return detectors(harmful, harmless, job.direction.layer)
