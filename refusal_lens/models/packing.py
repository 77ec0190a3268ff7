"""Prompts packed into rows; the prefix that all share is run once, at the start of the first row.

A mask lets every token see only the shared prefix and its own prompt, and position ids count from each prompt's own
start, so the logits are those of the prompts alone. Compared with a padded batch this saves nearly all padding, and the
template and system prompt of all prompts but one. Several rows, each under several interventions, share one pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import RefusalLensError
from ..hooks.base import Model
from .backend import SharedPrefix
from .chat import Tokens
from .health import SUM_TOLERANCE, active_hooks

# Longer rows pay for attention between prompts, which the mask discards; shorter ones need more padding.
PACK_TOKENS = 128
# Of one pass, all rows under all interventions together: the fewer the passes, the less is lost between products.
PASS_TOKENS = 2560


PADDING, PREFIX = -1, -2  # in ``Pack.whose``


@dataclass(frozen=True)
class Pack:
    """Rows that hold several prompts each, without what all prompts share; short rows are padded at their end.

    The first row begins with what all share: it is run there, and seen from every row.

    Attributes:
        ids: tokens.
        positions: each token's position in its own prompt.
        whose: which prompt a token belongs to; ``PADDING`` and ``PREFIX`` belong to none.
        shared: tokens of the prefix.
        row: where each prompt is.
        end: its last token there.
        indices: which prompts these are.
    """

    ids: Int[Tensor, "row pos"]
    positions: Int[Tensor, "row pos"]
    whose: Int[Tensor, "row pos"]
    shared: int
    row: Int[Tensor, "prompt"]
    end: Int[Tensor, "prompt"]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mask(self) -> Bool[Tensor, "row pos seen"]:
        """Which token sees which: first the shared prefix, then the row's own tokens."""
        order = torch.arange(self.ids.shape[1], device=self.ids.device)
        own = (self.whose[:, :, None] == self.whose[:, None]) & (order[:, None] >= order)
        prefix = (self.whose >= 0)[:, :, None].expand(-1, -1, self.shared)
        return torch.cat([prefix, own], -1)

    def last(self, x: Float[Tensor, "row pos *rest"], n: int) -> Float[Tensor, "prompt n *rest"]:
        """Activations at the last ``n`` positions of each prompt."""
        # A model spread over devices has its layers' streams elsewhere.
        at = self.end[:, None] + torch.arange(1 - n, 1, device=self.end.device)
        return x[self.row[:, None].to(x.device), at.to(x.device)]

    def rows(self, some: slice) -> Pack:
        """Some of the rows, with their prompts."""
        here = (self.row >= some.start) & (self.row < some.stop)
        return Pack(
            self.ids[some],
            self.positions[some],
            self.whose[some],
            self.shared,
            self.row[here] - some.start,
            self.end[here],
            tuple(index for index, is_here in zip(self.indices, here.tolist(), strict=True) if is_here),
        )

    def copies(self, n: int) -> Iterator[slice]:
        """``n`` interventions in parts of which a pass can hold at least one row."""
        return _even(n, PASS_TOKENS // self.ids.shape[1])

    def passes(self, copies: int = 1) -> Iterator[slice]:
        """The rows in as few passes of ``PASS_TOKENS`` as ``copies`` of them need; to be run in this order."""
        return _even(len(self), PASS_TOKENS // (copies * self.ids.shape[1]))


def _even(n: int, most: int) -> Iterator[slice]:
    """0 to ``n`` in as few parts as parts of at most ``most`` allow (of one, where that is 0), as even as can be."""
    parts = -(-n // max(1, most))
    size = -(-n // max(1, parts))
    return (slice(begin, min(n, begin + size)) for begin in range(0, n, max(1, size)))


def pack_tokens(tokens: Tokens, pad_id: int = 0, row_tokens: int = PACK_TOKENS) -> Pack:
    """All prompts in equally long rows of about ``row_tokens``, or of what the longest prompt needs.

    They share nothing after an instruction's end, so that a suffix is always among a prompt's own tokens.
    """
    prompts = [ids[mask] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    shared = min(common_prefix(prompts), *(span.instruction[1] for span in tokens.spans))
    return pack_prompts(prompts, shared, pad_id, row_tokens)


def pack_prompts(
    prompts: Sequence[Int[Tensor, "_"]], shared: int, pad_id: int = 0, row_tokens: int = PACK_TOKENS
) -> Pack:
    """The same for prompts whose first ``shared`` tokens are the same."""
    lengths = [len(ids) - shared for ids in prompts]
    n = max(1, round((shared + sum(lengths)) / max(row_tokens, shared, *lengths)))
    # The longest first, each into the row that has least: rows end up nearly equal, so little is padded.
    groups: list[list[int]] = [[] for _ in range(n)]
    filled = [shared] + [0] * (n - 1)
    for i in sorted(range(len(prompts)), key=lambda i: -lengths[i]):
        least = filled.index(min(filled))
        groups[least].append(i)
        filled[least] += lengths[i]
    device = prompts[0].device
    shape = (n, max(filled))
    ids, positions, whose = (torch.full(shape, x, dtype=torch.long, device=device) for x in (pad_id, 0, PADDING))
    ids[0, :shared], whose[0, :shared] = prompts[0][:shared], PREFIX
    positions[0, :shared] = torch.arange(shared, device=device)
    row, end, indices = [], [], []
    for r, group in enumerate(groups):
        begin = 0 if r else shared
        for i in group:
            place = (r, slice(begin, begin + lengths[i]))
            ids[place] = prompts[i][shared:]
            positions[place] = torch.arange(shared, shared + lengths[i], device=device)
            whose[place] = i
            begin += lengths[i]
            row.append(r)
            end.append(begin - 1)
            indices.append(i)
    rows, ends = (torch.tensor(values, device=device) for values in (row, end))
    return Pack(ids, positions, whose, shared, rows, ends, tuple(indices))


def common_prefix(prompts: Sequence[Tensor]) -> int:
    """Number of first tokens that all prompts share; each keeps at least one of its own."""
    if len(prompts) < 2:
        return 0
    limit = max(0, min(len(ids) for ids in prompts) - 1)
    same = torch.stack([ids[:limit] == prompts[0][:limit] for ids in prompts]).all(0)
    return int(same.long().cumprod(0).sum())


Start = tuple[int, Float[Tensor, "row pos d_model"]]


def shared_prefix(pack: Pack) -> SharedPrefix | None:
    """What the passes over the rows of ``pack``, under one set of interventions, hand on; None where none is shared."""
    return SharedPrefix(pack.shared) if pack.shared else None


@torch.inference_mode()
def packed_logits(
    model: Model, pack: Pack, copies: int = 1, start: Start | None = None, prefix: SharedPrefix | None = None
) -> Float[Tensor, "copy prompt vocab"]:
    """Logits after each prompt of ``pack``, in ``copies`` of it, which active hooks may treat differently.

    The batch is all rows of the first copy, then all rows of the second one, and so on.

    Args:
        start: (layer, its resid_pre for the pack): restart there instead of at the embedding.
        prefix: from ``shared_prefix``, one for all passes of the same copies, interventions and start.
    """
    batch = None if start is None else (start[0], start[1].repeat(copies, 1, 1))
    with model.hooks():
        return model.backend.packed_logits(
            pack.ids, pack.positions, pack.mask, pack.row, pack.end, copies, batch, prefix
        )


class RestartedPack:
    """A pack with the residual streams that stand before an intervention, from which its pass restarts."""

    def __init__(self, model: Model, pack: Pack):
        self.model, self.pack = model, pack
        self._resid: list[Tensor] = []

    def before(self, depth: int = 0) -> Float[Tensor, "prompt vocab"]:
        """Logits after each prompt without the intervention; resid_pre of the first ``depth`` layers is kept."""
        kept: list[list[Tensor]] = [[] for _ in range(depth)]
        hooks = [
            (f"blocks.{layer}.hook_resid_pre", lambda x, hook, into=into: into.append(x.clone()))
            for layer, into in enumerate(kept)
        ]
        with self.model.hooks(*hooks):
            found = _in_order(self.logits())
        self._resid = [torch.cat(layer) for layer in kept]
        return found

    def logits(self, copies: int = 1, start: int = 0) -> Iterator[tuple[Pack, Float[Tensor, "copy prompt vocab"]]]:
        """Some rows and their logits in ``copies``, under the active interventions, from layer ``start`` on."""
        prefix = shared_prefix(self.pack)
        for some in self.pack.passes(copies):
            rows = self.pack.rows(some)
            resid = (start, self._resid[start][some]) if start else None
            yield rows, packed_logits(self.model, rows, copies, resid, prefix)


def _in_order(found: Iterable[tuple[Pack, Tensor]]) -> Float[Tensor, "prompt vocab"]:
    """Of passes that gave [copy, prompt, vocab], the first copy in the order of the prompts."""
    rows = {i: row for pack, logits in found for i, row in zip(pack.indices, logits[0], strict=True)}
    return torch.stack([rows[i] for i in range(len(rows))])


# Of different lengths and beginnings: what packing is tried on, whatever is asked later.
TRIAL = ("Hello", "How do I bake bread?", "Name three rivers of Europe and say where each of them ends.")


def packing_holds(model: Model) -> bool:
    """Whether packed logits equal those of the prompts alone on this model: measured on three prompts, once per model.

    Attention that reads anything but the mask and the position ids (ALiBi, windows, recurrences) would differ. Hooks
    that are active from outside may count positions, so with them the answer is no.
    """
    if not model.backend.supports_prefix or active_hooks(model.tl):
        return False
    if model.packs is None:
        model.packs = _measure(model, model.tokenize(TRIAL))
    return model.packs


def _measure(model: Model, some: Tokens) -> bool:
    try:
        # A row of one prompt and a row of two, so that prompts in a row, rows of a batch and padding are tried.
        whole = RestartedPack(model, pack_tokens(some, row_tokens=int(some.lengths.sum()) // 2))
        whole.before(model.n_layers // 2 + 1)
        packed, restarted = (_in_order(whole.logits(1, start)) for start in (0, model.n_layers // 2))
    except RefusalLensError:
        raise
    except (TypeError, RuntimeError, IndexError, ValueError):  # the model's forward takes no such mask or positions
        return False
    alone = torch.cat([model.logits(some.take([i]))[:, -1] for i in range(len(some))]).double()
    limit = SUM_TOLERANCE.get(model.dtype, 1e-2) * float(alone.abs().max())
    return all(float((x.double() - alone).abs().max()) <= limit for x in (packed, restarted))
