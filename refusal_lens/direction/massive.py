"""Moments of the residual stream by layer, and its massive tokens, read in the pass that extracts the directions."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.local import LocalEngine
from ..errors import ModelError
from ..hooks.base import Hooks, Model
from ..hooks.readers import Reader
from ..models.model import HookedChatModel
from ..models.packing import PREFIX, Pack
from ..records.stream import CONSTANT, MASSIVE, MassiveToken, StreamStatistics

ROOM = 2 << 30  # bytes that covariances may take


class Moments(Reader[dict[str, Tensor]]):
    """Sums over the tokens of resid_pre that are not massive, float64, and the massive ones: memory is one batch.

    A token is massive by the median norm of its own sequence, the shared prefix of packed prompts included, so that
    prompts give the same packed and alone.

    Args:
        covariance: also the sums of products of coordinates.
    """

    can_pack: ClassVar[bool] = True

    def __init__(self, covariance: bool = False):
        self.covariance = covariance

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.prefix: dict[int, Tensor] = {}
        self.prefix_ids: Tensor | None = None

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.found: list[dict[str, Tensor]] = []
        packed = isinstance(batch, Pack)
        own = batch.whose >= 0 if packed else batch.mask
        owner = batch.whose if packed else torch.arange(len(batch))[:, None].expand_as(batch.mask)
        owner = torch.tensor(batch.indices if packed else range(len(batch)))[:, None] == owner[own].cpu()
        shared = batch.whose == PREFIX if packed else torch.zeros_like(own)
        if bool(shared.any()):  # the passes after the first one see it through cached keys and values
            self.prefix_ids = batch.ids[shared]
        read = partial(self._read, own, owner, shared, batch.ids)
        return [(f"blocks.{layer}.hook_resid_pre", partial(read, layer)) for layer in range(model.n_layers)]

    def _read(self, own: Tensor, owner: Tensor, shared: Tensor, ids: Tensor, layer: int, x: Tensor, hook: Any) -> None:
        own, owner = own.to(x.device), owner.to(x.device)
        tokens = x[own].double()
        if bool(shared.any()):
            self.prefix[layer] = x[shared.to(x.device)].double()
        before = self.prefix.get(layer, tokens[:0]).to(tokens)
        norms, first = tokens.norm(dim=-1), before.norm(dim=-1)
        medians = torch.stack([torch.cat([first, norms[mine]]).median() for mine in owner])
        # Each token is of one prompt, and a shared one is of all.
        ratios = norms / medians[owner.int().argmax(0)]
        massive, massive_first = ratios > MASSIVE, first / medians[:, None] > MASSIVE
        kept, times = tokens[~massive], (~massive_first).sum(0).double()
        weighed = times[:, None] * before
        found = {
            "sum": kept.sum(0) + weighed.sum(0),
            "square": kept.square().sum(0) + (weighed * before).sum(0),
            "n": len(kept) + times.sum(),
            "norm": medians.sum(),
        }
        if self.covariance:
            found["product"] = kept.T @ kept + weighed.T @ before
        rows = [(ids.to(x.device)[own][massive], ratios[massive])]
        if self.prefix_ids is not None:
            prompt, place = massive_first.nonzero(as_tuple=True)
            rows.append((self.prefix_ids.to(x.device)[place], (first / medians[:, None])[prompt, place]))
        found["tokens"] = _reduced(torch.cat([i for i, _ in rows]), torch.cat([r for _, r in rows]), layer)
        self.found.append({name: value.cpu() for name, value in found.items()})

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        tokens = torch.cat([found.pop("tokens") for found in self.found])
        return {name: torch.stack([found[name] for found in self.found]) for name in self.found[0]} | {"tokens": tokens}

    def put(self, indices: Sequence[int], values: dict[str, Tensor]) -> None:
        for name, x in values.items():
            before: Any = self.rows.get(name, x[:0] if name == "tokens" else 0)
            self.rows[name] = torch.cat([before, x]) if name == "tokens" else before + x

    def result(self) -> dict[str, Tensor]:
        return self.rows


def _reduced(ids: Tensor, ratios: Tensor, layer: int) -> Float[Tensor, "token 4"]:
    """Massive tokens of one layer as rows of id, layer, largest ratio, times."""
    kinds, which, counts = ids.unique(return_inverse=True, return_counts=True)
    largest = torch.zeros(len(kinds), dtype=torch.float64, device=ids.device)
    largest = largest.scatter_reduce(0, which, ratios, "amax")
    return torch.stack([kinds.double(), torch.full_like(largest, layer), largest, counts.double()], 1)


def statistics_of(model: HookedChatModel, parts: Sequence[dict[str, Tensor]], n_prompts: int) -> StreamStatistics:
    """Join what ``Moments`` gave on some sets of prompts."""
    sums = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0] if name != "tokens"}
    n = sums["n"][:, None].clamp_min(1)
    mean, square = sums["sum"] / n, sums["square"] / n
    variance = (square - mean.square()).clamp_min(0)
    std = torch.where(variance > CONSTANT * square, variance, 0).sqrt()
    covariance = None
    if "product" in sums:
        covariance = sums["product"] / n[:, :, None] - mean[:, :, None] * mean[:, None]
    counts, tokens = tuple(map(int, sums["n"])), _tokens(model, torch.cat([part["tokens"] for part in parts]))
    about = (counts, n_prompts, tokens, model.basis, model.fingerprint)
    return StreamStatistics(mean, std, sums["norm"] / n_prompts, *about, covariance)


def _tokens(model: HookedChatModel, rows: Float[Tensor, "row 4"]) -> tuple[MassiveToken, ...]:
    found: dict[int, MassiveToken] = {}
    for token, layer, ratio, times in rows.tolist():
        before = found.get(int(token))
        most, where = max((ratio, int(layer)), (before.ratio, before.layer) if before else (0.0, 0))
        text = before.text if before else model.tokenizer.decode([int(token)])
        found[int(token)] = MassiveToken(text, int(token), where, most, int(times) + (before.times if before else 0))
    return tuple(sorted(found.values(), key=lambda token: -token.ratio))


def stream_statistics(model: HookedChatModel, prompts: PromptsLike, covariance: bool = False) -> StreamStatistics:
    """Moments of resid_pre over the tokens of ``prompts`` (training prompts of both kinds), massive ones left out.

    ``extract_directions`` makes them in its own pass, as ``candidates.statistics``, without covariance.

    Args:
        covariance: for the oblique form of ablation; memory is layers x d_model² in float64.

    Raises:
        ModelError: covariances that take more than 2 GiB.

    Example:
        >>> statistics = rl.direction.stream_statistics(model, data.harmless.train[:8])
        >>> statistics.sizes, len(statistics.tokens)
        ({'layer': 5, 'd_model': 96}, 0)
    """
    texts = as_prompts(prompts, "train")
    if covariance and (size := 8 * model.n_layers * model.d_model**2) > ROOM:
        raise ModelError(
            f"covariances of {model.n_layers} layers of {model.d_model} coordinates take {size / 2**30:.1f} GiB, more "
            f"than {ROOM >> 30}: use the form 'scaled', which takes deviations only"
        )
    (found,) = model.run(texts, read=Moments(covariance), pack=True, engine=LocalEngine(model))
    return statistics_of(model, [found], len(texts))
