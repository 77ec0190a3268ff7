"""One look at a model: everything about one request, each condition read in one pass, beside its control."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ..attribution.components import texts
from ..attribution.ranking import choose_heads
from ..attribution.sources import attention_patterns, bounds_of, known_heads
from ..attribution.token_records import AttentionPatterns, SourceContributions
from ..data.files import check_text
from ..direction.conversation import joined, placed
from ..direction.records import FoundDirection
from ..errors import InterventionError, ModelError, PromptError
from ..hijacking.controls import check_suffix, random_controls
from ..hooks.attention_readers import Sources
from ..hooks.base import Intervention
from ..hooks.conditions import Conditions
from ..hooks.pattern_readers import WrittenPattern
from ..hooks.readers import EveryToken, Reader
from ..models.model import HookedChatModel
from ..models.texts import token_texts
from ..records.base import Record
from ..records.labels import Head
from ..records.store import content_key
from ..refusal.metric import RefusalMetric
from .records import Look

Kept = MutableMapping[str, Any]
Rows = Mapping[str, tuple[str, Sequence[Intervention]]]
MOST_KEPT = 400  # values of earlier looks: source contributions on a model of 0.5B have 0.2 MB
FIRST_WORDS = 6  # tokens of each reply that are shown before the rest of it
T = TypeVar("T")


def look(
    model: HookedChatModel,
    request: str,
    found: FoundDirection,
    suffix: str = "",
    *,
    under: Conditions | None = None,
    head: Head | str | None = None,
    top_heads: Any = (),
    max_new_tokens: int = 0,
    n_random: int = 39,
    seed: int = 0,
    kept: Kept | None = None,
) -> Look:
    """Look at one request: the map of its tokens, the refusal metric, heads and their sources, by condition.

    A suffix is read beside random tokens of equal length, an intervention beside its placebo.

    Args:
        found: the direction with its refusal tokens.
        suffix: with its leading space; "" for none.
        under: interventions by name, on the request with its suffix; each gets a placebo, ``random_`` and its name.
        head: the head whose pattern is read; the first of ``top_heads`` if None.
        top_heads: heads shown; if none, those that write most along r̂ on this request.
        max_new_tokens: length of the replies, which the map then includes; 0 for none.
        n_random: random directions of the map's neutral band.
        seed: of the random suffix and the placebos.
        kept: a dict of what earlier looks read; conditions in it are not read again.

    Raises:
        PromptError: a request that is empty or too long; a suffix that is blank or merges with the request.
        LabelError: a head that the model does not have.
        ModelError: a refusal metric that is not finite.

    Example:
        >>> seen = rl.explorer.look(model, "How do I pick a lock?", found, under={"ablation": [rl.Ablate(found)]})
        >>> seen.conditions
        ('baseline', 'ablation', 'random_ablation')
        >>> seen.metric["ablation"] < 0 < seen.metric["random_ablation"]
        True
    """
    model.check_direction(found.direction)
    kept = {} if kept is None else kept
    rows, control, notes = conditions(model, request, suffix, under or {}, seed)
    shown, done = known_heads(model, top_heads), dict[str, _Row]()
    picked = next(iter(shown if head is None else known_heads(model, head)), None)
    for name, row in rows.items():
        done[name] = _read(model, request, *row, found, n_random, picked, kept)
        if not math.isfinite(done[name].metric):
            raise ModelError(
                f"{model.name} gives no finite refusal metric under {name}: load it in bfloat16 or float32, or lower "
                "the strength"
            )
        # The first is the plain one, which says what there is to see in the others.
        shown = shown or choose_heads(done[name].sources.head_contributions(), min(8, model.n_heads))
        picked = picked or shown[0]
    chosen = picked or shown[0]

    def pattern(after: str, acting: Sequence[Intervention]) -> AttentionPatterns:
        def read() -> AttentionPatterns:
            with model.hooks(*_on_prompts(acting)):
                return attention_patterns(model, request, [chosen], after, found)

        return once(kept, ("pattern", chosen, found.direction, request, after, acting), read)

    seen = Look(
        map=joined({name: row[:3] for name, row in done.items()}, found.direction, n_random, request, suffix),
        metric={name: row.metric for name, row in done.items()},
        sources={name: row.sources for name, row in done.items()},
        patterns={name: pattern(*row) for name, row in rows.items()},
        head=chosen,
        top_heads=shown,
        control=control,
        threshold=found.refusal_tokens.threshold,
        notes=notes,
    )
    if max_new_tokens:
        *_, seen = answered(model, seen, rows, max_new_tokens, kept)
    return seen


def conditions(
    model: HookedChatModel, request: str, suffix: str, under: Conditions, seed: int
) -> tuple[Rows, str, tuple[str, ...]]:
    """(suffix and interventions by condition, the random suffix, notes on controls that could not be made).

    Raises:
        PromptError: as in ``look``.
    """
    check_text(request, "the request")
    if not request.strip():
        raise PromptError("the request is empty: type one, or pick one")
    rows: dict[str, tuple[str, Sequence[Intervention]]] = {"baseline": ("", ())}
    control, notes = "", []
    if suffix:
        check_suffix(model.chat, [request], suffix, model.n_ctx)
        rows["adversarial"] = suffix, ()
        try:
            (control,) = random_controls(model.chat, [request], suffix, seed).texts
            rows["random_suffix"] = control, ()
        except PromptError as error:
            notes.append(f"no random suffix: {error}")
    for name, acting in under.items():
        rows[name] = suffix, tuple(acting)
        try:
            rows[f"random_{name}"] = suffix, tuple(one.placebo(seed) for one in acting)
        except InterventionError as error:
            notes.append(f"no placebo of {name}: {error}")
    return rows, control, tuple(notes)


def answered(model: HookedChatModel, seen: Look, rows: Rows, max_new_tokens: int, kept: Kept) -> Iterator[Look]:
    """The look with more and more of its replies: first words of every condition, then whole replies, then the map of
    the conversation with them. Greedy replies begin alike, whatever their length."""
    request = seen.request
    for length in sorted({min(FIRST_WORDS, max_new_tokens), max_new_tokens}):
        for name, (after, acting) in rows.items():

            def reply(after: str = after, acting: Sequence[Intervention] = acting, length: int = length) -> str:
                with model.hooks(*acting):
                    return str(model.generate(request, length, [after]))

            said = once(kept, ("reply", length, request, after, acting), reply)
            seen = dataclasses.replace(seen, replies={**seen.replies, name: said})
            yield seen
    found, n_random = seen.map.direction, seen.map.n_random
    reader, grids = EveryToken(found, n_random=n_random), {}
    for name, (after, acting) in rows.items():

        def whole(after: str = after, acting: Sequence[Intervention] = acting, said: str = seen.replies[name]) -> Any:
            tokens, regions = placed(model, request, after, said)
            acts = acting if said else _on_prompts(acting)
            return model.run(tokens, read=reader, under=acts)[reader], token_texts(model, tokens)[0], regions

        grids[name] = once(kept, ("map", found, n_random, request, after, acting, seen.replies[name]), whole)
    yield dataclasses.replace(seen, map=joined(grids, found, n_random, request, seen.suffix))


class _Row(NamedTuple):
    """One condition."""

    grids: dict[str, Tensor]
    tokens: tuple[str, ...]
    regions: tuple[str, ...]
    sources: SourceContributions
    metric: float


def _read(
    model: HookedChatModel,
    request: str,
    suffix: str,
    acting: Sequence[Intervention],
    found: FoundDirection,
    n_random: int,
    head: Head | None,
    kept: Kept,
) -> _Row:
    """Everything in one pass; the pattern too if its head is known."""

    def run() -> _Row:
        tokens, regions = placed(model, request, suffix)
        grid, by_source = EveryToken(found, n_random=n_random), Sources(found)
        metric, pattern = RefusalMetric(found.refusal_tokens), WrittenPattern([] if head is None else [head], found)
        readers: list[Reader] = [grid, by_source, metric, *([pattern] if pattern.heads else [])]
        rows = model.run(tokens, read=readers, under=_on_prompts(acting))
        words, asked = token_texts(model, tokens), texts([request], [suffix])
        if head is not None:
            parts: Any = rows[pattern][0]
            made = AttentionPatterns(parts.weight, (head,), words[0], asked[0], parts.length, parts.along)
            once(kept, ("pattern", head, found.direction, request, suffix, acting), lambda: made)
        sources = SourceContributions(*rows[by_source], bounds_of(tokens), words, asked, found.direction, -1)
        return _Row(rows[grid], words[0], regions, sources, float(rows[metric]))

    return once(kept, ("read", found.direction, found.refusal_tokens.ids, n_random, request, suffix, acting), run)


def _on_prompts(acting: Sequence[Intervention]) -> list[Intervention]:
    """Those that act on prompts: one on replies alone would find nothing to act on."""
    return [one for one in acting if one.positions not in ("reply", ("reply",))]


def once(kept: Kept, what: tuple[Any, ...], make: Callable[[], T]) -> T:
    """A value made once per content of ``what``; where there are too many, the oldest go."""
    key = content_key(*(_plain(part) for part in what))
    if key not in kept:
        while len(kept) >= MOST_KEPT:
            del kept[next(iter(kept))]
        kept[key] = make()
    return kept[key]


def _plain(part: Any) -> Any:
    """An intervention, or some, as its class and fields; anything else as it is."""
    if isinstance(part, (tuple, list)):
        return [_plain(one) for one in part]
    if not isinstance(part, Intervention):
        return part
    fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    shown = {name: x if isinstance(x, (Tensor, Record, dict)) else repr(x) for name, x in fields.items()}
    return {"$intervention": type(part).__name__, **shown}
