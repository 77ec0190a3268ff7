"""Find the refusal direction of a model in one call."""

from typing import Any

from ..data.prompts import PromptPair, check_pair
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..refusal.metric import filter_prompts
from ..refusal.tokens import N_PROMPTS, TokensLike, as_refusal_tokens, find_refusal_tokens
from .extract import extract_directions
from .records import FoundDirection
from .select import SelectionRule, select_direction


def find_direction(
    model: HookedChatModel,
    data: PromptPair,
    *,
    refusal_tokens: TokensLike = None,
    point: str = "calibrated",
    rule: SelectionRule | None = None,
    coeff: float = 1.0,
    full_grid: bool = False,
    relax: bool = True,
    progress: Progress = silent,
) -> FoundDirection:
    """Find the refusal direction: refusal tokens, filtered prompts, candidates, selection (paper section 2.3).

    It is extracted on ``data``'s training prompts and selected on its validation prompts; test prompts are not read.
    Spare prompts replace those that the filter drops.

    Args:
        data: harmful and harmless prompts in splits, from ``load_prompts``.
        refusal_tokens: tokens of the refusal metric; found from replies to training prompts if None.
        point: point of the refusal metric above which a prompt counts as refused and addition as inducing, if
            ``refusal_tokens`` are not given: "calibrated" on training prompts, "paper" for 0, or another of
            ``records.labels.POINTS``.
        rule: thresholds of the selection; the paper's by default, with this point for induce.
        coeff: multiple of r that is added.
        full_grid: compute every score of every candidate, for the plots; the winner is the same.
        relax: take the nearest candidate if none passes the rule; ``found.direction.relaxed`` says what was relaxed.

    Returns:
        ``.direction``, ``.selection`` (scores and reasons of all candidates), ``.candidates``, ``.refusal_tokens``.

    Raises:
        ModelError: the model refuses no harmful prompt, or every harmless one.
        SelectionError: nothing passes the rule and ``relax`` is off; its ``near_misses`` say what each needs.

    Example:
        >>> found = rl.find_direction(model, data)
        >>> found.direction.unit.shape, found.to_frame().columns.tolist()
        (torch.Size([96]), ['pos', 'layer', 'bypass', 'induce', 'kl', 'reason'])
    """
    check_pair(data)
    if refusal_tokens is None:
        train = data.harmful.train[:N_PROMPTS], data.harmless.train[:N_PROMPTS]
        tokens = find_refusal_tokens(model, *train, point=point, progress=progress)
    else:
        tokens = as_refusal_tokens(model, refusal_tokens)
    kept = filter_prompts(model, data.harmful, data.harmless, tokens, progress)
    candidates = extract_directions(model, *kept, progress)
    how: Any = {"rule": rule, "coeff": coeff, "full_grid": full_grid, "relax": relax, "progress": progress}
    selection = select_direction(model, candidates, *kept, refusal_tokens=tokens, **how)
    return FoundDirection(selection, candidates, tokens)
