"""Many suffixes after the same instructions: refusal metric and strength of each, the shared work done once.

All suffixes of one instruction share everything up to the instruction's end. Where the model's attention allows it
(``backend.supports_prefix``) these keys and values are computed once; elsewhere each prompt is run whole. Suffixes are
packed (``packing``) where that gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..hooks.attention import by_layer
from ..hooks.attention_readers import by_value_head
from ..models.backend import PrefixCache
from ..models.batching import by_length, packed_last
from ..models.chat import Encoded, Spans, Tokens, padded
from ..models.model import HookedChatModel
from ..models.packing import pack_prompts, packing_holds, shared_prefix
from ..records.base import Record
from ..records.labels import Head
from ..records.store import Store, content_key
from ..refusal.records import RefusalTokens
from ..tensors import refusal_log_odds, wide

SUFFIXES = 512  # of one prompt, in one item


@dataclass(frozen=True)
class _Screen:
    """A block of suffixes after one prompt, as work for an engine."""

    suffixes: tuple[str, ...]
    tokens: RefusalTokens
    heads: tuple[Head, ...]
    batch_tokens: int

    def prepare(self, model: HookedChatModel) -> None:
        """Items share nothing."""

    def run(self, model: HookedChatModel, state: None, item: tuple[str, int]) -> Float[Tensor, "number suffix"]:
        """Metric and strength of the suffixes from ``item[1]`` on, after the prompt ``item[0]``."""
        prompt, first = item
        encoded = [model.chat.encode(prompt, suffix) for suffix in self.suffixes[first : first + SUFFIXES]]
        return torch.stack(_variants(model, encoded, self.tokens, self.heads, self.batch_tokens))


@dataclass(frozen=True)
class Screened(Record):
    """Every suffix after every prompt.

    Attributes:
        metric: refusal metric.
        strength: the suffix's share of the top heads' write at the last position (``Observation.top_dominance``); NaN
            where no heads were given.
    """

    metric: Float[Tensor, "suffix prompt"]
    strength: Float[Tensor, "suffix prompt"]


def screen(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffixes: str | Sequence[str],
    refusal_tokens: RefusalTokens,
    heads: Sequence[Head] = (),
    on_prompt: Callable[[int], None] | None = None,
    batch_tokens: int = 2048,
    store: Store | None = None,
    engine: Engine | None = None,
) -> Screened:
    """Refusal metric and strength of every suffix after every prompt.

    Args:
        suffixes: each with its leading space; a ``str`` is one suffix.
        heads: whose write the strength is a share of.
        on_prompt: called with 1 after each prompt.
        batch_tokens: padded tokens per batch at most, where suffixes can't be packed.
        store: keeps each prompt's numbers, and gives those of an earlier run with the same inputs.
        engine: spreads blocks of ``SUFFIXES`` suffixes per prompt over its workers; this process if None.

    Example:
        >>> rl.hijacking.screen(model, data.harmful.test[:2].texts, [" please"], found.refusal_tokens).metric.shape
        torch.Size([1, 2])
    """
    requests, store = as_prompts(prompts), store or Store(None)
    suffixes = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
    inputs = content_key(
        "screen", model.fingerprint, str(model.dtype), model.chat.render("{}"), list(suffixes), refusal_tokens, heads
    )
    work = _Screen(suffixes, refusal_tokens, tuple(heads), batch_tokens)
    starts = range(0, len(suffixes), SUFFIXES)
    names = [(f"screen/{i:05d}", content_key(inputs, prompt)) for i, prompt in enumerate(requests)]
    columns = [store.get(*name) for name in names]
    todo = [i for i, column in enumerate(columns) if column is None]
    items = [(requests[i], first) for i in todo for first in starts]
    made: Iterator[Any] = (
        iter(engine.map("screen", work, items)) if engine else (work.run(model, None, item) for item in items)
    )
    for i in range(len(requests)):
        if columns[i] is None:
            columns[i] = store.put(names[i][0], torch.cat([next(made) for _ in starts], -1), names[i][1])
        if on_prompt:
            on_prompt(1)
    metric, strength = torch.stack(columns, -1)
    return Screened(metric, strength)


def metric_of(
    model: HookedChatModel, encoded: Sequence[Encoded], refusal_tokens: RefusalTokens, batch_tokens: int = 2048
) -> Float[Tensor, "variant"]:
    """Refusal metric of variants of one prompt."""
    return _variants(model, encoded, refusal_tokens, (), batch_tokens)[0]


def _variants(
    model: HookedChatModel,
    encoded: Sequence[Encoded],
    refusal_tokens: RefusalTokens,
    heads: tuple[Head, ...],
    batch_tokens: int,
) -> tuple[Float[Tensor, "variant"], Float[Tensor, "variant"]]:
    """(refusal metric, strength) of variants of one prompt."""
    metric = torch.empty(len(encoded), dtype=torch.float64)
    strength = torch.full((len(encoded),), float("nan"), dtype=torch.float64)
    packed = packing_holds(model)
    parts = _packed(model, encoded) if packed else _padded(model, encoded, batch_tokens)
    for part in parts:
        write = _TopWrite(model, heads, part)
        with model.hooks(*write.hooks()):
            metric[part.variants] = refusal_log_odds(part.logits(), refusal_tokens.ids).cpu()
        if heads:
            strength[part.variants] = write.share().double().cpu()
    return metric, strength


@dataclass(frozen=True)
class _Part:
    """Variants that go through one pass, after what all share.

    Attributes:
        variants: which ones.
        row, end: where each one's last token is in the batch.
        suffix: for each variant, which tokens of its row are its suffix.
        logits: runs them, under the hooks that are active then.
    """

    variants: list[int]
    row: Int[Tensor, "variant"]
    end: Int[Tensor, "variant"]
    suffix: Bool[Tensor, "variant pos"]
    logits: Callable[[], Float[Tensor, "variant vocab"]]


def _packed(model: HookedChatModel, encoded: Sequence[Encoded]) -> Iterator[_Part]:
    """Several variants in a row, without padding."""
    prompts = [torch.tensor(e.ids, device=model.device) for e in encoded]
    whole = pack_prompts(prompts, _shared(encoded), model.chat.pad_id)
    prefix = shared_prefix(whole)
    spans = torch.tensor([e.spans.suffix for e in encoded], device=model.device)
    for some in whole.passes():
        pack = whole.rows(some)
        variants = list(pack.indices)
        first, last = spans[variants].T[:, :, None]
        whose, at = pack.whose[pack.row], pack.positions[pack.row]
        suffix = (whose == whose.gather(1, pack.end[:, None])) & (at >= first) & (at < last)
        yield _Part(variants, pack.row, pack.end, suffix, partial(packed_last, model, pack, prefix))


def _last_padded(model: HookedChatModel, batch: Tokens, prefix: PrefixCache | None) -> Float[Tensor, "variant vocab"]:
    return model.logits(batch, prefix=prefix)[:, -1]


def _padded(model: HookedChatModel, encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[_Part]:
    """One variant per row, those of similar length together."""
    shared = _shared(encoded) if model.backend.supports_prefix and not model.counts_positions else 0
    prefix = None
    if shared:
        prefix = model.prefix_cache(torch.tensor(encoded[0].ids[:shared], device=model.device))
    lengths = [len(e.ids) - shared for e in encoded]
    for rows in by_length(lengths, lambda n, width, real: n * width <= batch_tokens):
        batch = padded([encoded[k].ids[shared:] for k in rows], [encoded[k].spans for k in rows], model.chat.pad_id)
        batch = batch.to(model.device)
        width = batch.ids.shape[1]
        suffix = torch.zeros(batch.ids.shape, dtype=torch.bool, device=model.device)
        for i, k in enumerate(rows):
            first, last = (at - len(encoded[k].ids) + width for at in encoded[k].spans.suffix)
            suffix[i, first:last] = True
        row = torch.arange(len(rows), device=model.device)
        end = torch.full_like(row, width - 1)
        yield _Part(rows, row, end, suffix, partial(_last_padded, model, batch, prefix))


class _TopWrite:
    """What the top heads write at each variant's last position, and what of it comes from the suffix."""

    def __init__(self, model: HookedChatModel, heads: tuple[Head, ...], part: _Part):
        self.model, self.heads, self.at = model, by_layer(heads), part
        shape = (len(part.variants), model.d_model)
        dtype = torch.promote_types(model.dtype, torch.float32)
        self.part, self.whole = (torch.zeros(shape, dtype=dtype, device=model.device) for _ in range(2))
        self.values: dict[int, Tensor] = {}

    def hooks(self) -> list[tuple[str, Callable]]:
        """Three hooks per layer that has such a head, in the order in which they fire."""
        found: list[tuple[str, Callable]] = []
        for layer, heads in self.heads.items():
            base = f"blocks.{layer}.attn"
            weight = self.model.backend.output_weight(layer).detach()[heads].to(self.whole)
            found += [
                (f"{base}.hook_v", self._keep(layer)),
                (f"{base}.hook_pattern", self._from_suffix(layer, heads, weight)),
                (f"{base}.hook_z", self._from_all(heads, weight)),
            ]
        return found

    def _keep(self, layer: int) -> Callable:
        def hook_fn(v: Tensor, hook: Any) -> None:
            self.values[layer] = wide(by_value_head(v, hook, self.model.d_head)).to(self.whole)

        return hook_fn

    def _from_suffix(self, layer: int, heads: list[int], weight: Tensor) -> Callable:
        def hook_fn(p: Tensor, hook: Any) -> None:
            v = self.values.pop(layer)
            # Sources are the prefix and then this batch's own tokens, among which the suffix is; heads share values.
            rows = wide(p[:, heads, :, -v.shape[1] :][self.at.row, :, self.at.end]).to(v) * self.at.suffix[:, None]
            v = v[:, :, [head // (self.model.n_heads // v.shape[2]) for head in heads]][self.at.row]
            self.part += torch.einsum("bhs,bshd,hde->be", rows, v, weight)

        return hook_fn

    def _from_all(self, heads: list[int], weight: Tensor) -> Callable:
        def hook_fn(z: Tensor, hook: Any) -> None:
            last = wide(z.reshape(*z.shape[:2], -1, self.model.d_head)[self.at.row, self.at.end][:, heads])
            self.whole += torch.einsum("bhd,hde->be", last.to(self.whole), weight)

        return hook_fn

    def share(self) -> Float[Tensor, "batch"]:
        """<Y_suffix, Y> / |Y|²."""
        return (self.part * self.whole).sum(-1) / (self.whole * self.whole).sum(-1).clamp_min(1e-30)


def without_token(encoded: Encoded, k: int) -> Encoded:
    """The same prompt with the suffix's k-th token left out (as ids: nothing is tokenized again)."""
    spans = encoded.spans
    at = spans.suffix[0] + k
    shorter = Spans(
        spans.bos,
        spans.template_pre,
        spans.instruction,
        (spans.suffix[0], spans.suffix[1] - 1),
        (spans.template_post[0] - 1, spans.template_post[1] - 1),
    )
    offsets = encoded.offsets[:at] + encoded.offsets[at + 1 :]
    return replace(encoded, ids=encoded.ids[:at] + encoded.ids[at + 1 :], spans=shorter, offsets=offsets)


def _shared(encoded: Sequence[Encoded]) -> int:
    """Tokens of the instruction's side that all variants begin with."""
    n = min(e.spans.instruction[1] for e in encoded)
    columns = zip(*(e.ids[:n] for e in encoded), strict=True)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), n)
