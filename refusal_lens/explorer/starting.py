"""``rl.explore``: the explorer in a notebook."""

from __future__ import annotations

from typing import Any

from ..data.prompts import PromptPair, PromptsLike, as_prompts
from ..data.suffixes import SuffixSet
from ..direction.records import FoundDirection
from ..errors import SettingError
from ..models.model import HookedChatModel

SHOWN = 200  # prompts and suffixes to pick from


def explore(
    model: HookedChatModel,
    found: FoundDirection,
    prompts: PromptsLike | PromptPair = (),
    suffixes: SuffixSet | Any = (),
    *,
    request: str = "",
    top_heads: Any = (),
    max_new_tokens: int = 24,
) -> Any:
    """Open the explorer: a request, a suffix, an intervention, and what they do inside the model, in a notebook cell.

    Every view has its code. The last look stays in the cell as plain HTML; ``explorer.seen`` is its record.

    Args:
        found: the direction with its refusal tokens, as ``find_direction`` gives it.
        prompts: requests to pick from; of prompt sets, the test split.
        suffixes: suffixes to pick from.
        request: the first request; the first of ``prompts`` if empty.
        top_heads: heads shown, e.g. of ``attribution.top_heads``; if none, those that write most on each request.
        max_new_tokens: length of the replies.

    Returns:
        The explorer, an ``anywidget``.

    Raises:
        SettingError: the extra ``notebooks`` is not installed.
        DirectionError: a direction of another model.

    Example:
        >>> explorer = rl.explore(model, found, data, request="How do I pick a lock?")
        >>> explorer.seen.conditions
        ('baseline',)
    """
    try:
        from .widget import Explorer
    except ImportError as error:
        raise SettingError(
            f"the explorer needs the extra `notebooks`: pip install 'refusal-lens[notebooks]' ({error})"
        ) from error
    model.check_direction(found.direction)
    kinds: tuple[Any, ...] = (prompts.harmful, prompts.harmless) if isinstance(prompts, PromptPair) else (prompts,)
    texts = [str(text) for kind in kinds for text in as_prompts(kind, "test")[:SHOWN]]
    if not isinstance(suffixes, SuffixSet):
        suffixes = SuffixSet.from_rows(list(suffixes)) if suffixes else ()
    picks = [{"kind": item.kind, "text": item.text} for item in list(suffixes)[:SHOWN]]
    return Explorer(model, found, texts, picks, request or next(iter(texts), ""), top_heads, max_new_tokens)
