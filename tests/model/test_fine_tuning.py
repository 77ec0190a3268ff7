"""Fine-tuning in memory: it learns, the originals come back bit for bit, and the numbers are those of other routes."""

from __future__ import annotations

import pytest
import torch

from refusal_lens import extract_directions
from refusal_lens.behaviour.cross_entropy import losses
from refusal_lens.data.organism import instructions
from refusal_lens.data.prompts import PromptSet
from refusal_lens.direction.fine_tuning import completion_loss, fine_tunable, fine_tuning_stability, train
from refusal_lens.errors import DirectionError, PromptError
from refusal_lens.models.texts import completion_tokens

from .cases import direction_of, model_of

PROMPTS = ["Tell me about the sea", "How do I bake bread?", "Name a river", "What is a dog?"]
REPLIES = ["The sea is blue.", "You mix and bake.", "The Rhine.", "An animal that barks."]


def snapshot(model):
    return [(p, p.detach().clone()) for p in model.tl.parameters()]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_it_learns_inside_and_leaves_no_trace(architecture):
    model = model_of(architecture, torch.float32)
    before, logits = snapshot(model), model.last_logits(PROMPTS)
    texts = completion_tokens(model, PROMPTS, REPLIES)
    with fine_tunable(model) as parameters:
        steps = train(model, parameters, texts, lr=1e-2, batch_size=4)
        found = [next(steps) for _ in range(15)]
        assert found[-1] < 0.7 * found[0]
        assert float((model.last_logits(PROMPTS) - logits).abs().max()) > 1e-3
    assert torch.equal(model.last_logits(PROMPTS), logits)
    after = list(model.tl.parameters())
    assert len(after) == len(before)
    assert all(p is old and torch.equal(p, value) for p, (old, value) in zip(after, before, strict=True))
    assert all(p.grad is None for p in after)


def test_an_exception_inside_leaves_no_trace():
    model = model_of("llama", torch.float32)
    logits = model.last_logits(PROMPTS)
    texts = completion_tokens(model, PROMPTS, REPLIES)
    with pytest.raises(RuntimeError, match="stop"), fine_tunable(model) as parameters:
        next(train(model, parameters, texts, lr=1e-2))
        raise RuntimeError("stop")
    assert torch.equal(model.last_logits(PROMPTS), logits)


def test_its_loss_is_that_of_losses():
    model = model_of("qwen2", torch.float32)
    texts = completion_tokens(model, PROMPTS, REPLIES)
    expected = losses(model, texts, {"baseline": []}).ce("baseline").mean
    with torch.inference_mode():
        assert float(completion_loss(model, texts)) == pytest.approx(expected, rel=1e-5)


def test_tied_weights_stay_tied():
    model = model_of("gemma2", torch.float32)
    weights = {id(p) for p in model.tl.parameters()}
    with fine_tunable(model) as parameters:
        assert len(parameters) == len(weights)


@pytest.fixture(scope="module")
def prompts():
    """36 requests of each kind."""
    return {kind: PromptSet.load(path, sizes=(24, 8, 12)) for kind, path in instructions().items()}


@pytest.fixture(scope="module")
def direction(organism, prompts):
    train = (prompts[kind].train.texts for kind in ("harmful", "harmless"))
    return extract_directions(organism, *train).direction(-1, 3)


@pytest.fixture(scope="module")
def tuned(organism, prompts, direction):
    train, test = ([getattr(prompts[k], split).texts for k in ("harmful", "harmless")] for split in ("train", "test"))
    benign = completion_tokens(organism, train[1][:16], ["Sure, easy." + organism.tokenizer.eos_token] * 16)
    return fine_tuning_stability(
        organism,
        direction,
        benign[4:],
        benign[:4],
        tuple(train),
        tuple(test),
        steps=(8, 0),
        lr=1e-3,
        max_new_tokens=12,
    )


def test_the_organisms_old_direction_on_its_tuned_copy(tuned, organism, tmp_path):
    assert tuned.steps == (0, 8)
    assert tuned.cosine[0] == pytest.approx(1.0, abs=1e-6) and 0 < tuned.cosine[1] < 1 - 1e-6
    assert tuned.loss[1] < tuned.loss[0]
    assert tuned.harmful[0]["baseline"].rate >= 0.9 and tuned.harmful[0]["ablation"].rate <= 0.2
    assert tuned.harmless[0]["addition"].rate >= 0.8 and tuned.harmless[0]["random_addition"].rate <= 0.2
    frame = type(tuned).load(tuned.save(tmp_path / "tuned")).to_frame()
    assert len(frame) == 2 * 6 and set(frame["n"]) == {12}


def test_bad_input(organism, direction):
    nothing = ([], [])
    with pytest.raises(DirectionError):
        fine_tuning_stability(organism, direction_of(model_of("llama")), [], [], nothing, nothing)
    with pytest.raises(PromptError, match="benign"):
        fine_tuning_stability(organism, direction, [], [], nothing, nothing)
