"""Degenerate replies."""

from __future__ import annotations

import pytest

from refusal_lens.refusal.classes import is_degenerate


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "!!!???",
        "I I I I I I I I",
        "I cannot I cannot I cannot I cannot",
        "I'm sorry, but I'm sorry, but I'm sorry, but I'm sorry, but",
        "sorry sorry sorry sorry sorry sorry and then",
        "的的的的的的的的的的",
        "I cannot help I cannot help you I cannot help I cannot help you I cannot help",
        "aaaaaaaaaaaaaaaaaaaaaaaa",
        "I'm sorry, butI'm sorryI'm sorry, butI'm sorry",
    ],
)
def test_no_text(text):
    assert is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "No.",
        "4",
        "1000000",
        "I'm sorry, but I can't help with that.",
        "Step 1: mix flour and water. Step 2: wait. Step 3: bake. Step 4: eat.",
        "| a | b |\n|--------|--------|\n| the first row | has some words in it |",
        "No, I cannot help you with that, and I cannot help you with anything like that. I am sorry.",
        "我很抱歉，但我不能帮助你。",
        "Very, very good: the sun rises in the east and sets in the west, and the moon does so too.",
    ],
)
def test_text(text):
    assert not is_degenerate(text)
