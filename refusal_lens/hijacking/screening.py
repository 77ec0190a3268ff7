"""Many suffixes after the same instructions: refusal metric and strength of each, packed where results are the same, so
that what the suffixes of one instruction share is run once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.token_records import SourceContributions
from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..hooks.attention import by_layer
from ..hooks.attention_readers import heads_apart
from ..hooks.base import Hooks, Model
from ..hooks.readers import Reader
from ..models.chat import Encoded, Spans, padded
from ..models.model import HookedChatModel
from ..models.packing import Pack
from ..records.base import Record
from ..records.labels import Head, visible
from ..records.store import Store, content_key
from ..refusal.metric import RefusalMetric
from ..refusal.records import RefusalTokens
from ..tensors import wide
from .observation_records import TokenEffects

SUFFIXES = 512  # of one prompt, in one item


@dataclass(eq=False)
class _TopShare(Reader[Tensor]):
    """The suffix's share <Y_suffix, Y> / |Y|² of what some heads write at each prompt's last position."""

    heads: tuple[Head, ...]
    can_pack: ClassVar[bool] = True

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.spans = torch.tensor([span.suffix for span in tokens.spans], device=model.device)

    def hooks(self, model: Model, batch: Any) -> Hooks:
        if isinstance(batch, Pack):
            self.row, self.end = batch.row, batch.end
            first, last = self.spans[list(batch.indices)].T[:, :, None]
            whose, at = batch.whose[batch.row], batch.positions[batch.row]
            self.suffix = (whose == whose.gather(1, batch.end[:, None])) & (at >= first) & (at < last)
        else:
            self.row = torch.arange(len(batch), device=model.device)
            self.end = torch.full_like(self.row, batch.ids.shape[1] - 1)
            self.suffix = batch.region("suffix").to(model.device)
        dtype = torch.promote_types(model.dtype, torch.float32)
        shape = (len(self.row), model.d_model)
        self.part, self.whole = (torch.zeros(shape, dtype=dtype, device=model.device) for _ in range(2))
        found: Hooks = []
        for layer, heads in by_layer(self.heads).items():
            weight = model.backend.output_weight(layer).detach()[heads].to(self.whole)
            reads = {"v": self._on_values, "pattern": self._on_pattern, "z": self._on_z}
            found += [
                (f"blocks.{layer}.attn.hook_{at}", partial(read, model, heads, weight)) for at, read in reads.items()
            ]
        return found

    def _on_values(self, model: Model, heads: list[int], weight: Tensor, v: Tensor, hook: Any) -> None:
        self.v = wide(heads_apart(v, hook, model.d_head)).to(self.whole)

    def _on_pattern(self, model: Model, heads: list[int], weight: Tensor, p: Tensor, hook: Any) -> None:
        # Sources are the prefix and then this batch's own tokens, among which the suffix is; heads share values.
        rows = wide(p[:, heads, :, -self.v.shape[1] :][self.row, :, self.end]).to(self.v) * self.suffix[:, None]
        v = self.v[:, :, [head // (model.n_heads // self.v.shape[2]) for head in heads]][self.row]
        self.part += torch.einsum("bhs,bshd,hde->be", rows, v, weight)

    def _on_z(self, model: Model, heads: list[int], weight: Tensor, z: Tensor, hook: Any) -> None:
        last = wide(z.reshape(*z.shape[:2], -1, model.d_head)[self.row, self.end][:, heads])
        self.whole += torch.einsum("bhd,hde->be", last.to(self.whole), weight)

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        whole = (self.whole * self.whole).sum(-1).clamp_min(1e-30)
        return {"share": ((self.part * self.whole).sum(-1) / whole).double()}

    def result(self) -> Float[Tensor, "prompt"]:
        return self.rows["share"]


def _screened(
    model: HookedChatModel,
    item: tuple[str, int],
    suffixes: tuple[str, ...],
    tokens: RefusalTokens,
    heads: tuple[Head, ...],
) -> Float[Tensor, "number suffix"]:
    """Metric and strength of a block of suffixes, from ``item[1]`` on, after the prompt ``item[0]``."""
    prompt, first = item
    some = suffixes[first : first + SUFFIXES]
    readers = [RefusalMetric(tokens), *([_TopShare(heads)] if heads else [])]
    metric, *share = model.run([prompt] * len(some), some, read=readers, pack=True)
    return torch.stack([metric, *(share or [torch.full_like(metric, float("nan"))])])


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
    store: Store | None = None,
    engine: Engine | None = None,
) -> Screened:
    """Measure refusal metric and strength of every suffix after every prompt.

    Args:
        suffixes: each with its leading space; a ``str`` is one suffix.
        heads: the heads whose write the strength is a share of.
        on_prompt: called with 1 after each prompt.
        store: saves each block's numbers, and returns those of an earlier run with the same inputs.
        engine: spreads blocks of ``SUFFIXES`` suffixes per prompt over its workers; this process if None.

    Example:
        >>> rl.hijacking.screen(model, data.harmful.test[:2].texts, [" please"], found.refusal_tokens).metric.shape
        torch.Size([1, 2])
    """
    requests, engine = as_prompts(prompts), engine or LocalEngine(model)
    suffixes = (suffixes,) if isinstance(suffixes, str) else tuple(suffixes)
    inputs = content_key(
        "screen", model.fingerprint, str(model.dtype), model.chat.render("{}"), list(suffixes), refusal_tokens, heads
    )
    starts = range(0, len(suffixes), SUFFIXES)
    items = [(prompt, first) for prompt in requests for first in starts]
    names = [
        (f"screen/{i:05d}" + (f"-{first}" if first else ""), content_key(inputs, prompt, first))
        for i, prompt in enumerate(requests)
        for first in starts
    ]
    done = None if on_prompt is None else (lambda i: on_prompt(int((i + 1) % len(starts) == 0)))
    work = partial(_screened, suffixes=suffixes, tokens=refusal_tokens, heads=tuple(heads))
    made = engine.map("screen", work, items, done, store, names)
    columns = [torch.cat(made[i : i + len(starts)], -1) for i in range(0, len(made), len(starts))]
    return Screened(*torch.stack(columns, -1))


def token_effects(
    model: HookedChatModel,
    prompts: PromptsLike,
    suffix: str,
    sources: SourceContributions,
    heads: Sequence[Head],
    refusal_tokens: RefusalTokens,
) -> TokenEffects | None:
    """Leave out each suffix token and read the refusal metric, with what the heads take from the token.

    Args:
        prompts: requests, at most as many as ``sources`` has (the first ones).
        sources: source contributions of the prompts with the suffix.

    Returns:
        None where the suffix's number of tokens differs between prompts.
    """
    encoded = [model.chat.encode(prompt, suffix) for prompt in as_prompts(prompts)]
    lengths = {e.spans.suffix[1] - e.spans.suffix[0] for e in encoded}
    if len(lengths) > 1:
        return None
    (n,) = lengths
    removed, written, reader = [], [], RefusalMetric(refusal_tokens)
    for i, e in enumerate(encoded):
        variants = [e, *(without_token(e, k) for k in range(n))]
        tokens = padded([v.ids for v in variants], [v.spans for v in variants], model.chat.pad_id).to(model.device)
        metric = model.run(tokens, read=reader, pack=True)[reader]
        removed.append(metric[1:] - metric[0])
        start, stop = sources.bounds[i, sources.regions.index("suffix")].tolist()
        written.append(torch.stack([sources.values[a, b, i, start:stop] for a, b in heads]).sum(0).double())
    first = encoded[0].ids[slice(*encoded[0].spans.suffix)]
    texts = tuple(visible(model.tokenizer.decode([token])) for token in first)
    return TokenEffects(texts, torch.stack(removed, 1), torch.stack(written, 1))


def without_token(encoded: Encoded, k: int) -> Encoded:
    """The same prompt with the suffix's k-th token left out (as an id: nothing is tokenized again)."""
    spans, at = encoded.spans, encoded.spans.suffix[0] + k
    suffix, post = (spans.suffix[0], spans.suffix[1] - 1), (spans.template_post[0] - 1, spans.template_post[1] - 1)
    shorter = Spans(spans.bos, spans.template_pre, spans.instruction, suffix, post)
    offsets = encoded.offsets[:at] + encoded.offsets[at + 1 :]
    return replace(encoded, ids=encoded.ids[:at] + encoded.ids[at + 1 :], spans=shorter, offsets=offsets)
