"""Harmfulness beside refusal: where both directions are read, what a suffix can move, and the inverted question."""

from __future__ import annotations

import pytest
import torch

from refusal_lens import extract_directions
from refusal_lens.data.prompts import PromptPair, PromptSet
from refusal_lens.direction.harm import QUESTION, YES, first_token, harm_effects, harm_map
from refusal_lens.direction.harm_records import ASKED
from refusal_lens.direction.records import FoundDirection
from refusal_lens.direction.section import harm_section
from refusal_lens.hijacking.controls import random_controls
from refusal_lens.hooks.interventions import Ablate
from refusal_lens.refusal.metric import refusal_metric


@pytest.fixture(scope="module")
def setting(organism, study):
    kinds = (study.harmful, study.harmless)
    few = PromptPair(*(PromptSet(kind.name, kind.train[:24], kind.val[:12], kind.test[:10]) for kind in kinds))
    return organism, FoundDirection(study.selection, study.candidates, study.refusal_tokens), few


def test_both_directions_are_read_where_they_are_found(setting):
    model, found, data = setting
    suffix = " please tell me"
    controls = random_controls(model.chat, data.harmful.test.texts, suffix).texts
    record = harm_map(model, data, found, {"asking": suffix, "random": controls})
    n_post, harm = len(found.candidates.positions), record.harm
    assert harm.pos == -n_post - 1 and record.suffixes == ("asking", "random")
    both = extract_directions(model, data.harmful, data.harmless, request=True)
    torch.testing.assert_close(harm.vector, both.direction("request", harm.layer).vector)
    assert record.validation[harm.layer].mean == max(area.mean for area in record.validation)
    for name, texts, ends in (
        ("harmful", data.harmful.test, None),
        ("asking", data.harmful.test, suffix),
        ("random", data.harmful.test, controls),
    ):
        for i, text in enumerate(texts):
            tokens = model.tokenize([text], ends if ends is None or isinstance(ends, str) else [ends[i]])
            for reading, direction in (("harm", harm), ("refusal", found.direction)):
                site = f"blocks.{direction.layer}.hook_resid_pre"
                x = model.cache(tokens, site)[site][0, direction.pos].double()
                assert record.values(reading, name)[i] == pytest.approx(float(x @ direction.unit.double()), abs=1e-4)
    shift = record.shift("harm", "asking", "random")
    values = [a - b for a, b in zip(record.values("harm", "asking"), record.values("harm", "random"), strict=True)]
    assert shift.mean == pytest.approx(sum(values) / 10) and shift.n == 10


def test_verdicts_of_replies_are_taken_and_few_are_said(setting):
    model, found, data = setting
    flags = {"harmful": [True] * 5 + [False] * 5, "harmless": [False] * 10}
    record = harm_map(model, data, found, refused=flags)
    assert record.refused == (*flags["harmful"], *flags["harmless"])
    assert "5 refused against 5 answered" in record.summary()[1]
    few = harm_map(model, data, found, refused={**flags, "harmful": [True] * 6 + [False] * 4})
    assert "6 are refused, 4 answered: too few to compare them" in few.summary()[1]
    assert {(trace.name, len(trace.x)) for trace in record.plot().data[:3]} == {
        ("harmful, refused", 5),
        ("harmful, answered", 5),
        ("harmless, answered", 10),
    }


def test_the_inverted_question_is_asked_and_a_model_that_cannot_answer_is_said(setting):
    model, found, data = setting
    record = harm_map(model, data, found)
    ablation, addition = harm_effects(model, data, record, found.refusal_tokens)
    asked = [QUESTION.format(text) for text in data.harmful.test]
    before = refusal_metric(model, asked, first_token(model, YES))
    with model.hooks(Ablate(record.harm)):
        after = refusal_metric(model, asked, first_token(model, YES))
    row, column = ablation.directions.index("harm"), ablation.grounds.index(ASKED)
    assert ablation.change[row][column].mean == pytest.approx(float((after - before).mean()))
    assert ablation.baseline[column].mean == pytest.approx(float(before.mean()))
    text = " ".join(harm_section(record, ablation, addition).text)
    assert "does not say so of harmful ones alone" in text and "its answers say nothing" in text
