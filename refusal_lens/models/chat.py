"""From a request to tokens: the tokenizer's own chat template, and the spans of its regions.

Regions come from character offsets of the rendered template, never from counted tokens, so any template works
and there is no table of model families.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.conversation import Conversation
from ..data.files import check_text
from ..data.prompts import PromptsLike, as_prompts, as_suffixes
from ..errors import ModelError, PromptError
from ..records.labels import REGIONS, visible
from .template import Reply, Template, split_thought

_SENTINEL, _TURN = "\u2983instruction\u2984", "\u2983turn\u2984"  # rare characters: no template contains or strips them
# Ends of requests that tokenizers are known to merge with what the template puts after them ("?\n" is one token).
_ENDS = (*string.punctuation, "x", "7", "...", '."', ".)", ");", "?!", "’", "”", "…", "。", "？", "！", "é", "字")
_MARKS = "x<\"'&>"


@dataclass(frozen=True)
class Spans:
    """Token ranges [start, stop) of one prompt, counted from its first real token.

    The first five are its regions, one after another. The others lie inside of these: the system prompt and the earlier
    turns of a conversation in ``template_pre``, a thought that the template or the reply prefix closes in
    ``template_post``.
    """

    bos: tuple[int, int]
    template_pre: tuple[int, int]
    instruction: tuple[int, int]
    suffix: tuple[int, int]
    template_post: tuple[int, int]
    system: tuple[int, int] = (0, 0)
    earlier: tuple[int, int] = (0, 0)
    thought: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Tokens:
    """Left-padded token ids with their mask and spans.

    Attributes:
        ids: [batch, pos]; rows end at position -1, padding is on the left.
        mask: True at real tokens.
        spans: regions of each row, without padding.
        indices: each row's index in the original list of prompts.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    spans: tuple[Spans, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def lengths(self) -> Int[Tensor, "batch"]:
        """Real tokens of each row."""
        return self.mask.sum(-1)

    @property
    def n_post(self) -> int:
        """Number of post-instruction positions, the same for all rows (paper section 2.1)."""
        return self.spans[0].template_post[1] - self.spans[0].template_post[0]

    def last(self, x: Tensor, n: int) -> Tensor:
        """Activations [batch, pos, ...] at the last ``n`` positions of each prompt."""
        return x[:, -n:]

    def to(self, device: torch.device) -> Tokens:
        """The same on a device."""
        return Tokens(self.ids.to(device), self.mask.to(device), self.spans, self.indices)

    def take(self, rows: Sequence[int]) -> Tokens:
        """Some rows, with the padding they share removed."""
        index = torch.as_tensor(list(rows), device=self.ids.device)
        ids, mask = self.ids[index], self.mask[index]
        start = ids.shape[1] - int(mask.sum(-1).max())
        spans, indices = tuple(self.spans[i] for i in rows), tuple(self.indices[i] for i in rows)
        return Tokens(ids[:, start:], mask[:, start:], spans, indices)

    def region(self, name: str) -> Bool[Tensor, "batch pos"]:
        """Mask of one region ("bos", "template_pre", "instruction", "suffix", "template_post"), padding included
        in none."""
        offsets = self.mask.shape[1] - self.lengths.cpu()
        index = torch.arange(self.mask.shape[1])[None, :] - offsets[:, None]
        bounds = torch.tensor([getattr(span, name) for span in self.spans])
        return ((index >= bounds[:, :1]) & (index < bounds[:, 1:])).to(self.mask.device)


def padded(
    rows: Sequence[Sequence[int]], spans: Sequence[Spans], pad_id: int, indices: Sequence[int] | None = None
) -> Tokens:
    """Left-padded ``Tokens`` of rows of token ids, on the CPU."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = True
    return Tokens(ids, mask, tuple(spans), tuple(range(len(rows)) if indices is None else indices))


def no_regions(length: int) -> Spans:
    """Spans of text without a template, all of it instruction."""
    return Spans((0, 0), (0, 0), (0, length), (length, length), (length, length))


@dataclass(frozen=True)
class Encoded:
    """One prompt as token ids, character offsets and spans."""

    ids: tuple[int, ...]
    spans: Spans
    text: str
    offsets: tuple[tuple[int, int], ...]


class _Frame(NamedTuple):
    """What the template puts around a user turn, and the characters of earlier turns in ``before``."""

    before: str
    after: str
    system: tuple[int, int]
    earlier: tuple[int, int]


class ChatFormat:
    """The chat template of one tokenizer, with or without a system prompt.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        system: system prompt; None leaves it to the template (the paper uses none).
        template: chat_template, template_options, reply_prefix, date, thought, as in ``load_model``.

    Raises:
        ModelError: no chat template, no fast tokenizer, a template that drops the user's text or the system prompt or
            doubles the BOS token, or an option that it does not read.

    Example:
        >>> model.chat.n_post, model.chat.post_labels()[0]
        (5, '<|im_end|>')
    """

    def __init__(self, tokenizer: Any, system: str | None = None, **template: Any):
        self.template = Template(tokenizer, system=system, **template)
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{type(tokenizer).__name__} gives no character offsets; load the model's fast tokenizer")
        self.tokenizer, self.system = tokenizer, system
        # A conversation equals its transcript as text, so types are told apart.
        self._encode = lru_cache(maxsize=65536, typed=True)(self._encode_uncached)
        self._frame = lru_cache(maxsize=4096, typed=True)(self._frame_uncached)
        rendered = self.render(_SENTINEL)
        if rendered.count(_SENTINEL) != 1:
            raise ModelError(
                f"the chat template shows the user's text {rendered.count(_SENTINEL)} times instead of once; "
                "set a template that contains it once"
            )
        self.opened = self.template.opened
        try:
            self._plain = self._around(())
        except PromptError as error:
            raise ModelError(
                "the chat template drops the system prompt, which would do nothing: leave it out"
            ) from error
        self.n_post = 0  # until it is known, all that a prompt has
        try:
            spans = [self._encode(f"x{end}", "").spans for end in _ENDS]
        except PromptError as error:
            raise ModelError(
                f"the chat template does not put the user's text in as it is ({self.render(_MARKS)!r} for {_MARKS!r}): "
                "give a template without filters on it"
            ) from error
        counts = [stop - start for start, stop in (span.template_post for span in spans)]
        self._encode.cache_clear()
        self.n_post = min(counts)
        encoded, bos = self._encode("x", ""), tokenizer.bos_token_id
        if not self.n_post:
            raise ModelError("the chat template adds nothing after the user's text: no post-instruction position")
        if bos is not None and encoded.ids[:2] == (bos, bos):
            raise ModelError(
                f"the chat template begins with {tokenizer.bos_token!r} twice, which the model never saw in training; "
                "remove one from tokenizer.chat_template"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments other than the tokenizer, with defaults filled in: they make the same format of another one."""
        template = self.template
        return {
            "system": self.system,
            "chat_template": template.given or None,
            "template_options": template.options,
            "reply_prefix": template.reply_prefix,
            "date": template.date.isoformat() if template.uses_date else None,
            "thought": list(template.thought),
        }

    def render(self, content: str) -> str:
        """Render one user turn, or a ``Conversation``, up to where the model's reply begins."""
        return self.template.render(
            content.messages if isinstance(content, Conversation) else [{"role": "user", "content": content}]
        )

    def split(self, reply: str) -> Reply:
        """Split a reply into its thought and its answer.

        Example:
            >>> model.chat.split("<think>A question.</think>Four.").answer
            'Four.'
        """
        return split_thought(reply, self.template.markers, self.opened)

    def _frame_uncached(self, prompt: str) -> tuple[str, _Frame]:
        """The last user turn, and what the template puts around it."""
        if not isinstance(prompt, Conversation):
            return prompt, self._plain
        *earlier, last = prompt.messages
        return last["content"], self._around(earlier)

    def _around(self, earlier: Sequence[Mapping[str, str]]) -> _Frame:
        """What the template puts before and after a user turn, and where the turns before it stand in that.

        Each turn is replaced by a sentinel once: short ones may occur anywhere in the template's text.
        """
        *turns, last = self.template.with_system([*earlier, {"role": "user", "content": _SENTINEL}])
        rendered = self.template.render([*turns, last])
        if rendered.count(_SENTINEL) != 1:
            raise PromptError("the chat template drops or repeats the last turn of a conversation")
        before, after = rendered.split(_SENTINEL)
        places = []
        for i, turn in enumerate(turns):
            marked = self.template.render([*turns[:i], {**turn, "content": _TURN}, *turns[i + 1 :], last])
            marked = marked.partition(_SENTINEL)[0]
            start, stop = len(marked.partition(_TURN)[0]), len(before) - len(marked.rpartition(_TURN)[2])
            # Where the template looks into a turn, and frames it by what it finds, its place is not known.
            known = before.startswith(marked[:start]) and before.endswith(marked.rpartition(_TURN)[2]) and start <= stop
            places.append((start, stop) if known else (0, 0))
            shown = before[start:stop] if known else before
            # Templates drop the thoughts of earlier replies, so an answer is looked for.
            if _TURN not in marked or self.split(turn["content"]).answer.strip() not in shown:
                raise PromptError(
                    f"the chat template drops a turn of {turn['role']!r} ({turn['content'][:60]!r}): leave it out"
                )
        system = places.pop(0) if places and turns[0]["role"] == "system" else (0, 0)
        unknown = not places or (0, 0) in (places[0], places[-1])
        return _Frame(before, after, system, (0, 0) if unknown else (places[0][0], places[-1][1]))

    def encode(self, instruction: str, suffix: str = "") -> Encoded:
        """Give token ids and spans of ``instruction`` (and ``suffix``, which has its own leading space).

        Raises:
            PromptError: empty or broken text, text that the template changes, or a token that straddles the boundary
                between instruction and suffix.
        """
        return self._encode(instruction, suffix)

    def _encode_uncached(self, instruction: str, suffix: str) -> Encoded:
        check_text(instruction + suffix, f"the prompt {instruction[:60]!a}")
        text, frame = self._frame(instruction)
        before, after = frame.before, frame.after
        content = text + suffix
        if not content.strip():
            raise PromptError("an empty prompt has no instruction; remove it")
        earlier = instruction.messages[:-1] if isinstance(instruction, Conversation) else ()
        rendered = self.render(Conversation([*earlier, {"role": "user", "content": content}]))
        body = rendered[len(before) : len(rendered) - len(after)]
        fits = rendered.startswith(before) and rendered.endswith(after)
        if not fits or body not in (content, content.strip(), content.lstrip(), content.rstrip()):
            raise PromptError(f"the chat template changes the user's text {content[:60]!r}; its spans are unknown")
        lead = len(content) - len(content.lstrip()) if body[:1] != content[:1] else 0
        start = len(before)
        edge = min(start + max(len(text) - lead, 0), start + len(body))
        stop = start + len(body)
        # The template's text already has every special token; adding them again would double the BOS.
        encoding = self.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        counts = dict.fromkeys(REGIONS, 0)
        for i, (first, last) in enumerate(offsets):
            # A token belongs to the region of its first character, but what reaches into the request is the request's.
            if i == 0 and ids[0] == self.tokenizer.bos_token_id:
                region = "bos"
            elif first < start and last <= start:
                region = "template_pre"
            elif first < edge:
                region = "instruction"
                if suffix and last > edge:
                    raise PromptError(
                        f"the tokenizer merges the instruction's end and the suffix's start into one token "
                        f"({rendered[first:last]!r}): begin the suffix with a space or another character"
                    )
            elif first < stop:
                region = "suffix"
            else:
                region = "template_post"
            counts[region] += 1
        # Where other prompts' ends merge with the template, the positions that all prompts share are the last ones.
        surplus = counts["template_post"] - self.n_post if self.n_post else 0
        if surplus < 0:
            raise PromptError(
                f"the tokenizer merges the end of the prompt {content[-40:]!r} with the template, which leaves "
                f"{counts['template_post']} of {self.n_post} post-instruction tokens: change its ending"
            )
        counts["template_post"] -= surplus
        counts["suffix" if suffix else "instruction"] += surplus
        ends = list(accumulate(counts.values()))
        spans = Spans(*zip([0, *ends], ends, strict=False), **self._inside(frame, rendered, offsets))
        return Encoded(tuple(ids), spans, rendered, tuple(map(tuple, offsets)))

    def _inside(self, frame: _Frame, rendered: str, offsets: Any) -> dict[str, tuple[int, int]]:
        """Token ranges of the system prompt, earlier turns, and a closed thought."""

        def tokens(first: int, last: int) -> tuple[int, int]:
            inside = [i for i, (a, b) in enumerate(offsets) if b > first and a < last]
            return (inside[0], inside[-1] + 1) if inside and first < last else (0, 0)

        found, after = {"system": tokens(*frame.system), "earlier": tokens(*frame.earlier)}, frame.after
        for begin, end in self.template.markers:
            if (at := after.rfind(begin)) >= 0 and (close := after.find(end, at)) >= 0:
                base = len(rendered) - len(after)
                found["thought"] = tokens(base + at, base + close + len(end))
                break
        return found

    def tokenize(self, instructions: PromptsLike, suffixes: Sequence[str] | str | None = None) -> Tokens:
        """Tokenize prompts into left-padded ``Tokens``.

        Args:
            instructions: the requests, in any form that ``data.prompts.as_prompts`` takes (a string is one prompt).
            suffixes: one per request (with its leading space), one string for all, or None.

        Raises:
            PromptError: no prompt, different numbers of suffixes and prompts, or a prompt that does not fit.
        """
        instructions = as_prompts(instructions)
        if not len(instructions):
            raise PromptError("no prompts were given")
        encoded = [
            self.encode(text, suffix)
            for text, suffix in zip(instructions, as_suffixes(suffixes, len(instructions)), strict=True)
        ]
        return padded([e.ids for e in encoded], [e.spans for e in encoded], self.pad_id)

    @property
    def pad_id(self) -> int:
        """Padding id; the mask hides it, so any id will do where there is no pad token."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(candidate) for candidate in known if candidate is not None), 0)

    def post_labels(self) -> tuple[str, ...]:
        """Text of the post-instruction tokens, whitespace made visible."""
        encoded = self.encode("x")
        start, stop = encoded.spans.template_post
        return tuple(visible(encoded.text[a:b]) for a, b in encoded.offsets[start:stop])
