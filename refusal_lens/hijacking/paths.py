"""Paths: what one sender's changed write does through one receiver's query, keys or values alone."""

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
from ..records.direction import DirectionLike, as_direction
from ..records.labels import Head
from ..refusal.records import RefusalTokens
from ..tensors import refusal_log_odds, wide
from .grid_records import PathEffects
from .restarts import Pair, at_random, pairs_of
from .shift_records import AttentionShift

SIDES = {"query": "q", "keys": "k", "values": "v", "keys and values": "kv"}
_PATH = re.compile(r"(?:(embedding)|L(\d+) ?(?:H(\d+)|MLP)) -> (query|keys|values|keys and values) of L(\d+)H(\d+)")


class _Path(NamedTuple):
    """A sender (layer and head; no head for an MLP, layer -1 for the embedding), a side and a receiver."""

    layer: int
    head: int | None
    side: str
    receiver: Head
    text: str


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
    notes: list[str] = []
    if isinstance(paths, AttentionShift):
        named_edges = paths.compositions()
        texts = named_edges["path"].tolist()[:top] if len(named_edges) else []
        notes += [f"{text}: no single write, so no path" for text in texts if not _PATH.fullmatch(text)]
        texts = [text for text in texts if _PATH.fullmatch(text)]
        sides = ("keys", "values", "keys and values")
        paths = list(dict.fromkeys(text.replace("-> keys", f"-> {side}") for text in texts for side in sides))
    named = [_parsed(model, text) for text in paths]
    pairs = pairs_of(model, requests, suffix, random_suffixes, way)
    job = _Job(model, direction.layer, direction.unit.to(model.device), refusal_tokens.ids)
    shape = (3, len(named), 1 + n_random, len(requests))
    effects, whole = torch.full(shape, float("nan")), torch.zeros(3, len(named), len(requests))
    rng = Random(seed)
    others = [_others(model, path, n_random, rng) for path in named]
    for pair in pairs:
        kept = job.read(pair, named)
        for i, path in enumerate(named):
            found, difference = job.measure(pair, kept, path, others[i], n_random, seed + i)
            effects[:, i, : found.shape[1], pair.rows], whole[:, i, pair.rows] = found.float(), difference.float()
    return PathEffects(tuple(paths), way, effects[:, :, 0], effects[:, :, 1:], whole, tuple(notes))


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
    """Other heads of the sender's layer; none for an MLP or the embedding."""
    free = [] if path.head is None else [head for head in range(model.n_heads) if head != path.head]
    return rng.sample(free, min(n, len(free)))


@dataclass
class _Job:
    """What all paths share."""

    model: HookedChatModel
    layer: int
    r: Tensor
    ids: tuple[int, ...]

    def read(self, pair: Pair, paths: Sequence[_Path]) -> list[dict[str, Tensor]]:
        """What is sent, received and measured in both runs: the run that goes on, and the other."""
        names = {f"blocks.{self.layer}.hook_resid_pre", "blocks.0.hook_resid_pre"}
        for path in paths:
            if path.head is not None:
                names.add(f"blocks.{path.layer}.attn.hook_z")
                norm = self.model.backend.post_norm(path.layer, "attn")
                names |= {f"{norm.site}.hook_scale"} if norm else set()
            elif path.layer >= 0:
                names.add(f"blocks.{path.layer}.hook_mlp_out")
            names |= {f"blocks.{path.receiver[0]}.attn.hook_z"}
        patterns = {f"blocks.{path.receiver[0]}.attn.hook_pattern" for path in paths}
        kept = []
        for run in (pair.into, pair.source):
            found = run.read(sorted(names), run.n_last)
            whole = run.read(sorted(patterns), None) if patterns else {}
            kept.append(found | {name: x[:, :, -1:] for name, x in whole.items()})
            kept[-1]["metric"] = refusal_log_odds(self.model.logits(run.tokens)[:, -1], self.ids)
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

    def measure(
        self, pair: Pair, kept: list[dict[str, Tensor]], path: _Path, others: list[int], n_random: int, seed: int
    ) -> tuple[Float[Tensor, "effect sender prompt"], Float[Tensor, "effect prompt"]]:
        """Effects of the path and of random senders, one copy of the batch each; and the difference of both runs."""
        into, source = kept
        steps = [self.write(source, path, head) - self.write(into, path, head) for head in (path.head, *others)]
        generator = torch.Generator().manual_seed(seed)
        for _ in range(n_random if path.head is None else 0):
            steps.append(at_random(steps[0], generator))
        layer, head = path.receiver
        n, run = pair.into.n_last, pair.into
        sites = [f"blocks.{layer}.attn.hook_{part}" for part in SIDES[path.side]]
        start = run.start(layer, n, len(steps))
        changed = start.clone()
        changed[:, :, -n:] += torch.stack(steps).to(start)
        received = run.see(layer, changed, sites)
        own = into[f"blocks.{layer}.attn.hook_z"]
        seen: dict[str, Tensor] = {}

        def receive(name: str, x: Tensor, hook: Any) -> Tensor:
            return received[name]  # of all heads: the others' outputs stay

        def freeze(z: Tensor, hook: Any) -> Tensor:
            # The layer's other heads read the same keys and values; they keep what they had.
            new = z.reshape(*z.shape[:2], self.model.n_heads, -1).clone()
            rest = own.reshape(*own.shape[:2], self.model.n_heads, -1).repeat(len(steps), 1, 1, 1).clone()
            rest[:, :, head] = new[:, -n:, head]
            new[:, -n:] = rest
            return new.reshape(z.shape)

        def look(x: Tensor, hook: Any) -> None:
            seen["pattern"] = x[:, head, -1].clone()

        def read(x: Tensor, hook: Any) -> None:
            seen["stream"] = x[:, -1].clone()

        hooks: list[Any] = [(name, partial(receive, name)) for name in sites]
        hooks += [(f"blocks.{layer}.attn.hook_pattern", look), (f"blocks.{layer}.attn.hook_z", freeze)]
        at = f"blocks.{self.layer}.hook_resid_pre"
        if self.layer > layer:
            hooks.append((at, read))
        metric = refusal_log_odds(run.logits(layer, n, start, hooks), self.ids)
        where = run.tokens.region("suffix")
        ends = [
            self._ends(x, layer, head, tokens) for x, tokens in zip(kept, (run.tokens, pair.source.tokens), strict=True)
        ]
        attention = (seen["pattern"].unflatten(0, (len(steps), -1)) * where).sum(-1)
        along = torch.full_like(metric, float("nan"))
        if "stream" in seen:
            along = (wide(seen["stream"]).to(self.r) @ self.r).unflatten(0, (len(steps), -1)).to(metric)
        found = torch.stack([attention.to(metric), metric, along])
        return (found - ends[0][:, None]).cpu(), (ends[1] - ends[0]).cpu()

    def _ends(self, kept: dict[str, Tensor], layer: int, head: int, tokens: Tokens) -> Tensor:
        """Attention to the suffix, metric and r̂ᵀx of a run as it is."""
        pattern = kept[f"blocks.{layer}.attn.hook_pattern"][:, head, 0]
        attention = (pattern * tokens.region("suffix")).sum(-1)
        along = wide(kept[f"blocks.{self.layer}.hook_resid_pre"][:, -1]).to(self.r) @ self.r
        return torch.stack([x.to(kept["metric"]) for x in (attention, kept["metric"], along)])
