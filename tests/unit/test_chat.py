"""From prompts of every form to tokens and spans."""

from __future__ import annotations

import pytest
import torch

from refusal_lens.data.conversation import Conversation
from refusal_lens.errors import PromptError
from refusal_lens.models.chat import ChatFormat
from tests.tiny import tiny_tokenizer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "How are you?"},
]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer())


def test_a_string_is_one_prompt(chat):
    one, many = chat.tokenize("Hello there"), chat.tokenize(["Hello there"])
    assert torch.equal(one.ids, many.ids) and len(one) == 1


def test_a_conversation_ends_with_its_instruction(chat):
    tokens = chat.tokenize(TURNS, " please")
    (ids, span) = tokens.ids[0].tolist(), tokens.spans[0]
    decode = chat.tokenizer.decode
    assert decode(ids[slice(*span.instruction)]) == "How are you?" and decode(ids[slice(*span.suffix)]) == " please"
    before = decode(ids[slice(*span.template_pre)])
    assert before.index("Be brief.") < before.index("Hi") < before.index("Hello.") and "How" not in before
    assert decode(ids) == chat.tokenizer.apply_chat_template(
        [*TURNS[:3], {"role": "user", "content": "How are you? please"}], tokenize=False, add_generation_prompt=True
    )


def test_a_conversation_is_not_its_transcript(chat):
    turns = Conversation(TURNS)
    assert chat.encode(turns).ids != chat.encode(str(turns)).ids
    both = chat.tokenize([turns, "Hello"])
    assert len(both) == 2 and both.spans[0].template_post[0] > both.spans[1].template_post[0]


def test_suffixes_of_another_number_are_refused(chat):
    with pytest.raises(PromptError, match="2 suffixes for 1 prompts"):
        chat.tokenize("Hello", [" a", " b"])
    assert torch.equal(chat.tokenize(["Hello", "Bye"], " x").ids, chat.tokenize(["Hello", "Bye"], [" x", " x"]).ids)
