"""Selection of the refusal direction from the candidates: three scores, one rule (paper section 2.3 and appendix C).

The winner is the paper's, at less cost: induce comes first and restarts at the candidate's layer, bypass is computed
for candidates that induce, and KL in the order of bypass until one passes. One pass takes several candidates on packed
validation prompts.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..data.paper import LAYER_CUTOFF, MAX_KL, MIN_INDUCE
from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import DirectionError, SelectionError
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import Direction
from ..refusal.records import RefusalTokens
from ..refusal.tokens import find_refusal_tokens
from .records import SCORES, CandidateDirections, NearMiss, Selection, SelectionScores
from .scores import GROUP, _Scorer, _Scores

COEFFICIENTS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # tried on near misses that do not induce


@dataclass(frozen=True)
class SelectionRule:
    """The paper's thresholds (section 2.3 and appendix C).

    Attributes:
        max_kl: candidates with a higher KL are dropped (nats).
        min_induce: candidates with a lower induce score are dropped.
        layer_cutoff: layers from int(layer_cutoff * n_layers) on are dropped.
    """

    max_kl: float = MAX_KL
    min_induce: float = MIN_INDUCE
    layer_cutoff: float = LAYER_CUTOFF

    def cut(self, n_layers: int) -> int:
        """First layer that is dropped."""
        return int(self.layer_cutoff * n_layers)


@dataclass(frozen=True)
class Choice:
    """Outcome of the rule on a grid of scores.

    Attributes:
        chosen: (pos, layer) of the winner, None if none passes.
        kept: all that pass, lowest bypass first.
        reasons: reason that drops a candidate, by [pos][layer]; "" for a kept one.
    """

    chosen: tuple[int, int] | None
    kept: tuple[tuple[int, int], ...]
    reasons: tuple[tuple[str, ...], ...]


def choose(scores: SelectionScores, rule: SelectionRule | None = None) -> Choice:
    """Apply the rule to scores: of the candidates that pass, the lowest bypass wins, the first one at a tie.

    Example:
        >>> rl.direction.choose(found.scores).reasons[-1][-1]
        'layer 4 is beyond the cut of 4'
    """
    rule, places, layers = rule or SelectionRule(), scores.positions, range(scores.bypass.shape[1])
    reasons = tuple(tuple(_reason(scores, pos, layer, rule) for layer in layers) for pos in places)
    kept = [place for place in itertools.product(places, layers) if not reasons[place[0]][place[1]]]
    kept.sort(key=lambda place: _at(scores, *place)[0])  # stable: the order of the loops breaks ties
    return Choice(kept[0] if kept else None, tuple(kept), reasons)


def _at(scores: SelectionScores, pos: int, layer: int) -> list[float]:
    """Bypass, induce and KL of a candidate; positions count from the end, as indices below 0 do."""
    return [float(getattr(scores, name)[pos, layer]) for name in SCORES]


def _reason(scores: SelectionScores, pos: int, layer: int, rule: SelectionRule) -> str:
    _, induce, kl = found = _at(scores, pos, layer)
    if layer >= (cut := rule.cut(scores.bypass.shape[1])):
        return f"layer {layer} is beyond the cut of {cut}"
    if any(map(math.isnan, found)):
        return "a score is NaN"
    if kl > rule.max_kl:
        return f"KL {kl:.3g} > {rule.max_kl:g}"
    if induce < rule.min_induce:
        return f"induce {induce:.3g} < {rule.min_induce:g}"
    return ""


def select_direction(
    model: HookedChatModel,
    candidates: CandidateDirections,
    harmful: PromptsLike,
    harmless: PromptsLike,
    *,
    refusal_tokens: RefusalTokens | None = None,
    rule: SelectionRule | None = None,
    coeff: float = 1.0,
    full_grid: bool = False,
    relax: bool = False,
    form: str = "paper",
    progress: Progress = silent,
    engine: Engine | None = None,
) -> Selection:
    """Select the direction by its scores on validation prompts, as the paper does.

    Args:
        harmful, harmless: requests; of a ``PromptSet``, its validation split (the paper keeps harmful ones that the
            model refuses and harmless ones that it answers: ``refusal.keep_refused``).
        refusal_tokens: found from the same prompts if None.
        rule: thresholds; the paper's by default, with the tokens' threshold for induce.
        coeff: multiple of r that addition uses, for the induce score and later.
        full_grid: compute every score of every candidate (for the plots); the winner is the same.
        relax: if no candidate passes, take the nearest and record what was relaxed.
        form: of ablation, for bypass and KL (``hooks.Form``): "paper", "stream", "affine" or "scaled".
        engine: where the work runs; this process if None.

    Raises:
        SelectionError: none passes and ``relax`` is off; its ``near_misses`` say what each would need.
        DirectionError: the candidates belong to another model or basis.

    Example:
        >>> selection = rl.select_direction(model, found.candidates, data.harmful, data.harmless, relax=True)
        >>> selection.chosen.label, selection.to_frame().columns.tolist()
        ('(-1, 2)', ['pos', 'layer', 'bypass', 'induce', 'kl', 'reason'])
    """
    harmful, harmless = as_prompts(harmful, "val"), as_prompts(harmless, "val")
    tokens = refusal_tokens or find_refusal_tokens(model, harmful, harmless)
    rule = rule or SelectionRule(min_induce=tokens.threshold)
    cut = rule.cut(candidates.n_layers)
    depth = candidates.n_layers if full_grid else cut
    live, skipped = _live(model, candidates, depth, coeff)
    grids = {name: torch.full(candidates.mean_diff.shape[:2], torch.nan, dtype=torch.float64) for name in SCORES}
    with progress("select the direction", len(SCORES) * len(candidates.positions) * depth) as advance:
        work = _Scores(tuple(harmful), tuple(harmless), tuple(tokens.ids), depth, form, candidates.statistics)
        scorer = _Scorer(engine or LocalEngine(model), work)
        _score(scorer, live, grids, rule, coeff, full_grid, advance)
        placebo = scorer.placebo_kl(live[0]) if live else ()
    scores = SelectionScores(**grids)
    choice = choose(scores, rule)
    reasons = [list(row) for row in choice.reasons]
    for direction in (d for d in live if d.layer < cut):
        if why := _not_computed(scores, direction, rule):
            reasons[direction.pos][direction.layer] = why
    for pos, layer in skipped:
        reasons[pos][layer] = "its mean difference is zero or not a number"
    base = Selection(
        chosen=candidates.direction(*choice.chosen, coeff) if choice.chosen else live[0],
        scores=scores,
        reasons=tuple(map(tuple, reasons)),
        kept=choice.kept,
        baseline_harmful=scorer.baseline_harmful,
        baseline_harmless=scorer.baseline_harmless,
        thresholds=asdict(rule),
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        form=form,
        placebo_kl=placebo,
    )
    if choice.chosen:
        return base
    with progress("find the nearest candidate", 0):
        misses = _near_misses(scorer, [d for d in live if d.layer < cut], scores, rule, coeff)
    if not relax or not misses:
        raise SelectionError(_nothing_passes(model, misses, rule, base), misses, base)
    return _relaxed(base, candidates, misses)


def _relaxed(base: Selection, candidates: CandidateDirections, misses: tuple[NearMiss, ...]) -> Selection:
    """The selection with the nearest candidate chosen, and its scores in the grids."""
    nearest, grids = misses[0], {name: getattr(base.scores, name).clone() for name in SCORES}
    for name, grid in grids.items():
        grid[nearest.pos, nearest.layer] = getattr(nearest, name)
    chosen = candidates.direction(nearest.pos, nearest.layer, nearest.coeff, "; ".join(nearest.needs))
    return replace(base, chosen=chosen, scores=SelectionScores(**grids), near_misses=misses)


def _live(
    model: HookedChatModel, candidates: CandidateDirections, depth: int, coeff: float
) -> tuple[list[Direction], list[tuple[int, int]]]:
    """The candidates of the first ``depth`` layers, and the (pos, layer) that have no direction."""
    live, skipped = [], []
    for pos, layer in itertools.product(candidates.positions, range(depth)):
        try:
            live.append(candidates.direction(pos, layer, coeff))
        except DirectionError:
            skipped.append((pos, layer))
    if not live:
        raise DirectionError("no candidate has a direction: the mean activations of both kinds of prompts are equal")
    for direction in live:
        model.check_direction(direction)
    return live, skipped


def _score(
    scorer: _Scorer,
    live: list[Direction],
    grids: dict[str, Tensor],
    rule: SelectionRule,
    coeff: float,
    full_grid: bool,
    on_step: Callable[[int], None],
) -> None:
    """Fill the grids with the scores that decide, or with all of them."""

    def fill(name: str, some: list[Direction], values: list[float]) -> None:
        for d, value in zip(some, values, strict=True):
            grids[name][d.pos, d.layer] = value

    fill("induce", live, scorer.induce(live, coeff, on_step))
    if full_grid:
        bypass, kl = scorer.bypass_and_kl(live, on_step)
        fill("bypass", live, bypass)
        fill("kl", live, kl)
        return
    inducing = [d for d in live if grids["induce"][d.pos, d.layer] >= rule.min_induce]
    fill("bypass", inducing, scorer.bypass(inducing, on_step))
    by_bypass = sorted(inducing, key=lambda d: float(grids["bypass"][d.pos, d.layer]))
    width = max(1, scorer.engine.width)
    for begin in range(0, len(by_bypass), width):
        some = by_bypass[begin : begin + width]
        values = scorer.kl(some, on_step)
        passing = [k for k, value in enumerate(values) if value <= rule.max_kl]
        # What workers did beyond the first that passes is dropped, so that the record is that of one worker.
        kept = passing[0] + 1 if passing else len(some)
        fill("kl", some[:kept], values[:kept])
        if passing:
            return


def _not_computed(scores: SelectionScores, direction: Direction, rule: SelectionRule) -> str:
    """Why a score of a candidate was not needed; "" where all three are there."""
    bypass, induce, kl = _at(scores, direction.pos, direction.layer)
    if math.isnan(bypass) and induce < rule.min_induce:
        return f"induce {induce:.3g} < {rule.min_induce:g}"
    if math.isnan(kl) and not math.isnan(bypass):
        return "a candidate with a lower bypass score passed"
    return ""


def _near_misses(
    scorer: _Scorer, live: list[Direction], scores: SelectionScores, rule: SelectionRule, coeff: float, top: int = 12
) -> tuple[NearMiss, ...]:
    """The candidates closest to passing, nearest first, with the change that each needs.

    Distance is the sum of the logs of the two relaxations, KL over its threshold and coefficient over ``coeff``.
    Candidates that do not turn the harmful metric negative are listed last: letting them pass gains nothing.
    """
    induced = [(_at(scores, d.pos, d.layer), d) for d in live]
    by_induce = sorted((item for item in induced if not math.isnan(item[0][1])), key=lambda item: -item[0][1])
    near = [d for _, d in by_induce[:top]]
    known = {name: [found[i] for found, _ in by_induce[:top]] for i, name in enumerate(SCORES)}
    for name, score in (("bypass", scorer.bypass), ("kl", partial(scorer.kl, size=GROUP))):
        missing = [k for k, value in enumerate(known[name]) if math.isnan(value)]
        for k, value in zip(missing, score([near[k] for k in missing]), strict=True):
            known[name][k] = value
    # The smallest coefficient with which each induces, all that still do not at once.
    stronger: dict[int, tuple[float, float]] = {}
    weak = [k for k, value in enumerate(known["induce"]) if value < rule.min_induce]
    for factor in COEFFICIENTS:
        left = [k for k in weak if k not in stronger]
        for k, value in zip(left, scorer.induce([near[k] for k in left], factor * coeff), strict=True):
            if value >= rule.min_induce:
                stronger[k] = factor, value
    ranked: list[tuple[tuple, NearMiss]] = []
    for k, direction in enumerate(near):
        bypass, induce, kl = (known[name][k] for name in SCORES)
        needs, distance, used = [], 0.0, coeff
        if kl > rule.max_kl:
            needs.append(f"max_kl {math.ceil(kl * 100) / 100:g} instead of {rule.max_kl:g}")
            distance += math.log(kl / rule.max_kl) if rule.max_kl > 0 else kl
        if k in stronger:
            factor, more = stronger[k]
            used = factor * coeff
            needs.append(f"coefficient {used:g} instead of {coeff:g} (induce {induce:.2f} -> {more:.2f})")
            distance += math.log(factor)
            induce = more
        elif induce < rule.min_induce:
            needs.append(f"min_induce {math.floor(induce * 100) / 100:g} instead of {rule.min_induce:g}")
            distance += math.log(2 * COEFFICIENTS[-1])
        miss = NearMiss(direction.pos, direction.layer, bypass, induce, kl, tuple(needs), used)
        ranked.append(((not bypass < 0, distance, bypass), miss))
    return tuple(miss for _, miss in sorted(ranked, key=lambda item: item[0]))


def _nothing_passes(model: HookedChatModel, misses: Sequence[NearMiss], rule: SelectionRule, found: Selection) -> str:
    head = (
        f"no candidate direction of {model.name} passes the rule (KL <= {rule.max_kl:g}, induce >= "
        f"{rule.min_induce:g}, layer < {rule.layer_cutoff:g} L)"
    )
    if not misses:
        return f"{head}, and no candidate has a direction: check that harmful and harmless prompts differ"
    nearest = "; ".join(f"{miss}" for miss in misses[:3])
    if found.placebo_fails:
        return (
            f"{head}, and random directions do not either (KL {min(found.placebo_kl):.3g} and more): with ablation of "
            f"the form {found.form!r} this threshold does not measure refusal here. Nearest: {nearest}. Select with "
            "another form (--ablation scaled), or relax the rule (--relax)"
        )
    return f"{head}. Nearest: {nearest}. Change that threshold or coefficient, or relax the rule (--relax)"
