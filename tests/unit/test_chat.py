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


@pytest.mark.parametrize(
    ("turns", "system", "earlier"),
    [
        ([("system", "user"), ("user", "us"), ("assistant", "er")], "user", "us<|im_end|>\n<|im_start|>assistant\ner"),
        ([("user", "Hi"), ("assistant", "<think>a")], "", "Hi<|im_end|>\n<|im_start|>assistant\n<think>a"),
        ([("user", "im"), ("assistant", "")], "", "im<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_short_turns_have_their_own_place(chat, turns, system, earlier):
    talk = [*({"role": role, "content": text} for role, text in turns), {"role": "user", "content": "And?"}]
    tokens = chat.tokenize(Conversation(talk))
    (ids, span), decode = (tokens.ids[0].tolist(), tokens.spans[0]), chat.tokenizer.decode
    assert decode(ids[slice(*span.earlier)]) == earlier and decode(ids[slice(*span.system)]) == system
    if system:
        alone = ChatFormat(tiny_tokenizer(), system).tokenize("user")
        ids, span = alone.ids[0].tolist(), alone.spans[0]
        assert decode(ids[: span.system[1]]).endswith("system\nuser") and span.system[1] - span.system[0] == 4
