"""What stages of a study and looks into a suffix measure, written plainly: whole forwards, one thing at a time.

Each function takes the ``Plain`` model first. Batches are padded to one length; nothing is packed, restarted or shared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .plain import BATCH, Plain, _positions


def kept(p: Plain, prompts: Sequence[str], spare: Sequence[str], refused: bool, threshold: float) -> list[str]:
    """Prompts whose metric is on the right side, with spare ones in place of those dropped."""
    found: list[str] = []
    pool = [*prompts, *spare]
    while pool and len(found) < len(prompts):
        some, pool = pool[:BATCH], pool[BATCH:]
        metrics = p.metric(p.last_logits(some, keep=1)).tolist()
        found += [prompt for prompt, m in zip(some, metrics, strict=True) if (m > threshold) == refused]
    return found[: len(prompts)]


@torch.inference_mode()
def streams(p: Plain, prompts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """By batch: [layer + 1, prompt, pos, d] inputs of every block, last the final output; and the mask."""
    for start in range(0, len(prompts), BATCH):
        tokens, rows = p.tokenize(prompts[start : start + BATCH]), list[Tensor]()

        def keep(module: Any, args: tuple, rows: list[Tensor] = rows) -> None:
            rows.append(args[0].clone())

        with p.hooked([(module, keep) for module in (*p.layers, p.hf.model.norm)], []):
            mask = tokens.mask.long()
            p.hf(input_ids=tokens.ids, attention_mask=mask, position_ids=_positions(mask), logits_to_keep=1)
        yield torch.stack(rows), tokens.mask


def trace(p: Plain, prompts: Sequence[str], unit: Tensor) -> Tensor:
    """[layer + 1, prompt] projection of the last position."""
    return torch.cat([(x[:, :, -1].double() @ unit.to(x.device).double()).cpu() for x, _ in streams(p, prompts)], 1)


def travel(p: Plain, prompts: Sequence[str], unit: Tensor) -> Tensor:
    """All projections of real tokens, [layer + 1, token], prompt after prompt."""
    return torch.cat([(x[:, mask].double() @ unit.to(x.device).double()).cpu() for x, mask in streams(p, prompts)], 1)


@torch.inference_mode()
def heads(p: Plain, prompts: Sequence[str], unit: Tensor, suffixes: Sequence[str] | None = None) -> Tensor:
    """[layer, head, prompt] what each head writes along a direction at the last position."""
    n, rows = p.hf.config.num_attention_heads, last_z(p, prompts, suffixes)
    found = torch.empty(len(p.layers), n, len(prompts), dtype=torch.float64)
    for layer, block in enumerate(p.layers):
        z = rows[layer].double()
        readout = block.self_attn.o_proj.weight.double().T @ unit.to(z)
        for head, part in enumerate(torch.arange(z.shape[1]).chunk(n)):
            found[layer, head] = (z[:, part] @ readout[part]).cpu()
    return found


@torch.inference_mode()
def last_z(p: Plain, prompts: Sequence[str], suffixes: Sequence[str] | None = None) -> Tensor:
    """[layer, prompt, width] outputs of all heads at the last position, before they are written."""
    seen: list[list[Tensor]] = [[] for _ in p.layers]

    def keep(layer: int) -> Any:
        return lambda module, args: seen[layer].append(args[0][:, -1].clone())

    with p.hooked([(block.self_attn.o_proj, keep(i)) for i, block in enumerate(p.layers)], []):
        p.last_logits(prompts, suffixes, keep=1)
    return torch.stack([torch.cat(rows) for rows in seen])


def replaced(p: Plain, prompts: Sequence[str], z: Tensor, some: Sequence[tuple[int, int]]) -> Tensor:
    """Metric by prompt with some heads' last outputs from ``z`` ([layer, prompt or 1, width]); one batch."""
    d = z.shape[-1] // p.hf.config.num_attention_heads
    by_layer: dict[int, list[int]] = {}
    for layer, head in some:
        by_layer.setdefault(layer, []).append(head)

    def put(layer: int) -> Any:
        def hook(module: Any, args: tuple) -> tuple:
            x = args[0].clone()
            for head in by_layer[layer]:
                x[:, -1, head * d : (head + 1) * d] = z[layer][:, head * d : (head + 1) * d]
            return (x,)

        return hook

    with p.hooked([(p.layers[layer].self_attn.o_proj, put(layer)) for layer in by_layer], []):
        return p.metric(p.last_logits(prompts, keep=1)).cpu()


@torch.inference_mode()
def sources(p: Plain, prompts: Sequence[str], unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompt after prompt: [layer, head, source] what heads take from each token along a direction, and the pattern."""
    for prompt in prompts:
        values: list[Tensor] = []

        def keep(module: Any, args: tuple, output: Tensor, values: list[Tensor] = values) -> None:
            values.append(output[0].clone())

        with p.hooked([], [(block.self_attn.v_proj, keep) for block in p.layers]):
            out = p.hf(input_ids=p.tokenize([prompt]).ids, output_attentions=True, logits_to_keep=1)
        found = []
        for block, v, weights in zip(p.layers, values, out.attentions, strict=True):
            n, pattern = weights.shape[1], weights[0, :, -1].double()
            readout = (block.self_attn.o_proj.weight.double().T @ unit.to(v.device).double()).reshape(n, -1)
            by_head = (
                v.double()
                .reshape(len(v), -1, readout.shape[1])
                .repeat_interleave(n * readout.shape[1] // v.shape[1], dim=1)
            )
            found.append(pattern * torch.einsum("shd,hd->hs", by_head, readout))
        yield torch.stack(found).cpu(), torch.stack([weights[0] for weights in out.attentions])


@torch.inference_mode()
def replies(p: Plain, prompts: Sequence[str], new: int, ends: Sequence[int], pad: int) -> list[list[int]]:
    """Greedy replies as token ids, up to an end token."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        tokens = p.tokenize(prompts[start : start + BATCH])
        given = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long()}
        out = p.hf.generate(**given, max_new_tokens=new, do_sample=False, eos_token_id=list(ends), pad_token_id=pad)
        for row in out[:, tokens.ids.shape[1] :].tolist():
            end = min((row.index(token) for token in ends if token in row), default=len(row))
            found.append(row[:end])
    return found


@torch.inference_mode()
def damage(p: Plain, texts: Sequence[Any], under: Any, first: int) -> Tensor:
    """[KL or loss, text] per token of each text's own reply, teacher-forced, one text at a time."""
    found = torch.empty(2, len(texts), dtype=torch.float64)
    for i, text in enumerate(texts):
        ids = torch.tensor([text.ids], device=p.hf.device)
        before = p.hf(input_ids=ids).logits[0, text.first - 1 :].double().log_softmax(-1)
        with under():
            after = p.hf(input_ids=ids).logits[0, text.first - 1 :].double().log_softmax(-1)
        p_, q = before.exp(), after.exp()
        found[0, i] = (p_ * (torch.log(p_ + 1e-6) - torch.log(q + 1e-6))).sum(-1)[:first].mean()
        found[1, i] = -after[:-1].gather(-1, ids[0, text.first :, None]).mean()
    return found


def cone_loss(p: Plain, r: Tensor, batch: Any, addition: tuple[float, int]) -> Tensor:
    """[ablation, addition, retain] loss of a learned direction, one text at a time, with its gradient."""
    parts: list[Tensor] = []
    unit = r / r.norm()

    def forced(texts: Sequence[Any], under: Any) -> tuple[Tensor, Tensor]:
        logits, targets = [], []
        for text in texts:
            ids = torch.tensor([text.ids], device=p.hf.device)
            with under():
                logits.append(p.hf(input_ids=ids, use_cache=False).logits[0, text.first - 1 : -1])
            targets.append(ids[0, text.first :])
        return torch.cat(logits).float(), torch.cat(targets)

    coeff, layer = addition
    parts.append(functional.cross_entropy(*forced(batch.answer, lambda: p.ablated(unit))))
    parts.append(functional.cross_entropy(*forced(batch.refuse, lambda: p.added(coeff * unit, layer))))
    after = forced(batch.retain, lambda: p.ablated(unit))[0].log_softmax(-1)
    parts.append((batch.before.exp() * (batch.before - after)).sum(-1).mean())
    return torch.stack(parts).double().cpu()


def cut(p: Plain, tokens: Any, gone: dict[int, list[int]]) -> AbstractContextManager:
    """No attention from the template's end to the suffix, in some heads by layer."""
    suffix = tokens.region("suffix").to(p.hf.device)
    after = tokens.region("template_post").to(p.hf.device)
    edges = after[:, :, None] & suffix[:, None, :]

    def blind(some: list[int]) -> Any:
        def hook(module: Any, args: tuple, kwargs: dict) -> tuple:
            mask = kwargs["attention_mask"].expand(-1, p.hf.config.num_attention_heads, -1, -1).clone()
            for head in some:
                mask[:, head][edges] = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask}

        return hook

    hooks = [(p.layers[layer].self_attn, blind(some)) for layer, some in gone.items()]
    return p.hooked(hooks, [], with_kwargs=True)


@torch.inference_mode()
def metric_without(p: Plain, tokens: Any, some: Sequence[tuple[int, int]]) -> Tensor:
    """Refusal metric by prompt with some heads cut off from the suffix: one whole forward."""
    gone: dict[int, list[int]] = {}
    for layer, head in some:
        gone.setdefault(layer, []).append(head)
    mask = tokens.mask.long()
    with cut(p, tokens, gone):
        call = {"attention_mask": mask, "position_ids": _positions(mask), "logits_to_keep": 1, "use_cache": False}
        return p.metric(p.hf(input_ids=tokens.ids, **call).logits[:, -1]).cpu()


def curves(p: Plain, tokens: Any, orders: Sequence[Sequence[tuple[int, int]]], counts: Sequence[int]) -> Tensor:
    """[way, order, count, prompt] metric without the first heads of each order, and with these alone."""
    rows = [[metric_without(p, tokens, order[:n]) for n in counts] for order in orders]
    alone = [[metric_without(p, tokens, order[n:]) for n in counts] for order in orders]
    return torch.stack([torch.stack([torch.stack(row) for row in way]) for way in (rows, alone)])


def greedy(p: Plain, tokens: Any, ranked: Sequence[tuple[int, int]], n: int, tried: int) -> list[tuple[int, int]]:
    """Heads whose cut raises the mean metric most, one after another; the others follow in their order."""
    chosen: list[tuple[int, int]] = []
    left = list(ranked[:tried])
    while left and len(chosen) < n:
        best = max(left, key=lambda head: float(metric_without(p, tokens, [*chosen, head]).mean()))
        chosen.append(best)
        left.remove(best)
    return [*chosen, *(head for head in ranked if head not in chosen)]


@torch.inference_mode()
def split(p: Plain, prompts: Sequence[str], suffixes: Sequence[str], random: Sequence[str]) -> Tensor:
    """[player, target, layer, head, prompt] Shapley values of query, suffix keys, template keys, at the last token."""
    turned = sys.modules[type(p.hf).__module__].apply_rotary_pos_emb
    n = p.hf.config.num_attention_heads
    found = torch.empty(3, 2, len(p.layers), n, len(prompts), dtype=torch.float64)

    def run(prompt: str, text: str) -> list[tuple[Tensor, Tensor]]:
        tokens, kept = p.tokenize([prompt], [text]), list[Tensor]()

        def keep(module: Any, args: tuple, output: Tensor) -> None:
            kept.append(output.clone())

        modules = [part for block in p.layers for part in (block.self_attn.q_proj, block.self_attn.k_proj)]
        with p.hooked([], [(module, keep) for module in modules]):
            p.hf(input_ids=tokens.ids, logits_to_keep=1)
        cos, sin = p.hf.model.rotary_emb(kept[0], torch.arange(tokens.ids.shape[1], device=tokens.ids.device)[None])
        rows = []
        for q, k in zip(kept[::2], kept[1::2], strict=True):
            d = q.shape[-1] // n
            q, k = (x.reshape(1, x.shape[1], -1, d).transpose(1, 2) for x in (q, k))
            q, k = turned(q, k, cos, sin)
            rows.append((q[0, :, -1].double(), k[0].double().repeat_interleave(n // k.shape[1], 0)))
        return rows

    for i, (prompt, suffix, drawn) in enumerate(zip(prompts, suffixes, random, strict=True)):
        span = p.tokenize([prompt], [suffix]).spans[0]
        regions = [slice(*getattr(span, name)) for name in ("instruction", "suffix", "template_post")]
        for layer, (before, after) in enumerate(zip(run(prompt, drawn), run(prompt, suffix), strict=True)):
            masses = {}
            for players in product((0, 1), repeat=3):
                pair, k = (before, after), before[1].clone()
                for region, player in zip(regions[1:], players[1:], strict=True):
                    k[:, region] = pair[player][1][:, region]
                q = pair[players[0]][0]
                weights = (torch.einsum("hd,hsd->hs", q, k) * q.shape[-1] ** -0.5).softmax(-1)
                masses[players] = torch.stack([weights[:, region].sum(-1) for region in regions[:2]])
            found[:, :, layer, :, i] = _shapley(masses).cpu()
    return found


def _shapley(values: dict[tuple[int, ...], Tensor]) -> Tensor:
    """Mean over all orders of what each of three players adds."""
    found, orders = torch.zeros(3, *values[0, 0, 0].shape, dtype=torch.float64), list(permutations(range(3)))
    for order in orders:
        players = [0, 0, 0]
        for player in order:
            before = values[tuple(players)]
            players[player] = 1
            found[player] += (values[tuple(players)] - before).cpu() / len(orders)
    return found


def doses(
    p: Plain,
    acts: Sequence[str],
    own: Sequence[Any],
    under: Sequence[Any],
    first: int,
) -> Tensor:
    """[edit, measure, prompt] metric where the effect is wanted; KL and loss on the other kind's own replies."""
    rows = []
    for edit in under:
        with edit():
            metric = p.metric(p.last_logits(acts, keep=1))
        rows.append(torch.cat([metric.cpu()[None], damage(p, own, edit, first)]))
    return torch.stack(rows)


def edits(p: Plain, direction: Any, placebo: Any, grid: Mapping[str, Sequence[float]]) -> dict[str, list[Any]]:
    """Effect -> at each strength, the direction's intervention and its placebo's, each to be entered anew."""

    def edit(effect: str, strength: float, of: Any) -> Any:
        def enter() -> AbstractContextManager:
            r = of.vector.double()
            return p.ablated(r, strength) if effect == "ablation" else p.added(strength * r, direction.layer)

        return enter

    return {
        effect: [edit(effect, strength, of) for strength in strengths for of in (direction, placebo)]
        for effect, strengths in grid.items()
    }
