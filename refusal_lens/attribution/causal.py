"""Whether the heads that attribution names matter: replace their outputs and read the refusal metric."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import PromptError
from ..hooks.attention import every_head, random_heads
from ..hooks.base import Model
from ..hooks.interchange import InterchangeHeads
from ..hooks.interventions import Ablate
from ..hooks.readers import Cache, Kept, check_position
from ..hooks.readout import Readout
from ..models.endings import Ending, rows_of_batches
from ..models.model import HookedChatModel
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import Head, as_heads
from ..refusal.metric import refusal_metric
from ..refusal.tokens import TokensLike, as_refusal_tokens
from ..stats import correlation
from ..tensors import wide
from .causal_records import CausalCheck
from .components import texts
from .records import TopHeads

SETS = 8  # of heads that are replaced, in one item of an engine


def causal_check(
    model: HookedChatModel,
    prompts: PromptsLike,
    reference: PromptsLike,
    direction: DirectionLike,
    heads: Any,
    refusal_tokens: TokensLike,
    *,
    suffixes: Sequence[str] | None = None,
    n_last: int = 1,
    n_random: int = 5,
    seed: int = 0,
    engine: Engine | None = None,
) -> CausalCheck:
    """Ablate the heads (mean and resample), keep only them, and do the same with random heads of their layers.

    Replacements act at the last ``n_last`` positions only, which is where ``heads`` reads: what a head
    does at earlier tokens is not tested. Mean ablation inserts the mean z over ``reference``, resampling the z of a
    random reference prompt; keep-only mean-ablates every other head of the model.

    Args:
        prompts: harmful requests that were not used to choose the heads.
        reference: requests of the other kind (harmless).
        heads: from ``top_heads``, or (layer, head) pairs or labels such as "L12H7"; one or several.
        suffixes: one per prompt (with its leading space), or None.
        n_last: at most the number of post-instruction tokens, so that positions correspond.
        n_random: draws of random heads.
        seed: of those draws and of resampling.
        engine: spreads sets of heads over its workers; this process if None.

    Raises:
        PromptError: a prompt that chose the heads, or too large an ``n_last``.

    Example:
        >>> top = rl.attribution.top_heads(model, data.harmful.val, data.harmful.test, found, top=2)
        >>> check = rl.attribution.causal_check(
        ...     model, data.harmful.test, data.harmless.test, found, top, found.refusal_tokens, n_random=1
        ... )
        >>> check.change("mean_ablation").mean < check.change("random_mean_ablation").mean
        True
    """
    prompts, reference, direction = as_prompts(prompts), as_prompts(reference), as_direction(direction)
    model.check_direction(direction)
    asked = texts(prompts, suffixes)
    if not (named := as_heads(heads)):
        raise PromptError("no heads were given: name some, as from top_heads")
    if isinstance(heads, TopHeads) and (shared := set(heads.chosen_on.prompts) & set(asked)):
        raise PromptError(f"{len(shared)} prompt(s) chose the heads; test them on other prompts")
    tokens = model.tokenize(prompts, suffixes)
    if not 1 <= n_last <= tokens.n_post:
        raise PromptError(f"n_last {n_last} must be from 1 to {tokens.n_post}, the post-instruction tokens")
    rng = random.Random(seed)
    # Every condition draws the same donors, so that conditions differ by heads only.
    donors = [rng.randrange(len(reference)) for _ in prompts]
    draws = tuple(random_heads(model, named, rng) for _ in range(n_random))
    singles = tuple(dict.fromkeys([*named, *(head for draw in draws for head in draw)]))
    every = every_head(model)
    sets: list[Any] = [((), False), *_effects(named, every), (every, False), None]
    sets += [*(one for draw in draws for one in _effects(draw, every)), *(((head,), False) for head in singles)]
    work = _Replaced(prompts, suffixes, reference, direction, refusal_tokens, n_last, donors)
    items = [*(sets[i : i + SETS] for i in range(0, len(sets), SETS)), singles]
    *made, predicted = (engine or LocalEngine(model)).map("replace heads", work, items)
    found = torch.cat(made)
    controls = found[6 : 6 + 3 * n_random].unflatten(0, (n_random, 3)).mean(0)
    metric, measured = torch.cat([found[:4], controls, found[4:6]]), found[6 + 3 * n_random :] - found[0]
    spearman, p_value = correlation(predicted.tolist(), measured.mean(-1).tolist())
    return CausalCheck(
        heads=named,
        random_heads=draws,
        metric=metric,
        singles=singles,
        predicted=predicted,
        measured=measured,
        spearman=spearman,
        p_value=p_value,
        prompts=asked,
        n_selection=heads.n_selection if isinstance(heads, TopHeads) else 0,
        n_reference=len(reference),
        n_last=n_last,
    )


def _effects(heads: tuple[Head, ...], every: Sequence[Head]) -> list[tuple[tuple[Head, ...], bool]]:
    """The heads at the mean and resampled, and all others at the mean."""
    return [(heads, False), (heads, True), (tuple(head for head in every if head not in heads), False)]


@dataclass(frozen=True)
class _Replaced:
    """The metric with sets of heads replaced, as work for an engine."""

    prompts: list[str]
    suffixes: Sequence[str] | None
    reference: list[str]
    direction: Direction
    refusal_tokens: TokensLike
    n_last: int
    donors: list[int]  # a reference prompt for each prompt

    def prepare(self, model: HookedChatModel) -> tuple[Tensor, Tensor, list[Ending]]:
        """The mean reference z, that of each prompt's donor, and the prompts' last positions."""
        z, tokens = last_z(model, self.reference, self.n_last), model.tokenize(self.prompts, self.suffixes)
        endings = [Ending.of(model, tokens.take(rows), self.n_last) for rows in rows_of_batches(tokens)]
        return z.mean(1, keepdim=True), z[:, self.donors], endings

    def run(self, model: HookedChatModel, state: tuple[Tensor, Tensor, list[Ending]], item: Sequence[Any]) -> Tensor:
        """Metric by set, each with whether it is resampled (None ablates the direction), [set prompt]; for single heads
        the change along the direction that they predict, [head]."""
        if isinstance(item, tuple):
            read = _Gap(Readout.of(model, self.direction.unit), state[0], item)
            return model.run(self.prompts, self.suffixes, read=read)[read]
        return torch.stack([self._metric(model, state, one) for one in item])

    def _metric(self, model: HookedChatModel, state: tuple[Tensor, Tensor, list[Ending]], one: Any) -> Tensor:
        """Metric with one set replaced, or the direction ablated, [prompt]."""
        if one is None:
            return refusal_metric(model, self.prompts, self.refusal_tokens, self.suffixes, [Ablate(self.direction)])
        ids = as_refusal_tokens(model, self.refusal_tokens).ids
        edit = InterchangeHeads(one[0], state[1] if one[1] else state[0])
        found = torch.empty(len(self.prompts), dtype=torch.float64)
        for ending in state[2]:
            found[list(ending.tokens.indices)] = ending.log_odds(ids, edit)
        return found


def last_z(model: HookedChatModel, prompts: PromptsLike, n_last: int) -> Float[Tensor, "layer prompt last head d_head"]:
    """z of every head at the last positions, on the CPU."""
    tokens = model.tokenize(prompts)
    check_position(tokens, -n_last)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(model.n_layers)]
    (found,) = model.run(tokens, read=Cache(names, slice(-n_last, None)))
    shape = (len(tokens), n_last, model.n_heads, model.d_head)
    return torch.stack([wide(found[name]).reshape(shape).to(wide_dtype(model)) for name in names])


def wide_dtype(model: HookedChatModel) -> torch.dtype:
    """float32, or float64 for a model in float64."""
    return torch.promote_types(model.dtype, torch.float32)


class _Gap(Kept[Tensor]):
    """Change of r̂ · x at the last position that mean ablation of each head predicts, mean over prompts: (mean reference
    z - z) · W_O r̂; a post-norm's scale is kept frozen."""

    def __init__(self, readout: Readout, mean: Tensor, heads: Sequence[Head]):
        self.readout, self.mean, self.heads, self.where = readout, mean, heads, slice(-1, None)
        layers = sorted({layer for layer, _ in heads})
        self.names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
        self.names += [site for layer in layers if (site := readout.scale_sites[layer])]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        rows = []
        for layer, head in self.heads:
            z = wide(self.kept[f"blocks.{layer}.attn.hook_z"][:, 0]).reshape(len(batch), -1, model.d_head)[:, head]
            gap = (self.mean[layer, 0, -1, head].to(z) - z) @ self.readout.heads[layer, head].to(z)
            site = self.readout.scale_sites[layer]
            rows.append(gap if site is None else gap / wide(self.kept[site][:, 0, 0]).to(gap))
        return {"gap": torch.stack(rows)}

    def result(self) -> Tensor:
        return self.rows["gap"].mean(-1)
