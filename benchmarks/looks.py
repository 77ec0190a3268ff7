"""Rows for what is measured beyond a default run: why attention moves, how many heads, doses, a learned direction."""

from __future__ import annotations

import random
from typing import Any

import torch

from refusal_lens.data.prompts import PromptPair, Prompts, PromptSet
from refusal_lens.direction.cone_loss import ConeLoss, own_words
from refusal_lens.direction.cone_records import PARTS
from refusal_lens.direction.cones import WEIGHTS
from refusal_lens.direction.dose import FIRST, Scope, dose_response
from refusal_lens.direction.records import FoundDirection, Selection
from refusal_lens.direction.select import select_direction
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hijacking.curves import GREEDY, TRIED, head_curves, within_layers
from refusal_lens.hijacking.shifts import attention_shift
from refusal_lens.models.texts import reply_tokens

from . import plain_stages
from .rows import Ground, Row, beside, next_direction, row

SOME, FEW, NEW = 16, 4, 24  # prompts; prompts for curves; tokens of a reply
GRID = {"ablation": (0.5, 1.0), "addition": (0.5, 1.0)}


def _drawn(g: Ground, prompts: list[str]) -> list[str]:
    return list(random_controls(g.model.chat, prompts, g.suffixes[-1]).texts)


def split_row(g: Ground) -> Row:
    """Why each head's attention moves from random tokens to a suffix; one receiver's scores by what wrote them."""
    prompts, suffix = g.val[0][:SOME], g.suffixes[-1]
    drawn, after = _drawn(g, prompts), [suffix] * len(prompts)
    ours, plain = beside(
        g,
        lambda: attention_shift(g.model, prompts, suffix, drawn, receivers=[(g.model.n_layers - 1, 0)], plain=False),
        lambda: plain_stages.split(g.plain, prompts, after, drawn),
        times=g.turns,
    )
    tokens = 2 * int(g.model.tokenize(prompts, after).lengths.sum())
    note = g.gap("Shapley values of all heads", ours.value.parts, plain.value) + "; ours also splits one head's scores"
    return row("split", len(prompts), ours, plain, tokens, 0.0, note)


def curve_row(g: Ground) -> Row:
    """The metric by number of heads cut off from a suffix: by attribution, greedily and at random."""
    prompts, others, suffix = g.val[0][:FEW], g.train[0][:FEW], g.suffixes[-1]
    drawn, chosen = _drawn(g, prompts), _drawn(g, others)
    direction = next_direction(g.candidates)
    after, before = (g.model.tokenize(texts, [suffix] * len(texts)) for texts in (prompts, others))
    n = [suffix] * len(others)

    def ours() -> Any:
        how: Any = {"choosing": others, "choosing_random": chosen, "n_random": 1}
        return head_curves(g.model, prompts, suffix, drawn, direction, g.tokens, **how)

    def plain() -> torch.Tensor:
        fall = [plain_stages.heads(g.plain, others, direction.unit, texts).mean(-1) for texts in (chosen, n)]
        order = (fall[0] - fall[1]).flatten().argsort(descending=True).tolist()
        ranked = [(i // g.model.n_heads, i % g.model.n_heads) for i in order]
        best = plain_stages.greedy(g.plain, before, ranked, GREEDY, TRIED)
        orders = [ranked, best, within_layers(ranked, random.Random(0))]
        return plain_stages.curves(g.plain, after, orders, ours_first.counts)

    ours_first = ours()
    found, other = beside(g, ours, plain, times=g.turns)
    passes = 2 * found.value.metric.shape[1] * len(found.value.counts)
    tokens = passes * int(after.lengths.sum())
    note = f"{passes} points and the greedy choice; {g.gap('metric', found.value.metric, other.value)}"
    return row("curve", len(prompts), found, other, tokens, 0.0, note)


def _found(g: Ground) -> tuple[PromptPair, FoundDirection]:
    """The prompts as data, and a direction with its candidates."""
    sets = [
        PromptSet(name, *(Prompts(tuple(texts)) for texts in (train, val[:SOME], val[:SOME])))
        for name, train, val in zip(("harmful", "harmless"), g.train, g.val, strict=True)
    ]
    how: Any = {"refusal_tokens": g.tokens, "rule": g.rule, "relax": True}
    selection: Selection = select_direction(g.model, g.candidates, *(val[:FEW] for val in g.val), **how)
    return PromptPair(*sets), FoundDirection(selection, g.candidates, g.tokens)


def dose_row(g: Ground) -> Row:
    """Metric, KL and loss under some strengths of ablation and addition, and of a random direction."""
    data, found = _found(g)
    direction, seed = found.direction, 1
    sides = [list(kind.test) for kind in (data.harmful, data.harmless)]
    n = min(map(len, sides))
    sides = [texts[:n] for texts in sides]

    def ours() -> Any:
        how: Any = {"strengths": GRID, "scopes": {"all": Scope()}, "replies_at": (), "max_new_tokens": NEW}
        return dose_response(g.model, data, found, seed=seed, **how)

    def plain() -> torch.Tensor:
        told = [[g.model.tokenizer.decode(ids, skip_special_tokens=True) for ids in _told(g, texts)] for texts in sides]
        own = [reply_tokens(g.model, texts, said) for texts, said in zip(sides, told, strict=True)]
        under = plain_stages.edits(g.plain, direction, direction.random_control(seed), GRID)
        acts = {"ablation": (sides[0], own[1]), "addition": (sides[1], own[0])}
        return torch.cat([plain_stages.doses(g.plain, *acts[name], under[name], FIRST) for name in GRID])

    mine, other = beside(g, ours, plain, times=g.turns)
    measured = mine.value.values[0, :, :, 2:5].reshape(-1, 3, n)
    edits = len(measured)
    tokens = 2 * edits * sum(map(g.count, sides))
    names = ("metric", "KL", "loss")
    gaps = "; ".join(g.gap(name, measured[:, i], other.value[:, i]) for i, name in enumerate(names))
    return row("dose", n, mine, other, tokens, 0.0, f"{edits} edits, and the replies without them; {gaps}")


def _told(g: Ground, texts: list[str]) -> list[list[int]]:
    return plain_stages.replies(g.plain, texts, NEW, g.model.eos_ids, g.model.chat.pad_id)


def cone_row(g: Ground) -> Row:
    """The loss of a learned direction on one batch, and its gradient: what every step of training takes."""
    data, found = _found(g)
    direction = found.direction
    words = own_words(g.model, data, "train")
    loss = ConeLoss(g.model, direction, None, tuple(WEIGHTS[part] for part in PARTS), words.openings, words.refusals)
    some = range(min(8, len(words.harmful), len(words.harmless)))
    batch = loss.batch(words, some, some, torch.Generator().manual_seed(0))
    start = torch.randn(g.model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor(loss.weights[:3], dtype=torch.float64)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        r = start.to(g.model.device).requires_grad_(True)
        parts = loss.parts(r, batch)[:3]
        return parts.detach(), torch.autograd.grad(parts @ weights, r)[0].cpu()

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        r = start.to(g.model.device).requires_grad_(True)
        parts = plain_stages.cone_loss(g.plain, r, batch, (direction.coeff * direction.norm, direction.layer))
        return parts.detach(), torch.autograd.grad(parts @ weights, r)[0].cpu()

    mine, other = beside(g, ours, plain, times=2 * g.turns + 1)
    tokens = sum(len(text.ids) for texts in (batch.answer, batch.refuse, batch.retain) for text in texts)
    note = "; ".join(
        g.gap(name, a, b) for name, a, b in zip(("loss", "gradient"), mine.value, other.value, strict=True)
    )
    return row("cone, a step's gradient", len(some), mine, other, tokens, 0.0, note)
