"""Paths: what senders' changed writes do through receivers' queries, keys or values alone, one path or many at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..errors import LabelError
from ..models.chat import Tokens
from ..models.model import HookedChatModel
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head
from ..refusal.records import RefusalTokens
from ..tensors import refusal_log_odds, wide
from .curve_records import PathCurves
from .curves import doubling
from .grid_records import WAYS, PathEffects
from .restarts import Pair, Restarted, at_random, pairs_of
from .shift_records import AttentionShift

AT_RANDOM = -1  # in place of a head: what the sender changes, as long, in a random direction
SIDES = {"query": "q", "keys": "k", "values": "v", "keys and values": "kv"}
_PATH = re.compile(r"(?:(embedding)|L(\d+) ?(?:H(\d+)|MLP)) -> (query|keys|values|keys and values) of L(\d+)H(\d+)")


class _Path(NamedTuple):
    """A sender (layer and head; no head for an MLP, layer -1 for the embedding), a side and a receiver."""

    layer: int
    head: int | None
    side: str
    receiver: Head
    text: str

    def edges(self, head: int | None) -> set[tuple[int, int | None, str, Head]]:
        """From this or another head of the layer to each part of the receiver."""
        return {(self.layer, head, part, self.receiver) for part in SIDES[self.side]}


def path_effects(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffix: str,
    random_suffixes: Sequence[str],
    direction: DirectionLike,
    refusal_tokens: RefusalTokens,
    paths: Sequence[str] | AttentionShift,
    *,
    way: str = "into clean",
    top: int = 6,
    n_random: int = 3,
    seed: int = 0,
) -> PathEffects:
    """Measure direct paths from a head, an MLP or the embedding to a receiver's query, keys or values.

    Path patching (Wang et al. 2022; Goldowsky-Dill et al. 2023): in one run, the sender's write at the suffix and the
    template is the other run's, but only where the receiver's layer reads it. Everything between is as in the run
    itself; the norm before the receiver is computed anew with the changed stream; of the layer only the receiver's
    output changes (keys and values that several heads share change for the receiver alone), and what follows runs on.

    Args:
        random_suffixes: random tokens, as many as the suffix has, per prompt.
        paths: texts as "L5H3 -> query of L14H7", "L2 MLP -> keys of L4H0" or "embedding -> keys and values of L3H1"; or
            an ``AttentionShift``, whose first ``top`` compositions are taken, those to keys also to values and to both.
        way: "into clean" (the sender's write is the suffixed run's) or "into suffixed" (the random run's).
        n_random: random senders per path.
        seed: of these.

    Raises:
        PromptError: random tokens of another length.
        LabelError: a path that is not written so, or whose sender does not come before its receiver.
        ModelError: a layer without heads, or attention without hook points.

    Example:
        >>> prompts, suffix, tokens = data.harmful.test[:2].texts, " please", found.refusal_tokens
        >>> drawn = rl.hijacking.random_controls(model.chat, prompts, suffix).texts
        >>> path = "L0H2 -> query of L1H0"
        >>> effects = rl.hijacking.path_effects(model, prompts, suffix, drawn, found, tokens, [path])
        >>> effects.sizes
        {'effect': 3, 'path': 1, 'prompt': 2, 'draw': 3}
    """
    requests, direction = as_prompts(prompts), as_direction(direction)
    model.check_direction(direction)
    named, notes = _named(model, paths, top, ("keys", "values", "keys and values"))
    pairs = pairs_of(model, requests, suffix, random_suffixes, way)
    job = _Job(model, refusal_tokens.ids, direction)
    shape = (3, len(named), 1 + n_random, len(requests))
    effects, whole = torch.full(shape, float("nan")), torch.zeros(3, len(named), len(requests))
    rng = Random(seed)
    senders = [[path.head, *_others(model, path, n_random, rng)] for path in named]
    for pair in pairs:
        kept = job.read(pair, named)
        for i, path in enumerate(named):
            found, difference = job.measure(pair, kept, path, senders[i], seed + i)
            effects[:, i, : found.shape[1], pair.rows], whole[:, i, pair.rows] = found.float(), difference.float()
    return PathEffects(tuple(path.text for path in named), way, effects[:, :, 0], effects[:, :, 1:], whole, notes)


def path_curves(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffix: str,
    random_suffixes: Sequence[str],
    refusal_tokens: RefusalTokens,
    paths: Sequence[str] | AttentionShift,
    *,
    top: int | None = None,
    n_random: int = 3,
    seed: int = 0,
) -> PathCurves:
    """Measure the refusal metric by number of paths (as of ``path_effects``) that carry the other run's writes at once.

    "cut": the suffixed run, where the first paths carry what their senders write in the random run. "only": the random
    run, where they carry what these write in the suffixed run. Layers run one after another, so that a receiver reads
    what earlier receivers changed, but of each sender that a path joins to it exactly the other run's write.

    Args:
        random_suffixes: random tokens, as many as the suffix has, per prompt.
        paths: as ``path_effects`` takes them, in this order; or an ``AttentionShift``, whose compositions come by size
            on the prompts that chose them. Its "keys" are cut as "keys and values": keys alone move attention to what
            the head then reads through values of the old run.
        top: take the first paths only.
        n_random: number of random orders: the same receivers with other heads of the senders' layers; for an MLP, the
            embedding, or where no head is left, changes in random directions that are as large.
        seed: of these.

    Raises:
        PromptError, LabelError, ModelError: as ``path_effects``.

    Example:
        >>> prompts, suffix, tokens = data.harmful.test[:2].texts, " please", found.refusal_tokens
        >>> drawn = rl.hijacking.random_controls(model.chat, prompts, suffix).texts
        >>> paths = ["L0 MLP -> keys and values of L1H0", "L0H2 -> query of L1H0", "L1H0 -> query of L2H1"]
        >>> curves = rl.hijacking.path_curves(model, prompts, suffix, drawn, tokens, paths, n_random=1)
        >>> curves.counts, curves.orders
        ((0, 1, 2, 3), ('attribution', 'random 1'))
    """
    requests = as_prompts(prompts)
    named, notes = _named(model, paths, top, ("keys and values",))
    senders, counts = _stand_ins(model, named, n_random, Random(seed)), doubling(len(named))
    job, metric = _Job(model, refusal_tokens.ids), torch.zeros(2, 1 + n_random, len(counts), len(requests)).double()
    for i, way in enumerate(WAYS):
        for pair in pairs_of(model, requests, suffix, random_suffixes, way):
            kept = job.read(pair, named)
            metric[i, :, 0, pair.rows] = kept[0]["metric"].to(metric)
            for j, n in enumerate(counts[1:], start=1):
                logits, _ = job.together(pair, kept, named[:n], senders[:n], seed)
                metric[i, :, j, pair.rows] = refusal_log_odds(logits, job.ids).to(metric)
    random, suffixed, texts = metric[1, 0, 0], metric[0, 0, 0], tuple(path.text for path in named)
    return PathCurves(counts, metric, random, suffixed, texts, notes, threshold=refusal_tokens.threshold)


def _named(
    model: HookedChatModel, paths: Sequence[str] | AttentionShift, top: int | None, sides: Sequence[str]
) -> tuple[list[_Path], tuple[str, ...]]:
    """The paths, those that a shift names to keys also to other ``sides``; and what is no path."""
    if not isinstance(paths, AttentionShift):
        return [_parsed(model, text) for text in paths], ()
    edges = paths.compositions()
    texts = edges["path"].tolist()[:top] if len(edges) else []
    notes = tuple(f"{text}: no single write, so no path" for text in texts if not _PATH.fullmatch(text))
    every = [text.replace("-> keys", f"-> {side}") for text in texts if _PATH.fullmatch(text) for side in sides]
    return [_parsed(model, text) for text in dict.fromkeys(every)], notes


def _parsed(model: HookedChatModel, text: str) -> _Path:
    found = _PATH.fullmatch(text)
    if not found:
        raise LabelError(f"{text!r} is no path: write it as 'L5H3 -> query of L14H7' or 'L2 MLP -> keys of L4H0'")
    embedding, layer, head, side, to_layer, to_head = found.groups()
    sender = -1 if embedding else int(layer)
    path = _Path(sender, None if head is None else int(head), side, (int(to_layer), int(to_head)), text)
    receiver, n_heads = path.receiver, model.n_heads
    if not sender < receiver[0] < model.n_layers or max(receiver[1], path.head or 0) >= n_heads:
        raise LabelError(
            f"{text!r}: the sender must come in an earlier layer than its receiver, and {model.name} has "
            f"{model.n_layers} layers of {n_heads} heads"
        )
    return path


def _others(model: HookedChatModel, path: _Path, n: int, rng: Random) -> list[int]:
    """Other heads of the sender's layer; of an MLP or the embedding, as many random directions."""
    if path.head is None:
        return [AT_RANDOM] * n
    free = [head for head in range(model.n_heads) if head != path.head]
    return rng.sample(free, min(n, len(free)))


def _stand_ins(model: HookedChatModel, paths: Sequence[_Path], n: int, rng: Random) -> list[list[int | None]]:
    """Each path's sender, then others: heads of its layer from which no path of the draw leads to the same receiver."""
    draws, found = [{edge for path in paths for edge in path.edges(path.head)} for _ in range(n)], []
    for path in paths:
        row = [path.head]
        for used in draws:
            free = [] if path.head is None else [h for h in range(model.n_heads) if not used & path.edges(h)]
            row.append(rng.choice(free) if free else AT_RANDOM)
            used |= path.edges(row[-1])
        found.append(row)
    return found


@dataclass
class _Job:
    """What all paths share."""

    model: HookedChatModel
    ids: tuple[int, ...]
    direction: Direction | None = None

    def sites(self, path: _Path) -> set[str]:
        """Hook points that hold what the sender writes."""
        if path.head is None:
            return {f"blocks.{path.layer}.hook_mlp_out" if path.layer >= 0 else "blocks.0.hook_resid_pre"}
        norm = self.model.backend.post_norm(path.layer, "attn")
        return {f"blocks.{path.layer}.attn.hook_z", *([f"{norm.site}.hook_scale"] if norm else [])}

    def read(self, pair: Pair, paths: Sequence[_Path]) -> list[dict[str, Tensor]]:
        """What is sent and measured in both runs: the run that goes on, and the other."""
        names = {site for path in paths for site in self.sites(path)}
        if self.direction is not None:
            names.add(f"blocks.{self.direction.layer}.hook_resid_pre")
        patterns = {f"blocks.{path.receiver[0]}.attn.hook_pattern" for path in paths if self.direction is not None}
        kept = []
        for run in (pair.into, pair.source):
            found = run.read(sorted(names), run.n_last) if names else {}
            whole = run.read(sorted(patterns), None) if patterns else {}
            metric = refusal_log_odds(self.model.logits(run.tokens)[:, -1], self.ids)
            kept.append(found | {name: x[:, :, -1:] for name, x in whole.items()} | {"metric": metric})
        return kept

    def write(self, run: dict[str, Tensor], path: _Path, head: int | None) -> Float[Tensor, "prompt pos d_model"]:
        """What the sender (or another head of its layer) writes to the stream in one run."""
        if path.layer < 0:
            return wide(run["blocks.0.hook_resid_pre"])
        if head is None:
            return wide(run[f"blocks.{path.layer}.hook_mlp_out"])
        backend = self.model.backend
        z = wide(run[f"blocks.{path.layer}.attn.hook_z"])
        z = z.reshape(*z.shape[:2], self.model.n_heads, -1)[:, :, head]
        write = z @ backend.output_weight(path.layer)[head].detach().to(z)
        norm = backend.post_norm(path.layer, "attn")
        if norm is None:
            return write * backend.write_scale
        write = write - write.mean(-1, keepdim=True) if norm.centred else write
        write = write / wide(run[f"{norm.site}.hook_scale"])
        return write if norm.weight is None else write * norm.weight.to(write)

    def step(
        self, path: _Path, senders: Sequence[int | None], source: dict[str, Tensor], now: Sequence[Any], seed: int
    ) -> Float[Tensor, "copy prompt pos d_model"]:
        """The other run's write minus the one there is now, of one sender per copy."""
        generator, found = torch.Generator().manual_seed(seed), []
        for here, head in zip(now, senders, strict=True):
            own = path.head if head == AT_RANDOM else head
            step = self.write(source, path, own) - self.write(here, path, own)
            found.append(at_random(step, generator) if head == AT_RANDOM else step)
        return torch.stack(found)

    def together(
        self,
        pair: Pair,
        kept: list[dict[str, Tensor]],
        paths: Sequence[_Path],
        senders: Sequence[Sequence[int | None]],
        seed: int,
        hooks: Sequence[Any] = (),
    ) -> tuple[Float[Tensor, "copy prompt vocab"], dict[Head, Tensor]]:
        """Logits with all paths at once, one copy of the batch per sender of a path, and what receivers attend to.

        An edge that several paths name counts once.
        """
        (into, source), run, copies = kept, pair.into, len(senders[0])
        first = min(path.receiver[0] for path in paths)
        start, patterns, done = run.start(first, run.n_last, copies), dict[Head, Tensor](), list[Any]()
        for layer in sorted({path.receiver[0] for path in paths}):
            stream, now = start, [into] * copies
            some = [i for i, path in enumerate(paths) if path.receiver[0] == layer]
            if layer > first:
                # Earlier receivers changed the stream, and what later senders write.
                at = f"blocks.{layer}.hook_resid_pre"
                changed = {site for i in some if paths[i].layer >= first for site in self.sites(paths[i])}
                with self.model.hooks(*done):
                    seen = run.see(first, start, sorted({at, *changed}))
                cut = {name: x.unflatten(0, (copies, -1)) for name, x in seen.items()}
                stream = cut[at]
                now = [into | {name: cut[name][i][:, -run.n_last :] for name in changed} for i in range(copies)]
            steps: dict[tuple[int, int | None, str, Head], Tensor] = {}
            for i in some:
                step = self.step(paths[i], senders[i], source, now, seed + i)
                steps |= dict.fromkeys(paths[i].edges(paths[i].head), step)
            outputs = {}
            for head in {paths[i].receiver[1] for i in some}:
                outputs[head], patterns[layer, head] = self.receive(run, (layer, head), stream, steps)
            done.append((f"blocks.{layer}.attn.hook_z", partial(self._place, outputs)))
        return run.logits(first, run.n_last, start, [*done, *hooks]), patterns

    def receive(
        self, run: Restarted, receiver: Head, stream: Tensor, steps: dict[tuple[int, int | None, str, Head], Tensor]
    ) -> tuple[Float[Tensor, "row pos d_head"], Float[Tensor, "row key"]]:
        """One head's output, and its attention from the last position, with changed query, keys or values."""
        (layer, head), puts = receiver, list[Any]()
        for part in sorted({edge[2] for edge in steps if edge[3] == receiver}):
            changed, site = stream.clone(), f"blocks.{layer}.attn.hook_{part}"
            mine = [step for edge, step in steps.items() if edge[2:] == (part, receiver)]
            changed[:, :, -run.n_last :] += torch.stack(mine).sum(0).to(stream)
            # Of all heads, which may share keys and values; only this one's output is taken.
            received = run.see(layer, changed, [site])[site]
            puts.append((site, lambda x, hook, received=received: received))
        names = [f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "z")]
        with self.model.hooks(*puts):
            pattern, z = run.see(layer, stream, names).values()
        return z.reshape(*z.shape[:2], self.model.n_heads, -1)[:, :, head], pattern[:, head, -1]

    def _place(self, outputs: dict[int, Tensor], z: Tensor, hook: Any) -> Tensor:
        new = z.reshape(*z.shape[:2], self.model.n_heads, -1).clone()
        for head, output in outputs.items():
            new[:, :, head] = output
        return new.reshape(z.shape)

    def measure(
        self, pair: Pair, kept: list[dict[str, Tensor]], path: _Path, senders: Sequence[int | None], seed: int
    ) -> tuple[Float[Tensor, "effect sender prompt"], Float[Tensor, "effect prompt"]]:
        """Effects of one path from each of the senders, and the difference of both runs."""
        assert self.direction is not None
        (layer, head), at = path.receiver, f"blocks.{self.direction.layer}.hook_resid_pre"
        copies, seen = len(senders), {"stream": kept[0][at][:, -1].repeat(len(senders), 1) * float("nan")}

        def read(x: Tensor, hook: Any) -> None:
            seen["stream"] = x[:, -1].clone()

        below = [(at, read)] if self.direction.layer > layer else []
        logits, patterns = self.together(pair, kept, [path], [senders], seed, below)
        both = [
            self._effects(run[f"blocks.{layer}.attn.hook_pattern"][:, head, 0], run["metric"], run[at][:, -1], tokens)
            for run, tokens in zip(kept, (pair.into.tokens, pair.source.tokens), strict=True)
        ]
        pattern, stream = (x.unflatten(0, (copies, -1)) for x in (patterns[path.receiver], seen["stream"]))
        found = self._effects(pattern, refusal_log_odds(logits, self.ids), stream, pair.into.tokens)
        return (found - both[0][:, None]).cpu(), (both[1] - both[0]).cpu()

    def _effects(self, pattern: Tensor, metric: Tensor, stream: Tensor, tokens: Tokens) -> Tensor:
        """Attention to the suffix, metric and r̂ᵀx."""
        assert self.direction is not None
        r = self.direction.unit.to(self.model.device)
        attention, along = (pattern * tokens.region("suffix")).sum(-1), wide(stream).to(r) @ r
        return torch.stack([x.to(metric) for x in (attention, metric, along)])
