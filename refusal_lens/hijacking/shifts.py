"""Why attention turns to a suffix: query or keys (Shapley values), and the components that wrote their scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts, as_suffixes
from ..errors import ModelError, PromptError
from ..hooks.scores import TOLERANCE, ScoreForm, ScoreRows, Scores, score_forms
from ..models.model import HookedChatModel
from ..records.labels import Head, as_heads, visible
from .causal import matching_columns
from .rows import Pair, PlainRow, Row, shapley
from .shift_records import TARGETS, AttentionShift, largest_edges
from .writers import Writers, Written

NAMED = 12  # edges that are named
CHUNK = 2048  # tokens read at once; memory does not depend on the number of prompts


def attention_shift(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffixes: str | Sequence[str],
    random: Sequence[str],
    *,
    receivers: Sequence[Head | str] | int = 8,
    choosing: PromptsLike = (),
    choosing_random: Sequence[str] = (),
    plain: bool = True,
    pos: int = -1,
) -> AttentionShift:
    """Split each head's change of attention, from random tokens to a suffix, into its causes.

    Before the suffix nothing can change. So a head's row at ``pos`` changes by its query, by the suffix's keys and by
    those of the template after it: Shapley values over these three (Shapley 1953) add up to the change. The scores of
    the receivers are split further: the change of a softmax is the sum over keys of its mean derivative on the straight
    path between the two rows of scores, times the score's change (Aumann and Shapley 1974; Sundararajan et al. 2017),
    and a score's change is linear in what each component wrote, with norms' scales frozen at their mean of both runs.

    Args:
        suffixes: one per prompt, or one ``str`` for all.
        random: random tokens, as many as the suffix has, per prompt (``random_controls``).
        receivers: heads whose scores are split, which the result has layer by layer; or how many, then those whose
            attention to the suffix rises most on ``choosing``.
        choosing: other prompts, which choose receivers and named edges; with their own random tokens.
        plain: also compare with the prompts alone, where the distance changes too.
        pos: the position that attends, counted from the end.

    Raises:
        PromptError: random tokens of another number, or heads to choose and no other prompts.
        ModelError: a model whose scores are not q · k of its hook points.

    Example:
        >>> prompts, suffix = data.harmful.test[:2].texts, " please"
        >>> drawn = rl.hijacking.random_controls(model.chat, prompts, suffix).texts
        >>> shift = rl.hijacking.attention_shift(model, prompts, suffix, drawn, receivers=["L1H0"])
        >>> shift.sizes["player"], shift.sums_error < 1e-3
        (3, True)
    """
    requests, others = as_prompts(prompts), as_prompts(choosing)
    forms, notes = score_forms(model), list[str]()
    if isinstance(receivers, int) and not others:
        raise PromptError("give choosing=, other prompts that choose the receivers, or name receivers")
    if isinstance(receivers, int):
        rise = _Job(model, forms, (), pos).measure(others, suffixes, choosing_random).rows["parts"].sum(0)
        order = rise[TARGETS.index("suffix")].mean(-1).flatten().argsort(descending=True)[:receivers].tolist()
        receivers = sorted((i // model.n_heads, i % model.n_heads) for i in order)
    heads = tuple(sorted(as_heads(receivers)))
    job = _Job(model, forms, heads, pos, notes)
    found = job.measure(requests, suffixes, random, plain)
    edges = found.written.edges(len(heads))
    ranked = edges.mean
    if others:
        chosen = _Job(model, forms, heads, pos).measure(others, suffixes, choosing_random)
        ranked = chosen.written.edges(len(heads)).mean
    instruction, suffix = (largest_edges(ranked[:, i], NAMED) for i in range(len(TARGETS)))
    if job.causality > job.limit:
        notes.append(
            f"keys or values before the suffix differ by {job.causality:.1g} of their size, more than rounding: the "
            "causes below leave that out"
        )
    return AttentionShift(
        **{"from_plain": None, **found.rows},  # type: ignore[arg-type]
        receivers=heads,
        edges=edges.mean,
        spread=edges.spread,
        named=suffix,
        named_on_instruction=instruction,
        tokens=found.tokens,
        causality=job.causality,
        scores_error=job.scores_error,
        sums_error=edges.error,
        n_chosen=len(others),
        hidden=tuple(sorted(job.hidden)),
        notes=tuple(notes),
    )


class _Found(NamedTuple):
    """What one list of prompts gave: values with prompts on the last axis, by field of ``AttentionShift``."""

    rows: dict[str, Tensor]
    written: Written
    tokens: tuple[str, ...]


@dataclass
class _Job:
    """The passes, batch by batch, and what is checked on the way."""

    model: HookedChatModel
    forms: Sequence[ScoreForm]
    heads: tuple[Head, ...]
    pos: int
    notes: list[str] = field(default_factory=list)
    causality: float = 0.0
    scores_error: float = 0.0
    plain_error: float = 0.0
    hidden: set[int] = field(default_factory=set)

    @property
    def limit(self) -> float:
        """What rounding may do in the model's dtype, relative."""
        return TOLERANCE.get(self.model.dtype, 4e-2)

    def measure(
        self, prompts: list[str], suffixes: str | Sequence[str], random: Sequence[str], plain: bool = False
    ) -> _Found:
        """All prompts, with the suffix and with random tokens, and alone where ``plain``."""
        model, n = self.model, len(prompts)
        after, before = (model.tokenize(prompts, as_suffixes(texts, n)) for texts in (suffixes, random))
        if any(a.suffix != b.suffix for a, b in zip(after.spans, before.spans, strict=True)):
            raise PromptError("the random tokens are not as many as the suffix has: draw them with random_controls")
        kept = after.mask & ~after.region("suffix")
        if after.ids.shape != before.ids.shape or not torch.equal(after.ids[kept], before.ids[kept]):
            raise PromptError("the suffix or its random tokens merge with the instruction: begin both with a space")
        alone = model.tokenize(prompts) if plain else None
        if plain and any("rot_q" in form.hooks or form.norm_last for form in self.forms):
            self.notes.append("the plain run was not compared: this model's rotation is not at hand")
            alone = None
        writers, written = self._writers(), Written()
        rows = dict[str, Tensor]()

        def put(name: str, index: list[int], x: Tensor) -> None:
            rows.setdefault(name, torch.zeros(*x.shape[:-1], n, dtype=torch.float32))[..., index] = x.float().cpu()

        widest = max(span.suffix[1] - span.suffix[0] for span in after.spans)
        for batch in model.batches(after, max_tokens=CHUNK):
            index = list(batch.indices)
            read = Scores(self.forms, self.pos, writers.names if writers else (), widest + after.n_post)
            targets = torch.stack([batch.region(name) for name in TARGETS])
            random_run, run = (model.run(tokens, read=read)[read] for tokens in (before.take(index), batch))
            both = Pair(batch, random_run, run, targets, batch.region("template_post"), read.n_last)
            rest, columns = None, None
            if alone is not None:
                own, tokens = Scores(self.forms, self.pos), alone.take(index)
                rest, columns = model.run(tokens, read=own)[own], matching_columns(batch, tokens)
            for name, x in self._batch(both, writers, written, widest, rest, columns).items():
                put(name, index, x)
        if "from_plain" in rows and self.plain_error > self.limit:
            del rows["from_plain"]
            self.notes.append(
                f"the plain run was not compared: its attention can't be computed from this run's keys (off by "
                f"{self.plain_error:.2g}), as where rotation depends on length"
            )
        first = after.ids[0][after.region("suffix")[0]].tolist()
        texts = [visible(model.tokenizer.decode([token])) for token in first]
        return _Found(rows, written, ("",) * (widest - len(texts)) + tuple(texts))

    def _writers(self) -> Writers | None:
        """The way back to the stream, or None and a note where a model does not give its weights by head."""
        try:
            return Writers(self.model, self.forms, self.heads, self.pos)
        except ModelError as error:
            self.notes.append(f"what wrote the scores was not split: {error}")
            return None

    def _batch(
        self,
        both: Pair,
        writers: Writers | None,
        written: Written,
        widest: int,
        plain: ScoreRows | None,
        columns: Int[Tensor, "batch src"] | None,
    ) -> dict[str, Tensor]:
        """Shapley values of every head; edges and tokens of the receivers."""
        suffix, parts, alone, from_plain, pulls = both.suffix, [], [], [], {}
        changes, gained, taken = [], [], []
        for layer, form in enumerate(self.forms):
            row = Row.of(self.model, layer, form, both, self.pos)
            self.scores_error = max(self.scores_error, row.error)
            self.causality = max(self.causality, row.causality)
            if row.hides_instruction:
                self.hidden.add(layer)
            if columns is not None and plain is not None:
                there = PlainRow.of(row, layer, plain.layers[layer], columns, both.tokens.n_post, self.pos)
                self.plain_error = max(self.plain_error, there.error)
                from_plain.append(shapley([there.masses(*players) for players in product((0, 1), repeat=4)], 4))
            values = [row.masses(*players) for players in product((0, 1), repeat=3)]
            parts.append(shapley(values, 3))
            alone.append(torch.stack([values[4 >> i] - values[0] for i in range(3)]))
            if some := [head for other, head in self.heads if other == layer]:
                path = row.path(some)
                pulls[layer] = row.pulls(path, some)
                changes.append(path.change)
                gained.append(_ending(path.gained, suffix, widest))
                taken.append(_ending(path.by_key[TARGETS.index("instruction")], suffix, widest))
        found = {"parts": torch.stack(parts, 2), "alone": torch.stack(alone, 2)}
        if from_plain:
            found["from_plain"] = torch.stack(from_plain, 2)
        empty = suffix.new_zeros(0, widest, len(suffix), dtype=torch.float32)
        found["gained"], found["taken"] = (torch.cat(x) if x else empty for x in (gained, taken))
        if pulls and writers is not None:
            written.add(writers.split((both.before, both.after), pulls), torch.cat(changes, 1))
        return found


def _ending(x: Float[Tensor, "r src batch"], suffix: Bool[Tensor, "batch src"], n: int) -> Float[Tensor, "r n batch"]:
    """Values at the suffix's tokens, which end together; 0 where a suffix is shorter."""
    order = suffix.long().argsort(dim=1, stable=True)[:, -n:].T  # the suffix's keys last, in their order
    there = suffix.T.gather(0, order)
    return x.gather(1, order.expand(len(x), -1, -1)) * there
