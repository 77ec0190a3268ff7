"""The map of a conversation: every token's residual stream along the direction, beside random directions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.conversation import Conversation
from ..data.files import check_text
from ..data.prompts import PromptsLike, as_prompts
from ..errors import PromptError, SettingError
from ..hooks.base import Intervention
from ..hooks.conditions import Conditions
from ..hooks.readers import EveryToken
from ..models.chat import Tokens, padded
from ..models.model import HookedChatModel
from ..models.texts import Scored, reply_tokens, token_texts
from ..progress import Progress, silent
from ..records.direction import Direction, DirectionLike, as_direction
from ..records.labels import REGIONS, index_of
from .map_records import VALUES, ConversationMap


def read(
    model: HookedChatModel,
    conversation: PromptsLike,
    direction: DirectionLike,
    suffix: str = "",
    *,
    reply: str | int | Mapping[str, str] = "",
    under: Conditions | None = None,
    n_random: int = 39,
    progress: Progress = silent,
) -> ConversationMap:
    """Projection and cosine of every token of a conversation on r̂ at every layer: its map.

    The conversation is read plain ("baseline"), with the suffix if there is one ("adversarial"), and, with the suffix,
    under each entry of ``under``. A token lies outside the range of ``n_random`` random directions by chance in
    2 / (n_random + 1) of cases: 5% for 39.

    Args:
        conversation: a request, or messages; where the last one is the assistant's, it is the reply.
        suffix: with its leading space.
        reply: text that stands after the prompt (teacher-forced), one for each condition by name, or a number: each
            condition's own greedy reply of at most so many tokens; "" for none.
        under: interventions by name, as ``hooks.named_conditions`` gives them.

    Raises:
        PromptError: no text, several conversations, a conversation that has its reply already, or one that is too long.
        LabelError: replies by name that lack a condition's.
        DirectionError: a direction of another model.

    Example:
        >>> seen = rl.direction.read(model, "How do I pick a lock?", found, under={"ablation": [rl.Ablate(found)]})
        >>> seen.sizes, seen.regions[0][-1]
        ({'condition': 2, 'layer': 6, 'token': 15}, 'template_post')
        >>> bool(seen.sel("ablation").projection.abs().max() < 1e-4)
        True
    """
    direction = as_direction(direction)
    model.check_direction(direction)
    if n_random < 1:
        raise SettingError(f"n_random is {n_random}: a map needs at least one random direction beside it")
    prompt, reply = _parts(conversation, reply)
    rows: dict[str, tuple[str, Sequence[Intervention]]] = {"baseline": ("", ())}
    if suffix:
        rows["adversarial"] = suffix, ()
    for name, interventions in (under or {}).items():
        rows.setdefault(name, (suffix, interventions))
    reader, found = EveryToken(direction, n_random=n_random), {}
    with progress("read the conversation", len(rows)) as advance:
        for name, (after, interventions) in rows.items():
            tokens, regions = placed(model, prompt, after, _reply(model, prompt, after, reply, name, interventions))
            grids = model.run(tokens, read=reader, under=interventions)[reader]
            found[name] = grids, token_texts(model, tokens)[0], regions
            advance(1)
    return joined(found, direction, n_random, prompt, suffix)


def placed(model: HookedChatModel, prompt: str, suffix: str, said: str = "") -> tuple[Tokens, tuple[str, ...]]:
    """A prompt and what follows it as a batch of one, with the region of each token."""
    (text,) = reply_tokens(model, [prompt], [said], suffix)
    if model.n_ctx and len(text.ids) > model.n_ctx:
        raise PromptError(
            f"the conversation has {len(text.ids)} tokens with its reply and {model.name} takes {model.n_ctx}: "
            "shorten it"
        )
    assert text.spans is not None
    tokens = padded([text.ids], [text.spans], model.chat.pad_id).to(model.device)
    return tokens, _regions(model, text, said)


def joined(
    rows: Mapping[str, tuple[Mapping[str, Tensor], tuple[str, ...], tuple[str, ...]]],
    direction: Direction,
    n_random: int,
    prompt: str,
    suffix: str,
) -> ConversationMap:
    """The map of what ``EveryToken`` read by condition, each with its tokens and their regions."""
    grids, texts, regions = zip(*rows.values(), strict=True)
    width = max(map(len, texts))

    def filled(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x[:, 0], (0, width - x.shape[-1]), value=torch.nan)

    values: Any = {name: torch.stack([filled(x[name]) for x in grids]) for name in VALUES}
    rest: Any = {"conditions": tuple(rows), "tokens": texts, "regions": regions, "prompt": prompt, "suffix": suffix}
    return ConversationMap(**values, **rest, direction=direction, n_random=n_random)


def _parts(conversation: PromptsLike, reply: Any) -> tuple[str, Any]:
    """The prompt, and the reply that the messages end with or that was given."""
    if isinstance(conversation, Sequence) and not isinstance(conversation, str) and conversation:
        messages: list[Any] = list(conversation)
        if isinstance(last := messages.pop(), Mapping) and last.get("role") == "assistant":
            if reply:
                raise PromptError(
                    "the conversation ends with the assistant's turn, which is its reply: leave that turn out to "
                    "generate a reply or to give another one"
                )
            conversation, reply = Conversation(messages), str(last.get("content") or "")
    prompts = as_prompts(conversation)
    if len(prompts) != 1:
        raise PromptError(f"a map is that of one conversation, and {len(prompts)} were given: read each by itself")
    return prompts[0], reply


def _reply(model: HookedChatModel, prompt: str, suffix: str, reply: Any, name: str, under: Any) -> str:
    """One condition's reply, as given or generated."""
    if isinstance(reply, int):
        with model.hooks(*under):
            return str(model.generate(prompt, reply, [suffix]))
    if isinstance(reply, Mapping):
        index_of(tuple(reply), name, "condition", "reply")
        reply = reply[name]
    check_text(reply, f"the reply {reply[:60]!a}")
    return reply


def _regions(model: HookedChatModel, text: Scored, reply: str) -> tuple[str, ...]:
    """Region of each token: those of the prompt, the parts inside them, then the reply's thought and answer."""
    assert text.spans is not None
    found = [name for name in REGIONS for _ in range(*getattr(text.spans, name))]
    for part in ("system", "earlier", "thought"):
        start, stop = getattr(text.spans, part)
        found[start:stop] = [part] * (stop - start)
    thought = reply[: len(reply) - len(model.chat.split(reply).answer)]
    n_reply = len(text.ids) - len(found)
    n_thought = min(len(model.tokenizer(thought, add_special_tokens=False)["input_ids"]), n_reply)
    return (*found, *["thought"] * n_thought, *["reply"] * (n_reply - n_thought))
