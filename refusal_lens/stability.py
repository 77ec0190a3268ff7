"""How much the chosen direction depends on which training prompts were drawn (a bootstrap; not in the paper)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .errors import PromptError, SelectionError
from .extraction import extract_directions
from .linalg import unit
from .model import HookedChatModel
from .records import CandidateDirections, Direction, Record, RefusalTokens
from .selection import SelectionRule, select_direction
from .stats import Interval, Rate, rate


@dataclass(frozen=True)
class Stability(Record):
    """Winners of the selection over bootstrap resamples of the training prompts.

    Attributes:
        reference: the direction that all training prompts give.
        winners: the winner of each resample that had one.
        resamples: number of resamples.
        n_harmful, n_harmless: training prompts of each kind.
        relaxed: resamples in which no candidate passed the rule and the nearest one was taken.
    """

    reference: Direction
    winners: tuple[Direction, ...]
    resamples: int
    n_harmful: int
    n_harmless: int
    relaxed: int = 0

    @property
    def wins(self) -> dict[str, Rate]:
        """Share of resamples that each candidate won, most first, with 95% intervals; "none" where none did."""
        labels = [w.label for w in self.winners] + ["none"] * (self.resamples - len(self.winners))
        return {label: rate([other == label for other in labels]) for label, _ in Counter(labels).most_common()}

    @property
    def cosines(self) -> Float[Tensor, "winner winner"]:
        """Cosine between every two winners."""
        units = unit(torch.stack([w.unit for w in self.winners]).double())
        return units @ units.T

    @property
    def to_reference(self) -> Float[Tensor, "winner"]:
        """Cosine of each winner with the reference."""
        return torch.stack([w.unit for w in self.winners]).double() @ unit(self.reference.unit.double())

    def pairwise(self) -> Interval:
        """Mean cosine of two winners, with the range that holds 95% of the pairs."""
        upper = torch.triu_indices(len(self.winners), len(self.winners), 1)
        pairs = self.cosines[upper[0], upper[1]]
        if not len(pairs):
            return Interval(float("nan"), float("nan"), float("nan"), 0)
        low, high = torch.quantile(pairs, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Interval(float(pairs.mean()), low, high, len(pairs))

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate that won."""
        reference = self.reference.label
        return pd.DataFrame(
            [
                {
                    "candidate": label,
                    "share": r.rate,
                    "low": r.low,
                    "high": r.high,
                    "n": r.n,
                    "whole": label == reference,
                }
                for label, r in self.wins.items()
            ]
        )


def prompt_activations(
    model: HookedChatModel, prompts: Sequence[str], on_batch: Callable[[int], None] | None = None
) -> Float[Tensor, "prompt pos layer d_model"]:
    """resid_pre of every prompt at its post-instruction positions and all layers, float32 on the CPU."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    out: Tensor | None = None
    for batch in model.batches(list(prompts)):
        cached = model.cache(batch, names, positions=slice(-batch.n_post, None))
        values = torch.stack([cached[name].float() for name in names], 2).cpu()
        out = torch.empty(len(prompts), *values.shape[1:]) if out is None else out
        out[list(batch.indices)] = values
        if on_batch:
            on_batch(len(batch))
    if out is None:
        raise PromptError("no prompts were given")
    return out


def selection_stability(
    model: HookedChatModel,
    train: tuple[Sequence[str], Sequence[str]],
    val: tuple[Sequence[str], Sequence[str]],
    refusal_tokens: RefusalTokens,
    *,
    resamples: int = 20,
    seed: int = 0,
    rule: SelectionRule | None = None,
    relax: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Stability:
    """Draw the training prompts again with replacement, extract and select; the model is run on them only once.

    Args:
        train, val: (harmful, harmless) prompts.
        refusal_tokens: of the refusal metric.
        resamples: how many times.
        rule: thresholds of the selection.
        relax: take the nearest candidate where none passes; else such a resample counts as "none".
        on_step: called with 1 after each resample.
    """
    whole = extract_directions(model, *train)

    def choose(candidates: CandidateDirections) -> Direction:
        return select_direction(model, candidates, *val, refusal_tokens=refusal_tokens, rule=rule, relax=relax).chosen

    reference = choose(whole)
    harmful, harmless = (prompt_activations(model, prompts) for prompts in train)
    generator, winners = torch.Generator().manual_seed(seed), []
    for _ in range(resamples):
        means = [_resampled_mean(x, generator) for x in (harmful, harmless)]
        drawn = replace(whole, mean_diff=means[0] - means[1], harmful_mean=means[0], harmless_mean=means[1])
        try:
            winners.append(choose(drawn))
        except SelectionError:
            pass  # counted as "none"
        if on_step:
            on_step(1)
    relaxed = sum(bool(w.relaxed) for w in winners)
    return Stability(reference, tuple(winners), resamples, len(harmful), len(harmless), relaxed)


def _resampled_mean(x: Tensor, generator: torch.Generator) -> Float[Tensor, "pos layer d_model"]:
    """Mean over prompts drawn with replacement, as weights, so that no copy of the activations is made."""
    counts = torch.bincount(torch.randint(len(x), (len(x),), generator=generator), minlength=len(x))
    mean = torch.zeros(x.shape[1:], dtype=torch.float64)
    for value, count in zip(x, counts.tolist(), strict=True):
        if count:
            mean += count * value.double()
    return mean / len(x)
