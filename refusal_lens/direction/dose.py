"""How much, and where: effect and damage by strength and scope."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import SPLITS, PromptPair, check_pair
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import DirectionError, InterventionError, PromptError
from ..hooks.base import Intervention, Layers, Positions, layers_of
from ..hooks.capping import Cap
from ..hooks.interventions import Ablate, Add
from ..models.model import HookedChatModel
from ..models.prefixes import last_logits
from ..models.texts import Scored, reply_tokens, scored_batches
from ..progress import Progress, silent
from ..records.direction import DirectionLike
from ..records.labels import index_of
from ..refusal.classes import is_degenerate
from ..refusal.metric import refusal_metric
from ..refusal.phrases import is_refusal
from ..refusal.records import RefusalTokens
from ..refusal.replies import completion, replies
from ..tensors import kl_divergence
from .dose_records import MEASURES, DoseItem, DoseResponse
from .records import FoundDirection

STRENGTHS: dict[str, tuple[float, ...]] = {
    "ablation": (0.25, 0.5, 0.75, 1.0, 1.5),
    "addition": (0.25, 0.5, 1.0, 1.5, 2.0),
    "capping": (0.0, 0.25, 0.5, 0.75, 1.0),
}
EDITS = 10  # interventions of one effect in one scope, in one item of an engine
FIRST = 16  # tokens of a reply over which KL is taken
Judge = Callable[[str], bool]
_Edit = tuple[Intervention | None, bool, bool]  # with whether it acts on replies only, and whether replies are read


@dataclass(frozen=True)
class Scope:
    """The layers and positions of an intervention.

    Attributes:
        layers: None for all, and for addition the direction's own layer.
        positions: None for all.

    Example:
        >>> rl.direction.Scope(layers=slice(2, None), positions="template_post").words
        'layers 2:, positions template_post'
    """

    layers: Layers = None
    positions: Positions = None

    @property
    def words(self) -> str:
        """Layers and positions, where they are not all."""
        label = Intervention(layers=self.layers, positions=self.positions).label
        return label.partition(", ")[2] or "all layers and positions"

    @property
    def starts_late(self) -> bool:
        """Whether it leaves prompts as they are."""
        return self.positions in ("reply", ("reply",))


def default_scopes(layer: int) -> dict[str, Scope]:
    """All positions, the prompt, the template after the request, the reply; the layers before a direction's layer, and
    those from there on."""
    places = {"prompt": "prompt", "template": "template_post", "reply": "reply"}
    ranges = {"layers before": slice(0, layer), "layers from there": slice(layer, None)}
    return {
        "all": Scope(),
        **{name: Scope(positions=place) for name, place in places.items()},
        **({name: Scope(layers=layers) for name, layers in ranges.items()} if layer else {}),
    }


def capped(found: FoundDirection, ceiling: float, *, layers: Any = None, positions: Any = None) -> Cap:
    """The direction capped between the mean projections of the two kinds of prompts.

    Args:
        found: the result of ``find_direction``, whose candidates have the means by layer.
        ceiling: 0 for the harmless mean, 1 for the harmful one.

    Example:
        >>> rl.direction.capped(found, 0.5, positions="prompt").label
        'Cap (-1, 2), positions prompt'
    """
    r, means = found.direction.unit.double(), found.candidates
    row = means.positions.index(found.direction.pos)
    low, high = (mean[row].double() @ r for mean in (means.harmless_mean, means.harmful_mean))
    gap = high - low
    # Where the harmful mean is no higher, as at layer 0, there is nothing to cap.
    ceilings = (low + ceiling * gap).where(gap > 1e-6 * gap.abs().max(), torch.tensor(float("inf")).double())
    return Cap(found.direction, tuple(ceilings.tolist()), layers=layers, positions=positions)


def dose_response(
    model: HookedChatModel,
    data: PromptPair,
    found: DirectionLike,
    *,
    strengths: Mapping[str, Sequence[float]] | None = None,
    scopes: Mapping[str, Scope] | None = None,
    split: str = "test",
    max_new_tokens: int = 24,
    replies_at: Sequence[float] | None = None,
    judge: Judge = is_refusal,
    seed: int = 0,
    progress: Progress = silent,
    engine: Engine | None = None,
) -> DoseResponse:
    """Measure refusal, metric, KL, loss and degenerate replies by strength, layers and positions.

    Args:
        data: harmful and harmless prompts in splits; as many of each kind are used.
        strengths: "ablation", "addition", "capping" (or some of them) -> strengths, as ``DoseResponse`` explains;
            ``STRENGTHS`` of this module by default.
        scopes: name -> scope; by default all, prompt, template, reply, and the layers before and from the direction's.
        split: "val" to choose a dose, "test" to report on it.
        replies_at: strengths at which replies are generated, the slowest part; all if None.
        seed: of the random direction for each curve.
        engine: spreads scopes and effects over its workers; this process if None.

    Raises:
        DirectionError: ``found`` has no candidates, whose means the ceilings of capping come from.
        InterventionError: an unknown effect, no strength or scope, or layers that the model does not have.
        PromptError: no prompts in ``split``.

    Example:
        >>> curves = rl.direction.dose_response(
        ...     model, data, found, strengths={"ablation": [0.0, 1.0]}, scopes={"all": rl.direction.Scope()},
        ...     max_new_tokens=4)
        >>> curves.sizes
        {'scope': 1, 'dose': 2, 'condition': 2, 'measure': 6, 'prompt': 12, 'effect': 1}
    """
    if not isinstance(found, FoundDirection):
        raise DirectionError(f"{type(found).__name__} has no mean projections: give what rl.find_direction returned")
    grid = STRENGTHS if strengths is None else strengths
    scopes = default_scopes(found.direction.layer) if scopes is None else scopes
    _check(grid, scopes)
    doses = [(effect, float(strength)) for effect, row in grid.items() for strength in row]
    items: list[tuple[str, list[_Edit]]] = [(effect, [(None, True, False)]) for effect in grid]  # the baselines
    for scope, (effect, row) in itertools.product(scopes.values(), grid.items()):
        edits: list[_Edit] = []
        for strength in map(float, row):
            real = _intervention(model, found, effect, strength, scope)  # made first, so that a mistake costs nothing
            reads = replies_at is None or strength in replies_at
            edits += [(edit, scope.starts_late, reads) for edit in (real, real.placebo(seed))]
        items += [(effect, edits[i : i + EDITS]) for i in range(0, len(edits), EDITS)]
    check_pair(data)
    index_of(SPLITS, split, "split", "a prompt set")
    sets = {kind: getattr(getattr(data, kind), split).texts for kind in ("harmful", "harmless")}
    if not all(sets.values()):
        raise PromptError(f"there are no {split} prompts of a kind: load the data with some")
    n = min(map(len, sets.values()))
    work = _Doses({k: list(texts[:n]) for k, texts in sets.items()}, found.refusal_tokens, max_new_tokens, judge)
    engine = engine or LocalEngine(model)
    with progress("dose and scope", sum(len(edits) for _, edits in items)) as advance:
        made = engine.map("doses", work, items, lambda index: advance(len(items[index][1])))
    values = torch.cat([one.values for one in made[len(grid) :]])
    examples = [text for one in made[len(grid) :] for text in one.examples[::2]]
    return DoseResponse(
        scopes=tuple(scopes),
        doses=tuple(f"{effect} {strength:g}" for effect, strength in doses),
        dose_effects=tuple(effect for effect, _ in doses),
        strengths=tuple(strength for _, strength in doses),
        values=values.reshape(len(scopes), len(doses), 2, len(MEASURES), n),
        effects=tuple(grid),
        baseline=torch.cat([one.values for one in made[: len(grid)]]),
        where=tuple(scope.words for scope in scopes.values()),
        examples=tuple(tuple(examples[i : i + len(doses)]) for i in range(0, len(examples), len(doses))),
        max_new_tokens=max_new_tokens,
        direction=found.direction,
    )


def _check(grid: Mapping[str, Sequence[float]], scopes: Mapping[str, Scope]) -> None:
    if unknown := [effect for effect in grid if effect not in STRENGTHS]:
        raise InterventionError(f"there is no effect {unknown[0]!r}; choose from {', '.join(STRENGTHS)}")
    if not scopes or not grid or not all(map(len, grid.values())):
        raise InterventionError("there is nothing to measure: give at least one scope, and strengths of each effect")


def _intervention(
    model: HookedChatModel, found: FoundDirection, effect: str, strength: float, scope: Scope
) -> Intervention:
    place: dict[str, Any] = {"layers": scope.layers, "positions": scope.positions}
    chosen = layers_of(scope.layers, model.n_layers)
    if effect == "ablation":
        return Ablate(found.direction, strength=strength, **place)
    if effect == "addition":
        return Add(found.direction, strength / (1 if scope.layers is None else len(chosen)), **place)
    return capped(found, strength, **place)


@dataclass(frozen=True)
class _Doses:
    """Some doses of one effect in one scope, as work for an engine."""

    sets: dict[str, list[str]]
    tokens: RefusalTokens
    max_new_tokens: int
    judge: Judge

    def prepare(self, model: HookedChatModel) -> dict[str, _Side]:
        """The baseline of both kinds of prompts."""
        rest = self.tokens, self.max_new_tokens, self.judge
        return {kind: _Side(model, prompts, *rest) for kind, prompts in self.sets.items()}

    def run(self, model: HookedChatModel, sides: dict[str, _Side], item: tuple[str, list[_Edit]]) -> DoseItem:
        """The measures under each of an effect's interventions; the first reply under addition."""
        effect, edits = item
        acts, other = (sides[kind] for kind in ("harmful", "harmless"))
        if effect == "addition":  # wanted on harmless prompts, a change of harmful ones is the damage
            acts, other = other, acts
        damages = forced_damage(model, other.own, [edit[:2] for edit in edits])
        found = [acts.under(*edit, damage) for edit, damage in zip(edits, damages, strict=True)]
        first = tuple(told[0] if told and effect == "addition" else "" for _, told in found)
        return DoseItem(torch.stack([values for values, _ in found]), first)


class _Side:
    """Prompts of one kind: the baseline, its own replies, and everything under an intervention."""

    def __init__(
        self, model: HookedChatModel, prompts: list[str], tokens: RefusalTokens, max_new_tokens: int, judge: Judge
    ):
        self.model, self.prompts, self.tokens = model, prompts, tokens
        self.max_new_tokens, self.judge = max_new_tokens, judge
        own = replies(model, prompts, max_new_tokens)
        self.judged, _ = self._judged(own)
        self.metric = refusal_metric(model, prompts, tokens)
        self.own = reply_tokens(model, prompts, own)

    def _judged(self, told: list[str]) -> tuple[Float[Tensor, "3 prompt"], list[str]]:
        found = [completion(self.model, p, r, "", self.judge) for p, r in zip(self.prompts, told, strict=True)]
        broken = [item.finished and is_degenerate(item.response) for item in found]
        readable = [item.refused and not bad for item, bad in zip(found, broken, strict=True)]
        rows = [[item.refused for item in found], readable, broken]
        return torch.tensor(rows, dtype=torch.float64), [item.response for item in found]

    def under(
        self, edit: Intervention | None, starts_late: bool, reads: bool, damage: Float[Tensor, "2 prompt"]
    ) -> tuple[Float[Tensor, "measure prompt"], list[str]]:
        """The measures under an intervention (None: as they are), and the replies; shares are NaN and there is no reply
        unless it ``reads`` them."""
        judged, told = torch.full((3, len(self.prompts)), torch.nan, dtype=torch.float64), list[str]()
        if edit is None:
            judged = self.judged
        elif reads:
            judged, told = self._judged(replies(self.model, self.prompts, self.max_new_tokens, under=(edit,)))
        # What acts on replies only leaves the first token as it is.
        metric = self.metric
        if edit is not None and not starts_late:
            metric = refusal_metric(self.model, self.prompts, self.tokens, under=(edit,))
        refused, readable, broken = judged
        return torch.stack([refused, readable, metric.double(), *damage, broken]), told


def forced_damage(
    model: HookedChatModel,
    texts: Sequence[Scored],
    edits: Sequence[tuple[Intervention | None, bool]],
) -> Float[Tensor, "edit 2 prompt"]:
    """KL(baseline || changed) over a reply's first tokens, and the reply's loss, both per token, teacher-forced.

    Args:
        texts: prompts with the baseline's own replies, from ``reply_tokens``.
        edits: interventions (None for the baseline), each with whether it acts on replies only, so that nothing
            changes where all of them are empty.
    """
    found = torch.zeros(len(edits), 2, len(texts), dtype=torch.float64)
    for batch in scored_batches(model, texts):
        counts = [len(texts[i].ids) - texts[i].first for i in batch.indices]
        n_last = max(counts) + 1
        before = last_logits(model, batch, n_last)
        for k, (edit, starts_late) in enumerate(edits):
            after = before
            if edit is not None and (any(counts) or not starts_late):
                with model.hooks(edit):
                    after = last_logits(model, batch, n_last)
            for row, (i, n) in enumerate(zip(batch.indices, counts, strict=True)):
                # The last n + 1 positions predict the reply's n tokens and its end.
                some = slice(-n - 1, None if n + 1 <= FIRST else FIRST - n - 1)
                found[k, 0, i] = kl_divergence(before[row, some], after[row, some]).mean()
                scores = after[row, -n - 1 : -1].double().log_softmax(-1)
                found[k, 1, i] = -scores.gather(-1, batch.ids[row, -n:, None]).mean() if n else float("nan")
    return found
