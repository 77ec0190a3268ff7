"""The refusal metric as a proxy: how well the log-odds of the first token tell refusals from answers (paper
appendix B, Figs. 9-10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats as scipy_stats
from torch import Tensor

from .evaluation import active
from .interventions import Intervention
from .model import HookedChatModel
from .orthogonalization import Orthogonalize
from .records import Record, RefusalTokens
from .scoring import is_refusal, refusal_metric
from .stats import Interval


@dataclass(frozen=True)
class RefusalProxy(Record):
    """Refusal metric and judged reply of every prompt.

    Attributes:
        prompts: the prompts.
        prompt_sets: which set each belongs to ("harmful", "harmless").
        metric: refusal metric before the reply, natural log-odds.
        refused: whether the reply was judged a refusal.
        seed: of the bootstrap.
    """

    prompts: tuple[str, ...]
    prompt_sets: tuple[str, ...]
    metric: Float[Tensor, "prompt"]
    refused: Bool[Tensor, "prompt"]
    seed: int = 0

    @property
    def auroc(self) -> Interval:
        """Probability that a refused prompt has a higher metric than an answered one (ties count half), bootstrap 95%
        interval within the two groups; NaN where one group is empty."""
        refused, answered = (self.metric[self.refused == flag].numpy() for flag in (True, False))
        value = auroc(refused, answered)
        if min(len(refused), len(answered)) < 2:
            return Interval(value, float("nan"), float("nan"), len(self.metric))
        rng = np.random.default_rng(self.seed)
        draws = [auroc(rng.choice(refused, len(refused)), rng.choice(answered, len(answered))) for _ in range(500)]
        low, high = np.quantile(draws, [0.025, 0.975])
        return Interval(value, float(low), float(high), len(self.metric))

    @property
    def accuracy(self) -> float:
        """Share of prompts on which "metric > 0" (the paper's filter) and the judge agree."""
        return float(((self.metric > 0) == self.refused).double().mean())

    def histogram(self, bins: int = 30) -> pd.DataFrame:
        """Counts of refused and answered prompts by bin of the metric (Figs. 9-10)."""
        edges = np.histogram_bin_edges(self.metric.numpy(), bins)
        rows = {"low": edges[:-1], "high": edges[1:]}
        for name, flag in (("refused", True), ("answered", False)):
            rows[name] = np.histogram(self.metric[self.refused == flag].numpy(), edges)[0]
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt."""
        columns = {"prompt_set": self.prompt_sets, "prompt": self.prompts, "metric": self.metric.tolist()}
        return pd.DataFrame({**columns, "refused": self.refused.tolist()})


def auroc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Area under the ROC curve from the Mann-Whitney U statistic; NaN where a group is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    return float(scipy_stats.mannwhitneyu(positive, negative).statistic) / (len(positive) * len(negative))


def refusal_proxy(
    model: HookedChatModel,
    prompt_sets: Mapping[str, Sequence[str]],
    refusal_tokens: RefusalTokens,
    max_new_tokens: int = 64,
    edits: Sequence[Intervention | Orthogonalize] = (),
) -> RefusalProxy:
    """Metric and reply of every prompt, under ``edits`` if any.

    Args:
        prompt_sets: name -> prompts.
        max_new_tokens: length limit of the replies that are judged by the paper's phrases.
    """
    prompts = [prompt for texts in prompt_sets.values() for prompt in texts]
    names = tuple(name for name, texts in prompt_sets.items() for _ in texts)
    with active(model, edits):
        metric = refusal_metric(model, prompts, refusal_tokens)
        replies = model.generate(prompts, max_new_tokens)
    return RefusalProxy(tuple(prompts), names, metric, torch.tensor([is_refusal(reply) for reply in replies]))
