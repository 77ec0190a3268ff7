"""Which candidate is the refusal direction: three scores, one rule (paper section 2.3 and appendix C).

The winner is the paper's; the work is less. Induce is computed first, restarting at the candidate's layer;
bypass only for candidates that induce; KL in the order of bypass until the first one passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .chat import Tokens
from .errors import DirectionError, SelectionError
from .interventions import Ablate, Add, Intervention
from .linalg import kl_divergence, refusal_log_odds
from .model import HookedChatModel, take
from .records import CandidateDirections, Direction, NearMiss, RefusalTokens, Selection, SelectionScores
from .scoring import find_refusal_tokens

COEFFICIENTS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # tried on near misses that do not induce
MIN_PREFIX = 4  # a shorter common prefix is not worth a pass of its own


@dataclass(frozen=True)
class SelectionRule:
    """The paper's thresholds.

    Attributes:
        max_kl: candidates with a higher KL are dropped (nats).
        min_induce: candidates with a lower induce score are dropped.
        layer_cutoff: layers from int(layer_cutoff * n_layers) on are dropped.
    """

    max_kl: float = 0.1
    min_induce: float = 0.0
    layer_cutoff: float = 0.8

    def cut(self, n_layers: int) -> int:
        """First layer that is dropped."""
        return int(self.layer_cutoff * n_layers)


@dataclass(frozen=True)
class Choice:
    """What the rule says of a grid of scores.

    Attributes:
        chosen: (pos, layer) of the winner, None when nothing passes.
        kept: all that pass, lowest bypass first.
        reasons: by [pos][layer], "" for a kept candidate.
    """

    chosen: tuple[int, int] | None
    kept: tuple[tuple[int, int], ...]
    reasons: tuple[tuple[str, ...], ...]


def choose(scores: SelectionScores, rule: SelectionRule | None = None) -> Choice:
    """The rule alone, on numbers: drop, then the lowest bypass wins; ties keep the order of positions, layers."""
    rule = rule or SelectionRule()
    n_layers = scores.bypass.shape[1]
    kept: list[tuple[float, int, int]] = []
    reasons: list[tuple[str, ...]] = []
    for i, pos in enumerate(scores.positions):
        row = []
        for layer in range(n_layers):
            values = [float(grid[i, layer]) for grid in (scores.bypass, scores.induce, scores.kl)]
            row.append(_reason(*values, layer, n_layers, rule))
            if not row[-1]:
                kept.append((values[0], pos, layer))
        reasons.append(tuple(row))
    kept.sort(key=lambda item: item[0])  # stable: the order of the loops breaks ties
    order = tuple((pos, layer) for _, pos, layer in kept)
    return Choice(order[0] if order else None, order, tuple(reasons))


def _reason(bypass: float, induce: float, kl: float, layer: int, n_layers: int, rule: SelectionRule) -> str:
    if layer >= rule.cut(n_layers):
        return f"layer {layer} is beyond the cut of {rule.cut(n_layers)}"
    if any(math.isnan(value) for value in (bypass, induce, kl)):
        return "a score is NaN"
    if kl > rule.max_kl:
        return f"KL {kl:.3g} > {rule.max_kl:g}"
    if induce < rule.min_induce:
        return f"induce {induce:.3g} < {rule.min_induce:g}"
    return ""


class _Bench:
    """The validation prompts of one kind, ready to be run many times under different interventions.

    Shared work is done once: batches by length, and, where all prompts begin alike (template and system prompt),
    the prefix's keys and values once per intervention instead of once per prompt.
    """

    def __init__(self, model: HookedChatModel, prompts: Sequence[str], keep_resid: int = 0):
        self.model = model
        tokens = model.tokenize(list(prompts))
        self.n = len(tokens)
        self.prefix = self._common_prefix(tokens)
        body = _without_prefix(tokens, len(self.prefix)) if self.prefix is not None else tokens
        self.batches = list(model.batches(body))
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(keep_resid)]
        self.resid: list[dict[str, Tensor]] = []
        self.prefix_resid: dict[str, Tensor] = {}
        if names:
            # Read from full prompts, so that nothing here depends on the prefix being right.
            for batch in self.batches:
                full = take(tokens, batch.indices)
                cached = model.cache(replace(full, indices=tuple(range(len(full)))), names)
                width = batch.ids.shape[1]
                self.resid.append({name: x[:, -width:] for name, x in cached.items()})
            if self.prefix is not None:
                longest = take(tokens, [max(range(self.n), key=lambda i: int(tokens.lengths[i]))])
                cached = model.cache(longest, names)
                self.prefix_resid = {name: x[:, : len(self.prefix)] for name, x in cached.items()}

    def _common_prefix(self, tokens: Tokens) -> Tensor | None:
        if not self.model.backend.supports_prefix:
            return None
        rows = [ids[mask] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
        limit = min(len(row) for row in rows) - 1
        same = torch.stack([row[:limit] == rows[0][:limit] for row in rows]).all(0)
        length = int(same.long().cumprod(0).sum())
        return rows[0][:length] if length >= MIN_PREFIX and len(rows) > 1 else None

    def run(self, interventions: Sequence[Intervention], reduce: Callable, start: int = 0) -> Tensor:
        """``reduce(last logits [batch, vocab], row indices)`` per prompt, under the interventions.

        Args:
            interventions: active during the passes.
            reduce: gives one value a row.
            start: restart at this layer's resid_pre (needs ``keep_resid`` > start).
        """
        out = torch.empty(self.n, dtype=torch.float64)
        site = f"blocks.{start}.hook_resid_pre"
        with self.model.hooks(*interventions):
            cache = None
            if self.prefix is not None:
                first = (start, self.prefix_resid[site]) if start else None
                cache = self.model.prefix_cache(self.prefix, first)
            for i, batch in enumerate(self.batches):
                first = (start, self.resid[i][site]) if start else None
                logits = self.model.logits(batch, start=first, prefix=cache)[:, -1]
                out[list(batch.indices)] = reduce(logits, list(batch.indices)).double().cpu()
        return out

    def logits(self) -> Tensor:
        """Baseline last logits, [prompt, vocab]."""
        rows: dict[int, Tensor] = {}

        def keep(logits: Tensor, indices: list[int]) -> Tensor:
            rows.update(zip(indices, logits, strict=True))
            return torch.zeros(len(indices))

        self.run([], keep)
        return torch.stack([rows[i] for i in range(self.n)])


def _without_prefix(tokens: Tokens, length: int) -> Tokens:
    """The tokens after a prefix common to all rows (spans keep counting from the prompt's first token)."""
    rows = [ids[mask][length:] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    width = max(len(row) for row in rows)
    ids = tokens.ids.new_full((len(rows), width), int(tokens.ids[0, -1]))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = True
    return Tokens(ids, mask, tokens.spans, tokens.indices)


class _Scorer:
    """Scores of single candidates on the two benches."""

    def __init__(
        self,
        model: HookedChatModel,
        harmful: Sequence[str],
        harmless: Sequence[str],
        tokens: RefusalTokens,
        depth: int,
    ):
        self.tokens = tokens
        self.harmful = _Bench(model, harmful)
        self.harmless = _Bench(model, harmless, keep_resid=depth)
        self.baseline_logits = self.harmless.logits()
        self.baseline_harmful = float(self.harmful.run([], self._metric).mean())
        self.baseline_harmless = float(self._metric(self.baseline_logits, []).mean())

    def _metric(self, logits: Tensor, indices: list[int]) -> Tensor:
        return refusal_log_odds(logits, self.tokens.ids)

    def induce(self, direction: Direction, coeff: float) -> float:
        """Mean refusal metric on harmless prompts with coeff * r added, restarted at its layer."""
        added = [Add(direction, coeff)]
        return float(self.harmless.run(added, self._metric, start=direction.layer).mean())

    def bypass(self, direction: Direction) -> float:
        """Mean refusal metric on harmful prompts under ablation."""
        return float(self.harmful.run([Ablate(direction)], self._metric).mean())

    def kl(self, direction: Direction) -> float:
        """Mean KL(baseline || ablated) on harmless prompts."""

        def divergence(logits: Tensor, indices: list[int]) -> Tensor:
            return kl_divergence(self.baseline_logits[indices], logits)

        return float(self.harmless.run([Ablate(direction)], divergence).mean())


def select_direction(
    model: HookedChatModel,
    candidates: CandidateDirections,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    refusal_tokens: RefusalTokens | None = None,
    rule: SelectionRule | None = None,
    coeff: float = 1.0,
    full_grid: bool = False,
    relax: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Selection:
    """The paper's selection over validation prompts.

    Args:
        model: the model that the candidates were extracted from.
        candidates: from ``extract_directions``.
        harmful, harmless: requests of the validation split (the paper keeps those that the model refuses and
            answers: ``scoring.keep_refused``).
        refusal_tokens: found from the same prompts if None.
        rule: thresholds; the paper's by default.
        coeff: multiple of r that addition uses, for the induce score and later.
        full_grid: compute every score of every candidate (for the plots); the winner is the same.
        relax: when nothing passes, take the nearest candidate and record what was relaxed.
        on_step: called with 1 after each score (for progress bars; at most 3 * positions * layers).

    Raises:
        SelectionError: nothing passes and ``relax`` is off; its ``near_misses`` say what each would need.
        DirectionError: the candidates are of another model or basis.
    """
    rule = rule or SelectionRule()
    tokens = refusal_tokens or find_refusal_tokens(model, harmful, harmless)
    depth = candidates.n_layers if full_grid else rule.cut(candidates.n_layers)
    scorer = _Scorer(model, harmful, harmless, tokens, depth)
    shape = candidates.mean_diff.shape[:2]
    grids = {name: torch.full(shape, float("nan"), dtype=torch.float64) for name in ("bypass", "induce", "kl")}
    skipped: dict[tuple[int, int], str] = {}
    live: list[tuple[int, Direction]] = []
    for i, pos in enumerate(candidates.positions):
        for layer in range(depth):
            try:
                live.append((i, candidates.direction(pos, layer, coeff)))
            except DirectionError:
                skipped[i, layer] = "its mean difference is zero or not a number"

    def fill(name: str, i: int, direction: Direction, value: float) -> float:
        grids[name][i, direction.layer] = value
        if on_step:
            on_step(1)
        return value

    for i, direction in live:
        fill("induce", i, direction, scorer.induce(direction, coeff))
    inducing = [c for c in live if full_grid or grids["induce"][c[0], c[1].layer] >= rule.min_induce]
    for i, direction in inducing:
        fill("bypass", i, direction, scorer.bypass(direction))
    by_bypass = sorted(inducing, key=lambda c: float(grids["bypass"][c[0], c[1].layer]))
    for i, direction in by_bypass:
        value = fill("kl", i, direction, scorer.kl(direction))
        if value <= rule.max_kl and not full_grid:
            break
    scores = SelectionScores(**grids)
    choice = choose(scores, rule)
    reasons = [list(row) for row in choice.reasons]
    for i, direction in live:
        why = _not_computed(scores, i, direction.layer, rule)
        if why and direction.layer < rule.cut(candidates.n_layers):
            reasons[i][direction.layer] = why
    for (i, layer), why in skipped.items():
        reasons[i][layer] = why

    base = Selection(
        chosen=candidates.direction(*choice.chosen, coeff) if choice.chosen else live[0][1],
        scores=scores,
        reasons=tuple(map(tuple, reasons)),
        kept=choice.kept,
        baseline_harmful=scorer.baseline_harmful,
        baseline_harmless=scorer.baseline_harmless,
        thresholds={"max_kl": rule.max_kl, "min_induce": rule.min_induce, "layer_cutoff": rule.layer_cutoff},
        n_harmful=len(harmful),
        n_harmless=len(harmless),
    )
    if choice.chosen:
        return base
    misses = _near_misses(scorer, live, scores, rule, coeff, rule.cut(candidates.n_layers))
    if not relax or not misses:
        raise SelectionError(_nothing_passes(model, misses, rule), misses, base)
    nearest = misses[0]
    for name in ("bypass", "induce", "kl"):
        grids[name][candidates.positions.index(nearest.pos), nearest.layer] = getattr(nearest, name)
    chosen = candidates.direction(nearest.pos, nearest.layer, nearest.coeff, "; ".join(nearest.needs))
    return replace(base, chosen=chosen, scores=SelectionScores(**grids), near_misses=misses)


def _not_computed(scores: SelectionScores, i: int, layer: int, rule: SelectionRule) -> str:
    """Why a score of a candidate was not needed; "" where all three are there."""
    induce, bypass, kl = (float(g[i, layer]) for g in (scores.induce, scores.bypass, scores.kl))
    if math.isnan(bypass) and induce < rule.min_induce:
        return f"induce {induce:.3g} < {rule.min_induce:g}"
    if math.isnan(kl) and not math.isnan(bypass):
        return "a candidate with a lower bypass score passed"
    return ""


def _near_misses(
    scorer: _Scorer,
    live: list[tuple[int, Direction]],
    scores: SelectionScores,
    rule: SelectionRule,
    coeff: float,
    cut: int,
    top: int = 12,
) -> tuple[NearMiss, ...]:
    """The candidates closest to passing, nearest first, with the change that each needs.

    Distance is the sum of the logs of the two relaxations, KL over its threshold and coefficient over ``coeff``.
    Candidates that do not turn the harmful metric negative are listed last: letting them pass gains nothing.
    """
    within = [c for c in live if c[1].layer < cut and not math.isnan(float(scores.induce[c[0], c[1].layer]))]
    within.sort(key=lambda c: -float(scores.induce[c[0], c[1].layer]))
    ranked: list[tuple[tuple, NearMiss]] = []
    for i, direction in within[:top]:
        bypass, induce, kl = (float(g[i, direction.layer]) for g in (scores.bypass, scores.induce, scores.kl))
        bypass = scorer.bypass(direction) if math.isnan(bypass) else bypass
        kl = scorer.kl(direction) if math.isnan(kl) else kl
        needs, distance, used = [], 0.0, coeff
        if kl > rule.max_kl:
            needs.append(f"max_kl {math.ceil(kl * 100) / 100:g} instead of {rule.max_kl:g}")
            distance += math.log(kl / rule.max_kl) if rule.max_kl > 0 else kl
        if induce < rule.min_induce:
            for factor in COEFFICIENTS:
                stronger = scorer.induce(direction, factor * coeff)
                if stronger >= rule.min_induce:
                    used = factor * coeff
                    needs.append(f"coefficient {used:g} instead of {coeff:g} (induce {induce:.2f} -> {stronger:.2f})")
                    distance += math.log(factor)
                    induce = stronger
                    break
            else:
                needs.append(f"min_induce {math.floor(induce * 100) / 100:g} instead of {rule.min_induce:g}")
                distance += math.log(2 * COEFFICIENTS[-1])
        miss = NearMiss(direction.pos, direction.layer, bypass, induce, kl, tuple(needs), used)
        ranked.append(((not bypass < 0, distance, bypass), miss))
    ranked.sort(key=lambda item: item[0])
    return tuple(miss for _, miss in ranked)


def _nothing_passes(model: HookedChatModel, misses: Sequence[NearMiss], rule: SelectionRule) -> str:
    head = (
        f"no candidate direction of {model.name} passes the rule (KL <= {rule.max_kl:g}, induce >= "
        f"{rule.min_induce:g}, layer < {rule.layer_cutoff:g} L)"
    )
    if not misses:
        return f"{head}, and no candidate has a direction: check that harmful and harmless prompts differ"
    nearest = "; ".join(f"{miss}" for miss in misses[:3])
    return f"{head}. Nearest: {nearest}. Change that threshold or coefficient, or relax the rule (--relax)"
