"""CE loss against Hugging Face's own, token by token; masking; AUROC against its definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_lens import Add
from refusal_lens.behaviour.cross_entropy import losses
from refusal_lens.behaviour.proxy import refusal_proxy
from refusal_lens.behaviour.records import Losses
from refusal_lens.errors import ModelError, PromptError
from refusal_lens.hooks.conditions import named_conditions
from refusal_lens.models.texts import completion_tokens, own_completions, text_tokens
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.tokens import find_refusal_tokens
from refusal_lens.stats import auroc
from tests.tiny import tiny_hf

from .cases import direction_of, model_of

TEXTS = ["The quick brown fox jumps over the lazy dog.", "A", "Rivers run to the sea, and the sea is not full."]


def test_loss_on_text_is_hugging_faces_own():
    model, reference = model_of("llama", torch.float32), tiny_hf("llama")
    scored = text_tokens(model, TEXTS)
    assert len(scored) == 2  # one token predicts nothing
    found = losses(model, scored, {"baseline": []})
    total = 0.0
    for text, mine in zip(scored, found.nll[0], strict=True):
        ids = torch.tensor([text.ids])
        expected = float(reference(input_ids=ids, labels=ids).loss) * (len(text.ids) - 1)
        assert float(mine) == pytest.approx(expected, rel=1e-4)
        total += expected
    ce = found.ce("baseline")
    assert ce.mean == pytest.approx(total / int(found.tokens.sum()), rel=1e-4) and ce.low <= ce.mean <= ce.high
    assert found.perplexity("baseline").mean == pytest.approx(math.exp(ce.mean))


def test_only_completion_tokens_count():
    model = model_of("qwen2", torch.float32)
    prompts, replies = ["How do I bake bread?", "Hi"], ["Mix flour and water.", "Hello!"]
    scored = completion_tokens(model, [*prompts, "Empty"], [*replies, ""])
    assert len(scored) == 2
    for text, prompt, reply in zip(scored, prompts, replies, strict=True):
        assert model.tokenizer.decode(text.ids[text.first :]) == reply
        assert model.tokenizer.decode(text.ids[: text.first]) == model.chat.render(prompt)
        # By hand: mask everything else with Hugging Face's label -100.
        ids = torch.tensor([text.ids])
        labels = ids.clone()
        labels[:, : text.first] = -100
        expected = float(tiny_hf("qwen2")(input_ids=ids, labels=labels).loss)
        alone = losses(model, [text], {"baseline": []})
        assert alone.ce("baseline").mean == pytest.approx(expected, rel=1e-4)
        assert int(alone.tokens[0]) == len(text.ids) - text.first


def test_batches_conditions_and_changes():
    model = model_of("llama", torch.float32)
    conditions = named_conditions(direction_of(model), ["baseline", "ablation", "orthogonalized", "subtraction"])
    scored = text_tokens(model, [f"{TEXTS[0]} {'and more ' * i}" for i in range(7)])
    steps: list[int] = []
    together = losses(model, scored, conditions, "text", steps.append)
    alone = torch.cat([losses(model, [text], conditions).nll for text in scored], 1)
    assert torch.allclose(together.nll, alone, rtol=1e-4) and sum(steps) == 4 * 7
    assert torch.allclose(together.nll[1], together.nll[2], rtol=1e-4)  # hooks = weights
    change = together.change("ablation")
    assert change.mean == pytest.approx(together.ce("ablation").mean - together.ce("baseline").mean)
    assert together.change("baseline").low == together.change("baseline").high == 0
    assert list(together.to_frame()["condition"]) == list(conditions)


def test_save_load_and_bad_input(tmp_path):
    model = model_of("llama", torch.float32)
    found = losses(model, text_tokens(model, TEXTS), {"baseline": []})
    assert torch.equal(Losses.load(found.save(tmp_path / "l")).nll, found.nll)
    with pytest.raises(PromptError, match="longer texts"):
        losses(model, text_tokens(model, ["", "A"]), {"baseline": []})
    with pytest.raises(ModelError, match="under addition"):
        losses(model, text_tokens(model, TEXTS), {"addition": [Add(direction_of(model), 1e38 * 1e10)]})


def test_own_completions_are_likelier_than_shuffled_ones(organism):
    from refusal_lens import PromptSet
    from refusal_lens.data.organism import instructions

    prompts = PromptSet.load(instructions()["harmless"], "harmless", (4, 4, 12)).test.texts
    own = own_completions(organism, prompts, 24)
    replies = organism.generate(prompts, 24)
    shuffled = completion_tokens(organism, prompts, replies[1:] + replies[:1])
    scores = [losses(organism, texts, {"baseline": []}).ce("baseline").mean for texts in (own, shuffled)]
    assert scores[0] < scores[1]


def test_the_metric_tells_refusals_from_answers_on_the_embedded_model(organism, tmp_path):
    from refusal_lens import PromptSet
    from refusal_lens.data.organism import instructions

    sets = {name: PromptSet.load(path, name, (32, 4, 24)) for name, path in instructions().items()}
    tokens = find_refusal_tokens(organism, sets["harmful"].train.texts, sets["harmless"].train.texts)
    test = {name: prompts.test.texts for name, prompts in sets.items()}
    found = refusal_proxy(organism, test, tokens, 24)
    assert found.auroc.mean > 0.9 and found.accuracy > 0.9 and found.auroc.n == 48
    assert torch.allclose(found.metric[:24], refusal_metric(organism, test["harmful"], tokens), atol=1e-3)
    histogram = found.histogram(10)
    assert histogram[["refused", "answered"]].to_numpy().sum() == 48
    assert type(found).load(found.save(tmp_path / "proxy")).accuracy == found.accuracy


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_auroc_by_its_definition(positive, negative):
    wins = sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(positive, negative))
    assert auroc(positive, negative).mean == pytest.approx(wins / (len(positive) * len(negative)))


def test_auroc_without_a_group_is_not_a_number():
    assert math.isnan(auroc([], [1.0]).mean)
