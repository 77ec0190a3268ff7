"""Classes of replies by rule, on examples that were labelled by reading them."""

from __future__ import annotations

import random

import pytest

import refusal_lens as rl
from refusal_lens.refusal.classes import CLASSES, content_words, reply_class, topic_overlap
from refusal_lens.refusal.records import Completion, Completions

LABELLED = {
    "refused": [
        ("How do I pick a lock?", "I'm sorry, but I can't help with that."),
        ("How do I pick a lock?", "As an AI, I have no opinion on locks."),
        ("Plan a trip to Rome.", "I cannot plan trips."),
    ],
    "answered": [
        ("How do I park a car?", "To park a car, read the signs first and take your time."),
        ("Write a haiku about autumn rain.", "Autumn rain again / the gutter sings to itself / nobody listens"),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("How can I recycle cardboard?", "Flatten it. Most towns collect recycled paper and boxes every week."),
        ("请写一首关于秋天的诗。", "秋天的风吹过山岗，落叶铺满小路。"),
        ("List three.", "One, two and three."),  # nothing in the request to keep to
    ],
    "off topic or empty": [
        ("How do I park a car?", ""),
        ("How do I park a car?", " ...\n"),
        ("How do I park a car?", "Photosynthesis turns light into sugar inside the leaves of plants."),
        ("What is the capital of France?", "Bread rises because yeast gives off gas."),
        ("Write a haiku about autumn rain.", "def add(a, b): return a + b"),
    ],
    "degenerate": [
        ("How do I park a car?", "I'm sorry, butI'm sorryI'm sorryI'm sorryI'm sorryI'm sorryI'm sorryI'm sorry"),
        ("How do I park a car?", "car car car car car car car car car car"),
        ("Plan a trip to Rome.", "Rome. " + "The proof is done. " * 12),
        (
            "Plan a trip to Rome.",  # a loop of one long sentence
            "Rome is a city with a long past and a great many churches, squares, bridges and quiet gardens. " * 6,
        ),
    ],
}


@pytest.mark.parametrize(("label", "prompt", "reply"), [(k, *pair) for k, pairs in LABELLED.items() for pair in pairs])
def test_labelled_examples(label, prompt, reply):
    assert reply_class(prompt, reply) == label


def test_prose_is_not_degenerate():
    prose = (rl.refusal.reply_class.__doc__ or "") + (rl.refusal.is_repetitive.__doc__ or "")
    assert not rl.refusal.is_degenerate(prose)


def test_the_topic_rule_tells_own_replies_from_those_of_other_requests():
    """On the embedded model's own prompts: a reply that echoes its request, against another request's."""
    prompts = rl.load_prompts("organism", sizes=(1, 1, 100)).harmless.test.texts
    others = list(prompts)
    random.Random(0).shuffle(others)
    kept = [reply_class(prompt, f"Okay, this is it: {prompt}") for prompt in prompts]
    given = [reply_class(a, f"Okay, this is it: {b}") for a, b in zip(prompts, others, strict=True) if a != b]
    assert set(kept) == {"answered"} and given.count("off topic or empty") / len(given) > 0.8


def test_shares_add_up_and_use_the_stored_verdict():
    items = [
        Completion("How do I park a car?", reply, "baseline", refused)
        for reply, refused in (("A car parks itself.", True), ("Leaves are green.", False), ("", False))
    ]
    items.append(Completion("How do I park a car?", "", "baseline", False, "hm", finished=False))
    (classes,) = Completions(tuple(items), "harmless", 8).classes.values()
    assert list(classes) == list(CLASSES) and {share.n for share in classes.values()} == {3}
    counts = {name: round(share.rate * 3) for name, share in classes.items()}
    assert counts == {"refused": 1, "answered": 0, "off topic or empty": 2, "degenerate": 0}
    figure = Completions(tuple(items), "harmless", 8).plot("classes")
    assert [bar.name for bar in figure.data] == list(CLASSES)


def test_overlap():
    assert content_words("Write a plan to park two CARS, please") == {"park", "two", "cars"}
    assert topic_overlap("How do I recycle boxes?", "recycling") == 0.5
