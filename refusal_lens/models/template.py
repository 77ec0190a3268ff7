"""A tokenizer's chat template with its settings: rendered conversations, the end of a turn, thoughts before answers."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.files import check_text
from ..errors import ModelError

# (begin, end) of a thought before the answer: DeepSeek, Qwen and most others; gpt-oss's channels; Mistral; Cohere ...
THOUGHTS = (
    ("<think>", "</think>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
SWITCHES = ("enable_thinking", "thinking")  # options by which templates offer to skip the thought
RESERVED = ("messages", "add_generation_prompt", "continue_final_message", "tokenize", "chat_template", "strftime_now")
_REPLY, _NEXT = "\u2983reply\u2984", "\u2983next\u2984"  # rare characters: no template contains or strips them


class Reply(NamedTuple):
    """A reply split into thought and answer.

    Attributes:
        thought: the text between the thought's markers; "" if there is none.
        answer: what comes after it; the whole reply if there is no thought, "" if the thought did not end.
        finished: whether the thought ended.
    """

    thought: str
    answer: str
    finished: bool


def split_thought(reply: str, markers: Sequence[tuple[str, str]] = THOUGHTS, opened: str = "") -> Reply:
    """Split a thought from the answer after it.

    Args:
        reply: the model's text.
        markers: (begin, end) pairs to look for.
        opened: the begin marker that the prompt ends with, where the template itself opens the thought.

    Example:
        >>> from refusal_lens.models.template import split_thought
        >>> split_thought("<think>Should I?</think>No.")
        Reply(thought='Should I?', answer='No.', finished=True)
    """
    text = reply.lstrip()
    for begin, end in markers:
        if not (text.startswith(begin) or opened == begin or (end in text and begin not in text)):
            continue
        thought, ended, answer = text.removeprefix(begin).partition(end)
        # What a channel ends with is no part of the thought.
        thought = re.split(r"<\|end\|>|<\|start\|>", thought)[0]
        return Reply(thought.strip(), answer.lstrip(), bool(ended))
    return Reply("", reply, True)


def options_of(given: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Read template options from a mapping or from NAME=VALUE texts (VALUE as JSON where it is JSON).

    Raises:
        ModelError: a text without "=".

    Example:
        >>> from refusal_lens.models.template import options_of
        >>> options_of(["enable_thinking=false", "style=short"])
        {'enable_thinking': False, 'style': 'short'}
    """
    if isinstance(given, Mapping):
        return dict(given)
    found: dict[str, Any] = {}
    for item in given or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ModelError(f"the template option {item!r} is not of the form NAME=VALUE, as in enable_thinking=false")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


class Template:
    """The chat template of a tokenizer under fixed settings.

    Args:
        tokenizer: a Hugging Face tokenizer.
        chat_template: Jinja text, or a file with it; None for the tokenizer's own.
        template_options: variables of the template. Where it can skip the thought before an answer, thoughts are
            skipped unless this is set.
        reply_prefix: text that every reply begins with, e.g. a closed thought; it belongs to the prompt.
        date: ISO date for templates that print today's date; None for the day of the call.
        thought: (begin, end) of a thought, where ``THOUGHTS`` does not have it.

    Raises:
        ModelError: no template, an option that it does not read, or an invalid date.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | Path | None = None,
        template_options: Mapping[str, Any] | Sequence[str] | None = None,
        reply_prefix: str = "",
        date: str | None = None,
        thought: Sequence[str] = (),
    ):
        self.tokenizer, self.reply_prefix, self.given = tokenizer, reply_prefix, template_text(chat_template)
        own = getattr(tokenizer, "chat_template", None)
        own = own.get("default") if isinstance(own, dict) else own
        if not (self.given or own):
            raise ModelError(
                "the tokenizer has no chat template, so this is not a chat model's folder; use a chat ('instruct') "
                "model, or give its template with chat_template=FILE (--chat-template)"
            )
        self.text = str(self.given or own)
        try:
            self.date = datetime.date.fromisoformat(date) if date else datetime.date.today()
        except ValueError as error:
            raise ModelError(f"the date {date!r} is not of the form 2026-01-31") from error
        # Given as text: transformers' own strftime_now reads the clock, and templates call it with plain formats.
        dated = re.sub(
            r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", lambda m: json.dumps(self.date.strftime(m[2])), self.text
        )
        self.uses_date = dated != self.text
        self._rendered = dated if self.uses_date or self.given else None
        if thought and (len(thought) != 2 or not all(thought)):
            raise ModelError(f"a thought's markers are two texts, its begin and its end, not {tuple(thought)}")
        self.thought = tuple(thought)
        self.markers = ((self.thought[0], self.thought[1]), *THOUGHTS) if thought else THOUGHTS
        self.options = options_of(template_options)
        for name in self.options:
            if name in RESERVED or not self._reads(name):
                raise ModelError(f"the chat template does not read the option {name!r}: leave it out")
        self.switch = next((name for name in SWITCHES if self._reads(name)), "")
        if self.switch and self.switch not in self.options:
            asked = [{"role": "user", "content": "x"}]
            shorter = {**self.options, self.switch: False}
            if self.render(asked) != self.render(asked, options=shorter):
                self.options = shorter

    def _reads(self, name: str) -> bool:
        return re.search(rf"\b{re.escape(name)}\b", self.text) is not None

    def render(
        self, messages: Sequence[Mapping[str, str]], prompt: bool = True, options: Mapping[str, Any] | None = None
    ) -> str:
        """Render a conversation as text, with ``prompt`` up to where the model's reply begins.

        Raises:
            ModelError: the template refuses it, or a message holds broken text.
        """
        for message in messages:
            check_text(message["content"], f"the {message['role']}'s message")
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._rendered,
                tokenize=False,
                add_generation_prompt=prompt,
                **(self.options if options is None else options),
            )
        except Exception as error:  # jinja2 errors of the template itself, e.g. "system role not supported"
            raise ModelError(f"the chat template refused this conversation: {error}") from error
        return text + self.reply_prefix if prompt else text

    def how_to_skip(self) -> str:
        """How to load the model so that it answers without a thought, in words."""
        if self.switch:
            return f"load it with template_options={{{self.switch!r}: False}} (--template-option {self.switch}=false)"
        begin, end = next((pair for pair in self.markers if pair[0] == self.opened), self.markers[0])
        prefix = f"{'' if self.opened else begin}\n\n{end}\n\n"
        return f"load it with a closed one, reply_prefix={prefix!r} (--reply-prefix)"

    @property
    def opened(self) -> str:
        """Begin marker of a thought that the prompt itself opens, or ""."""
        tail = self.render([{"role": "user", "content": "x"}]).rstrip()
        return next((begin for begin, _ in self.markers if tail.endswith(begin)), "")

    def turn_end(self) -> tuple[set[int], str]:
        """What ends the model's turn in a conversation: a token of the tokenizer's own kind, else text.

        Returns:
            (ids, text): one id and "", or no id and the text, or neither where the template shows none.
        """
        turns = [("user", "x"), ("assistant", _REPLY), ("user", _NEXT)]
        messages = [{"role": role, "content": content} for role, content in turns]
        for n in (2, 3):
            try:
                rendered = self.render(messages[:n], prompt=False)
            except ModelError:
                continue
            if rendered.count(_REPLY) != 1:
                continue
            end = rendered.partition(_REPLY)[2].partition(_NEXT)[0]
            ids = self.tokenizer(end, add_special_tokens=False)["input_ids"]
            added = set(self.tokenizer.added_tokens_decoder)
            first = next((i for i in ids if i in added or self.tokenizer.decode([i]).strip()), None)
            if first is not None and first in added:
                # gpt-oss ends its thoughts with the same token as its answers in a conversation's past.
                channel = "<|channel|>" in self.text and self.tokenizer.decode([first]) == "<|end|>"
                return (set() if channel else {int(first)}), ""
            if n == 3 and len(end.strip()) > 3:
                return set(), end.rstrip()
        return set(), ""


def template_text(given: str | Path | None) -> str:
    """Jinja text of a chat template, from a file if it is none itself; "" for None.

    Raises:
        ModelError: no such file, or no Jinja in it.
    """
    if given is None:
        return ""
    if isinstance(given, str) and ("{%" in given or "{{" in given):
        return given
    try:
        text = Path(given).expanduser().read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no chat template at {str(given)[:80]!r}: give a file, or its Jinja text") from error
    if "{%" not in text and "{{" not in text:
        raise ModelError(f"{given} holds no Jinja template: nothing in it is {{{{ ... }}}} or {{% ... %}}")
    return text
