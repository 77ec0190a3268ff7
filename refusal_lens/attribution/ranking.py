"""Heads chosen on one split and reported on another, with intervals and a test over all heads."""

import torch
from scipy import stats as scipy_stats

from ..data.prompts import PromptsLike
from ..engines.base import Engine
from ..errors import PromptError
from ..models.model import HookedChatModel
from ..records.direction import DirectionLike
from ..records.labels import Head
from ..stats import benjamini_hochberg, paired_p
from .components import heads as contributions
from .records import HeadContributions, TopHeads, highest


def choose_heads(contributions: HeadContributions, top: int = 8) -> tuple[Head, ...]:
    """The ``top`` heads by mean contribution, highest first (the paper takes eight)."""
    return highest(contributions.mean, top)


def confirm_heads(
    selection: HeadContributions, report: HeadContributions, contrast: HeadContributions | None = None, top: int = 8
) -> TopHeads:
    """Choose on ``selection``, report on ``report``.

    Raises:
        PromptError: a prompt is in both, or fewer than two prompts to report on.
    """
    if shared := set(selection.prompts) & set(report.prompts):
        raise PromptError(
            f"{len(shared)} prompt(s) chose the heads and would be reported on, e.g. {min(shared)[:60]!r}: remove them "
            "from one of the splits"
        )
    if len(report.prompts) < 2:
        raise PromptError(f"{len(report.prompts)} prompt to report on gives no interval; give at least 2")
    heads = choose_heads(selection, top)
    values = report.values.flatten(0, 1).double().numpy()
    if contrast is None:
        test, raw = "Wilcoxon signed-rank against 0", [paired_p(v) for v in values]
    else:
        test = "Mann-Whitney U against the contrast"
        others = contrast.values.flatten(0, 1).double().numpy()
        raw = [float(scipy_stats.mannwhitneyu(v, o).pvalue) for v, o in zip(values, others, strict=True)]
    p = torch.as_tensor(benjamini_hochberg(raw)).reshape(report.mean.shape)
    intervals = tuple(report.interval(*head) for head in heads)
    return TopHeads(heads, selection, report, contrast, p, test, intervals)


def top_heads(
    model: HookedChatModel,
    selection: PromptsLike,
    report: PromptsLike,
    direction: DirectionLike,
    *,
    contrast: PromptsLike | None = None,
    top: int = 8,
    engine: Engine | None = None,
) -> TopHeads:
    """The heads that write most along r̂: chosen on ``selection`` prompts, reported on ``report`` prompts.

    Args:
        contrast: prompts of the other kind (harmless), for the test over heads.
        engine: as in ``attribution.heads``.

    Example:
        >>> top = rl.attribution.top_heads(model, data.harmful.val, data.harmful.test, found, top=2)
        >>> top.labels
        ('L1H0', 'L1H2')
    """
    chosen, reported = (contributions(model, prompts, direction, engine=engine) for prompts in (selection, report))
    other = None if contrast is None else contributions(model, contrast, direction, engine=engine)
    return confirm_heads(chosen, reported, other, top)
