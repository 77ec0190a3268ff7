"""The rows of the benchmark: each is our way and a plain way of the same work, on the same model and prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig

from refusal_lens import Ablate, HookedChatModel
from refusal_lens.attribution.components import heads as head_contributions
from refusal_lens.attribution.sources import source_contributions
from refusal_lens.direction.extract import extract_directions
from refusal_lens.direction.massive import stream_statistics
from refusal_lens.direction.records import CandidateDirections, Selection, SelectionScores
from refusal_lens.direction.select import SelectionRule, choose, select_direction
from refusal_lens.engines.local import LocalEngine
from refusal_lens.explorer.reading import look
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.grid_records import PatchingGrid
from refusal_lens.hijacking.grids import patching_grid
from refusal_lens.hijacking.screening import screen
from refusal_lens.progress import silent
from refusal_lens.refusal.records import RefusalTokens
from refusal_lens.study.config import StudyConfig

from .measure import Measured, measure
from .plain import Plain, nonzero

NEW_TOKENS = 32
ROUNDING = {torch.float32: 1e-3}  # of the largest number; in other dtypes a tenth


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was done.
        prompts: on how many prompts.
        seconds: wall time, ours and plain.
        cpu: processor time of the process, ours and plain.
        peak_mb: memory of tensors above the loaded model, ours and plain.
        tokens: real tokens of the work (no padding), for tokens per second.
        gflop: of our matrix multiplications with weights for real tokens; 0 where it isn't counted.
        note: how it was measured, or whether the results agree.
    """

    name: str
    prompts: int
    seconds: tuple[float, float]
    cpu: tuple[float, float]
    peak_mb: tuple[float, float]
    tokens: int
    gflop: float = 0.0
    note: str = ""


@dataclass(frozen=True, eq=False)
class Ground:
    """What all rows of one model share."""

    model: HookedChatModel
    plain: Plain
    train: tuple[list[str], list[str]]
    val: tuple[list[str], list[str]]
    tokens: RefusalTokens
    candidates: CandidateDirections
    suffixes: list[str]
    rule: SelectionRule
    coeff: float
    every: int
    turns: int
    config: StudyConfig

    def count(self, prompts: Sequence[str]) -> int:
        """Real tokens of the prompts."""
        return int(self.model.tokenize(list(prompts)).lengths.sum())

    def gap(self, what: str, ours: torch.Tensor, plain: torch.Tensor) -> str:
        """A sentence on the largest difference of both sides' numbers.

        Raises:
            AssertionError: it is more than rounding, or NaN on one side only.
        """
        a, b = ours.double().cpu(), plain.double().cpu()
        known = b.isfinite()
        assert torch.equal(known, a.isfinite()), f"{what}: NaN on one side only"
        share = float((a - b)[known].abs().max() / b[known].abs().max().clamp_min(1e-30)) if known.any() else 0.0
        said = f"{what}: largest gap {share:.1g} of the largest"
        assert share <= ROUNDING.get(self.model.dtype, 0.1), said
        return said

    def gflop(self, tokens: int, rows: int) -> float:
        """Of one forward: every token through the blocks, one row a prompt through the unembedding."""
        m = self.model
        blocks = sum(p.numel() for p in m.backend.layers.parameters() if p.ndim == 2)
        return 2 * (tokens * blocks + rows * m.d_model * m.d_vocab) / 1e9


def beside(g: Ground, *works: Callable[[], Any], times: int = 3) -> list[Measured]:
    """Each work's first value and median time; they take turns, so a machine that slows down slows all of them.

    A first turn warms up and counts memory, which takes time of its own: it is not timed.
    """
    pad_id = g.model.chat.pad_id
    first = [measure(work, memory=True, pad_id=pad_id) for work in works]
    turns = [[measure(work, pad_id=pad_id) for work in works] for _ in range(times)]
    return [
        Measured(
            found.value,
            median(r.seconds for r in runs),
            median(r.cpu for r in runs),
            found.peak_mb,
            found.gflop,
        )
        for found, *runs in zip(first, *turns, strict=True)
    ]


def row(name: str, prompts: int, ours: Measured, plain: Measured, *rest: Any, times: float = 1) -> Row:
    """Both sides in one row; the plain side was timed on a part of the work, and is multiplied by ``times``."""
    seconds, cpu = (ours.seconds, plain.seconds * times), (ours.cpu, plain.cpu * times)
    return Row(name, prompts, seconds, cpu, (ours.peak_mb, plain.peak_mb), *rest)


def forward_rows(g: Ground) -> list[Row]:
    """One batch through the model: hook points alone, and with ablation at every write, beside transformers."""
    prompts = g.val[0]
    batch = g.model.tokenize(prompts)
    mask = batch.mask.long()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    direction = next_direction(g.candidates)

    @torch.inference_mode()
    def plain() -> Any:
        return g.plain.hf(input_ids=batch.ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)

    def ablated() -> None:
        with g.model.hooks(Ablate(direction)):
            g.model.logits(batch)

    tokens = batch.ids.numel()
    gflop = g.gflop(tokens, len(prompts))
    bare, points, ablation = beside(g, plain, lambda: g.model.logits(batch), ablated)
    note = "same padded batch, last position's logits; real tokens and padding counted alike"
    return [
        row("forward, hook points", len(prompts), points, bare, tokens, gflop, note),
        row("forward, ablation hooks", len(prompts), ablation, bare, tokens, gflop, note),
    ]


def forms_rows(g: Ground) -> list[Row]:
    """The same batch under the forms of ablation that take statistics, beside plain ablation at every write."""
    prompts = g.val[0]
    batch, direction = g.model.tokenize(prompts), next_direction(g.candidates)
    statistics = stream_statistics(g.model, [p for some in g.train for p in some], covariance=True)

    def under(form: str) -> Callable[[], Any]:
        edit = Ablate(direction, form=form, statistics=statistics)
        edit.hooks(g.model)  # what is solved once for the statistics is not part of a pass

        def work() -> None:
            with g.model.hooks(edit):
                g.model.logits(batch)

        return work

    forms = ("affine", "scaled", "oblique")
    plain, *found = beside(g, under("paper"), *map(under, forms), times=2 * g.turns + 3)
    tokens = batch.ids.numel()
    return [
        row(f"forward, {form}", len(prompts), ours, plain, tokens, 0.0, "beside plain ablation, in turns")
        for form, ours in zip(forms, found, strict=True)
    ]


def extraction_row(g: Ground) -> Row:
    """Difference in means at all positions and layers."""
    ours, plain = beside(
        g,
        lambda: extract_directions(g.model, *g.train),
        lambda: g.plain.mean_diff(*g.train, len(g.model.chat.post_labels())),
    )
    gap = float((ours.value.mean_diff - plain.value).abs().max() / plain.value.abs().max())
    n, tokens = sum(map(len, g.train)), sum(map(g.count, g.train))
    note = f"largest gap {gap:.1g} of the largest value"
    return row("extraction", n, ours, plain, tokens, ours.gflop, note)


def _select(g: Ground, rule: SelectionRule, full: bool) -> Selection:
    return select_direction(
        g.model, g.candidates, *g.val, refusal_tokens=g.tokens, rule=rule, coeff=g.coeff, full_grid=full, relax=True
    )


def _beside_plain(g: Ground, rule: SelectionRule, full: bool) -> tuple[Measured, Measured, float, str]:
    """Ours; the plain algorithm on some candidates; what its time is multiplied with for all; a word on that."""
    live = nonzero(g.candidates.mean_diff)
    timed = live[:: g.every]
    ours, plain = beside(
        g,
        lambda: _select(g, rule, full),
        lambda: g.plain.select(g.candidates.mean_diff, *g.val, g.coeff, timed),
        times=g.turns,
    )
    # Of its passes, three a candidate and one of the baseline.
    times = (3 * len(live) + 1) / (3 * len(timed) + 1)
    note = f"median of {g.turns}, in turns; plain timed on {len(timed)} of {len(live)} candidates, times {times:.3g}"
    return ours, plain, times, note


def selection_row(g: Ground) -> Row:
    """The paper's selection beside the plain algorithm's three passes a candidate."""
    ours, plain, times, note = _beside_plain(g, g.rule, full=False)
    found: Selection = ours.value
    note += f"; chosen {found.chosen.label}"
    if found.near_misses:
        note += "; nothing passes the rule, so near misses were scored too, which the plain side does not do"
    elif g.every == 1:
        same = choose(SelectionScores(*plain.value), g.rule).chosen == (found.chosen.pos, found.chosen.layer)
        note += f"; the plain algorithm chooses the same: {same}"
    return _selection_row("selection", g, ours, plain, times, note)


def full_grid_row(g: Ground) -> Row:
    """Every score of every candidate beside the plain algorithm; with a rule that drops none, as the plain side."""
    everything = SelectionRule(max_kl=math.inf, min_induce=-math.inf)
    ours, plain, times, note = _beside_plain(g, everything, full=True)
    known = ~torch.isnan(plain.value[0])
    gaps = {
        name: float((getattr(ours.value.scores, name)[known] - plain.value[i][known]).abs().max())
        for i, name in enumerate(("bypass", "induce", "kl"))
    }
    note += "; largest gap to the plain scores: " + ", ".join(f"{k} {v:.2g}" for k, v in gaps.items())
    note += f"; the rule keeps {len(choose(ours.value.scores, g.rule).kept)}"
    return _selection_row("full grid", g, ours, plain, times, note)


def _selection_row(name: str, g: Ground, ours: Measured, plain: Measured, times: float, note: str) -> Row:
    tokens = 3 * len(nonzero(g.candidates.mean_diff)) * sum(map(g.count, g.val)) // 2
    return row(name, sum(map(len, g.val)), ours, plain, tokens, ours.gflop, note, times=times)


def attribution_rows(g: Ground) -> list[Row]:
    """Heads and source tokens that write the direction, beside one plain forward of the same prompts."""
    prompts, direction = g.val[0], next_direction(g.candidates)
    plain, heads, sources = beside(
        g,
        lambda: g.plain.last_logits(prompts, keep=1),
        lambda: head_contributions(g.model, prompts, direction),
        lambda: source_contributions(g.model, prompts, direction),
    )
    tokens, n = g.count(prompts), len(prompts)
    gflop = g.gflop(tokens, 0)
    return [
        row(name, n, ours, plain, tokens, gflop, "beside a forward")
        for name, ours in (("head contributions", heads), ("source contributions", sources))
    ]


def suffix_row(g: Ground) -> Row:
    """The refusal metric of every suffix behind every prompt."""
    prompts = g.val[0][:4]
    pairs = [(p, s) for p in prompts for s in g.suffixes]
    asked, behind = map(list, zip(*pairs, strict=True))
    ours, plain = beside(
        g,
        lambda: screen(g.model, prompts, g.suffixes, g.tokens, engine=LocalEngine(g.model)),
        lambda: g.plain.metric(g.plain.last_logits(asked, behind)).reshape(len(prompts), -1).T,
        times=g.turns,
    )
    gap = float((ours.value.metric - plain.value.cpu()).abs().max())
    tokens = int(g.model.tokenize(asked, behind).lengths.sum())
    note = f"{len(prompts)} prompts x {len(g.suffixes)} suffixes; largest gap of the metric {gap:.2g}"
    return row("suffix batch", len(pairs), ours, plain, tokens, ours.gflop, note)


def grid_row(g: Ground) -> Row:
    """Every cell of a patching grid of resid_pre, beside one whole forward of all prompts per cell."""
    prompts, suffix = g.val[0][:16], g.suffixes[-1]
    drawn = list(random_controls(g.model.chat, prompts, suffix).texts)
    after = [suffix] * len(prompts)

    def ours() -> PatchingGrid:
        options: Any = {"n_placebo": 0, "progress": silent}
        return patching_grid(g.model, prompts, suffix, drawn, next_direction(g.candidates), g.tokens, **options)

    def plain() -> torch.Tensor:
        n = ours_first.effects.shape[2]
        return g.plain.grid(prompts, after, drawn, n) - g.plain.metric(g.plain.last_logits(prompts, after, keep=1))

    ours_first = ours()
    found, other = beside(g, ours, plain, times=g.turns)
    gap = float((found.value.effects[0] - other.value).abs().max())
    cells, n = len(found.value.measured), len(prompts)
    tokens = cells * int(g.model.tokenize(prompts, after).lengths.sum())
    note = f"{cells} cells in {found.value.passes} passes, and their gradients; largest gap of the metric {gap:.2g}"
    return row("patching grid", n, found, other, tokens, 0.0, note)


def generation_row(g: Ground) -> Row:
    """Greedy replies under ablation beside ``transformers.generate`` without interventions."""
    prompts, direction = g.val[0], next_direction(g.candidates)
    batch = g.model.tokenize(prompts)
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=g.model.chat.pad_id
    )
    lengths: list[int] = []

    @torch.inference_mode()
    def plain() -> None:
        g.plain.hf.generate(input_ids=batch.ids, attention_mask=batch.mask.long(), generation_config=config)

    def ours() -> None:
        with g.model.hooks(Ablate(direction)), torch.inference_mode():
            new = g.model.backend.generate(batch.ids, batch.mask, NEW_TOKENS, [], g.model.chat.pad_id)
            lengths.append(new.shape[1])

    found = row("generation, ablation", len(prompts), *beside(g, ours, plain), len(prompts) * NEW_TOKENS, 0.0)
    assert set(lengths) == {NEW_TOKENS}
    return found


def look_row(g: Ground) -> Row:
    """One look of the explorer: a request plain, with a suffix, under ablation, and both controls, without replies."""
    prompt, suffix, direction = g.val[0][0], g.suffixes[0], next_direction(g.candidates)
    found: Any = SimpleNamespace(direction=direction, refusal_tokens=g.tokens)
    under = {"ablation": [Ablate(direction)]}
    after = ["", *[suffix] * 4]
    ours, plain = beside(
        g,
        lambda: look(g.model, prompt, found, suffix, under=under),
        lambda: [g.plain.last_logits([prompt], [text], keep=1) for text in after],
        times=g.turns,
    )
    tokens = int(g.model.tokenize([prompt] * len(after), after).lengths.sum())
    return row(
        "a look", len(after), ours, plain, tokens, 0.0, "one pass per condition and one to the head; beside forwards"
    )


def next_direction(candidates: CandidateDirections) -> Any:
    """A candidate in the middle: which one it is does not change the time."""
    live = nonzero(candidates.mean_diff)
    i, layer = live[len(live) // 2]
    return candidates.direction(candidates.positions[i], layer)


GROUPS: dict[str, Callable[[Ground], list[Row]]] = {
    "forward": forward_rows,
    "forms": forms_rows,
    "extraction": lambda g: [extraction_row(g)],
    "selection": lambda g: [selection_row(g)],
    "full_grid": lambda g: [full_grid_row(g)],
    "attribution": attribution_rows,
    "suffixes": lambda g: [suffix_row(g)],
    "grid": lambda g: [grid_row(g)],
    "generation": lambda g: [generation_row(g)],
    "look": lambda g: [look_row(g)],
}
