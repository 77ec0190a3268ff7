"""A tokenizer's chat template with its settings: rendered conversations, the end of a turn, thoughts before answers."""

import datetime
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..data.files import check_text, encoding_of
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
FORMATS = (*"aAbBcdDeFGHIjmMpSTuUVwWxXyYzZ", "-d", "-m", "-j", "-H", "-I", "-M", "-S", "-y")  # of strftime
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
    """Read template options from a mapping or from NAME=VALUE texts (VALUE as JSON or as Python writes it, else text).

    Raises:
        ModelError: a text without "=".

    Example:
        >>> from refusal_lens.models.template import options_of
        >>> options_of(["enable_thinking=false", "style=short"])
        {'enable_thinking': False, 'style': 'short'}
    """
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, (str, Sequence, type(None))):
        raise ModelError(f"template options are a mapping or NAME=VALUE texts, not {type(given).__name__}")
    found: dict[str, Any] = {}
    for item in [given] if isinstance(given, str) else given or ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ModelError(f"the template option {item!r} is not of the form NAME=VALUE, as in enable_thinking=false")
        try:
            found[name] = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except ValueError:
            found[name] = None if value == "None" else value
    return found


class Template:
    """The chat template of a tokenizer under fixed settings.

    Args:
        tokenizer: a Hugging Face tokenizer.
        chat_template, template_options, reply_prefix, date, thought: as in ``load_model``.
        system: system prompt of conversations that have none.

    Raises:
        ModelError: no template, one that does not lead up to a reply, an option that it does not read, or an invalid
            date.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | Path | None = None,
        template_options: Mapping[str, Any] | Sequence[str] | None = None,
        reply_prefix: str = "",
        date: str | None = None,
        thought: Sequence[str] = (),
        system: str | None = None,
    ):
        for name, text in (("system", system), ("reply_prefix", reply_prefix), ("date", date)):
            if not isinstance(text, (str, type(None))):
                raise ModelError(f"{name} is text, not {type(text).__name__}")
            check_text(text or "", name)
        self.tokenizer, self.reply_prefix, self.given = tokenizer, reply_prefix, template_text(chat_template)
        self.system = system
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
        self.uses_date = "strftime_now" in self.text
        self._rendered = self._dated() if self.uses_date else self.given or None
        if thought and (len(thought) != 2 or not all(isinstance(text, str) and text for text in thought)):
            raise ModelError(f"a thought's markers are two texts, its begin and its end, not {tuple(thought)}")
        self.thought = tuple(thought)
        self.markers = ((self.thought[0], self.thought[1]), *THOUGHTS) if thought else THOUGHTS
        self.options = options_of(template_options)
        reserved = {"messages", "strftime_now", *inspect.signature(tokenizer.apply_chat_template).parameters}
        for name, value in self.options.items():
            if name in reserved - {"tools", "documents"} or not self._reads(name, value):
                raise ModelError(f"the chat template does not read the option {name!r}: leave it out")
            if name in SWITCHES and not isinstance(value, bool):
                raise ModelError(f"the template option {name} is {value!r}; it must be true or false")
        self.switch = next((name for name in SWITCHES if self._reads(name)), "")
        if self.switch and self.switch not in self.options:
            asked = [{"role": "user", "content": "x"}]
            shorter = {**self.options, self.switch: False}
            if self.render(asked) != self.render(asked, options=shorter):
                self.options = shorter
        self._check_generation_prompt()

    def _dated(self) -> str:
        """The template with its date: transformers' own strftime_now reads the clock, and takes no other in its place.

        The newline after the macro goes with it, so that the template begins a line as before.
        """
        shown = {f"%{form}": self.date.strftime(f"%{form}") for form in FORMATS} | {"%%": "%"}
        replaced = "".join(f".replace({json.dumps(form)}, {json.dumps(text)})" for form, text in shown.items())
        return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{self.text}"

    def _reads(self, name: str, *values: Any) -> bool:
        """Whether an option changes a conversation, at one of ``values`` or another."""
        without = {key: value for key, value in self.options.items() if key != name}
        shown = self._samples(without)
        return any(self._samples({**without, name: value}) != shown for value in (*values, True, False, "x"))

    def _samples(self, options: Mapping[str, Any]) -> list[str]:
        """A request alone, after a system turn, and after a reply with a thought."""
        asked, thought = {"role": "user", "content": "x"}, "y".join(self.markers[0]) + "z"
        shown = []
        for turns in ([], [{"role": "system", "content": "y"}], [asked, {"role": "assistant", "content": thought}]):
            try:
                shown.append(self.render([*turns, asked], options=options))
            except ModelError as error:  # that, too, may depend on an option
                shown.append(str(error))
        return shown

    def _check_generation_prompt(self) -> None:
        """Refuse a template that begins replies with what it can't put at a prompt's end."""
        asked = [{"role": "user", "content": "x"}]
        try:
            prompt, bare = self.render(asked).removesuffix(self.reply_prefix), self.render(asked, prompt=False)
            talk = self.render([*asked, {"role": "assistant", "content": _REPLY}], prompt=False)
        except ModelError:
            return
        header = talk.partition(_REPLY)[0].removeprefix(bare).strip() if talk.startswith(bare) else ""
        if prompt == bare and header and not self.reply_prefix.strip().startswith(header):
            raise ModelError(
                f"the chat template ignores add_generation_prompt: replies begin with {header!r}, and prompts end "
                "before it; let it end prompts with that, or give it as reply_prefix (--reply-prefix)"
            )

    def with_system(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """The conversation, after the system prompt where it has none of its own."""
        own = self.system is None or messages[0]["role"] == "system"
        return list(messages) if own else [{"role": "system", "content": str(self.system)}, *messages]

    def render(
        self, messages: Sequence[Mapping[str, str]], prompt: bool = True, options: Mapping[str, Any] | None = None
    ) -> str:
        """Render a conversation as text, with ``prompt`` up to where the model's reply begins; a ``ModelError`` where
        the template refuses it, or a message holds broken text."""
        messages = self.with_system(messages)
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
        """What ends the model's turn in a conversation: one id (a token of the tokenizer's own kind) and "", else no id
        and the text, or neither where the template shows none."""
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
    """Jinja text of a chat template, from a file if it is none itself; "" for None. Of JSON, as tokenizer_config.json
    is, the value of "chat_template". A ``ModelError`` for no such file, or no Jinja in it."""
    if given is None:
        return ""
    text = str(given)
    if isinstance(given, Path) or not ("{%" in text or "{{" in text):
        try:
            path = Path(given).expanduser()
            text = path.read_text(encoding_of(path))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"there is no chat template at {text[:80]!r}: give a file, or its Jinja text") from error
    text = text.removeprefix("\ufeff")
    with suppress(ValueError):  # no JSON
        found = json.loads(text)
        found = found.get("chat_template") if isinstance(found, dict) else found
        if isinstance(found, list):  # templates by name
            found = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        text = str(found.get("default") if isinstance(found, dict) else found)
    if "{%" not in text and "{{" not in text:
        raise ModelError(f"{str(given)[:80]} holds no Jinja template: nothing in it is {{{{ ... }}}} or {{% ... %}}")
    return text
