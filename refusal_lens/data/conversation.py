"""Conversations, accepted wherever a prompt is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PromptError
from ..records.base import stored_as_messages


class Conversation(str):
    """The turns of a conversation up to a user's request, accepted wherever a prompt is.

    As text it is its transcript. Its last user turn is the instruction; what comes before belongs to the template.

    Args:
        messages: mappings with role and content (text, or a list of text parts), the last one the user's.

    Raises:
        PromptError: no messages, a message without role or content, or a last turn that is not the user's.

    Example:
        >>> from refusal_lens.data import Conversation
        >>> Conversation([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
        ...               {"role": "user", "content": "How are you?"}])
        'user: Hello\\nassistant: Hi\\nuser: How are you?'
    """

    messages: tuple[Mapping[str, str], ...]

    def __new__(cls, messages: Sequence[Mapping[str, str]]) -> Conversation:
        turns = tuple(
            {**turn, "content": _joined(turn.get("content"))} for turn in messages if isinstance(turn, Mapping)
        )
        texts = [turn.get(part) for turn in turns for part in ("role", "content")]
        if not turns or len(turns) < len(messages) or not all(isinstance(text, str) for text in texts):
            raise PromptError(
                "a conversation is a list of messages, each with a role and a content of text or text parts"
            )
        if turns[-1]["role"] != "user":
            raise PromptError(f"a conversation must end with the user's turn, not with one of {turns[-1]['role']!r}")
        made = super().__new__(cls, "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))
        made.messages = turns
        return made

    def __getnewargs__(self) -> tuple[Any]:
        return (self.messages,)


def _joined(content: Any) -> Any:
    """Text parts as one text, as templates join them; anything else as it is."""
    parts = content if isinstance(content, (list, tuple)) else [content]
    texts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return "".join(texts) if texts and all(isinstance(text, str) for text in texts) else content


stored_as_messages(Conversation)
