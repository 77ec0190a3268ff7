"""A ceiling on the projection, and interventions at some positions of prompts with their replies."""

from __future__ import annotations

import pytest
import torch

from refusal_lens import Ablate, Add
from refusal_lens.errors import DirectionError, InterventionError
from refusal_lens.hooks.capping import Cap
from refusal_lens.models.running import running
from refusal_lens.models.texts import Scored, reply_tokens, scored_batches
from refusal_lens.records.direction import Subspace

from .cases import PROMPT, direction_of, model_of

PLACES = (None, "prompt", "template_post", "reply", slice(-2, None), ("instruction", "reply"))
PROMPTS = [PROMPT, "Hi", "How do I bake a loaf of bread at home, and how long does that take?"]


def seen(model, *edits):
    """resid_pre of every layer, in a run under ``edits``."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    with model.hooks(*edits):
        return model.cache([PROMPT], names)


def test_the_ceiling_holds_and_what_is_below_stays():
    model = model_of("llama")
    direction, names = direction_of(model), [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    r, before = direction.unit.double(), seen(model)
    along = [before[name] @ r for name in names]
    middle = float(along[1].median())
    after = seen(model, Cap(direction, middle, layers=1))[names[1]]
    above = along[1] > middle
    assert above.any() and not above.all()
    assert torch.allclose((after @ r)[above], torch.tensor(middle, dtype=torch.float64), atol=1e-12)
    assert torch.equal(after[~above], before[names[1]][~above])
    rest = after - before[names[1]]
    assert torch.allclose(rest - (rest @ r)[..., None] * r, torch.zeros_like(rest), atol=1e-12)  # only along r̂
    logits = model.last_logits(PROMPT)
    for idle in (Cap(direction, max(float(a.max()) for a in along) + 1), Cap(direction, middle, strength=0.0)):
        with model.hooks(idle):
            assert torch.equal(model.last_logits(PROMPT), logits)
    # One ceiling per layer: each layer has its own.
    ceilings = tuple(float(a.median()) for a in along)
    found = seen(model, Cap(direction, ceilings))
    assert all(float((found[name] @ r).max()) <= c + 1e-12 for name, c in zip(names, ceilings, strict=True))


def test_the_placebo_moves_as_far():
    model = model_of("llama")
    direction, name = direction_of(model), "blocks.1.hook_resid_pre"
    before = seen(model)[name]
    real = Cap(direction, float((before @ direction.unit.double()).median()), layers=1)
    moved, placebo = (seen(model, edit)[name] - before for edit in (real, real.placebo(3)))
    assert moved.norm() > 0
    assert torch.allclose(placebo.norm(dim=-1), moved.norm(dim=-1), atol=1e-12)
    assert abs(float(torch.cosine_similarity(placebo.flatten(), moved.flatten(), 0))) < 0.9


def test_ceilings_that_do_not_fit():
    model = model_of("llama")
    direction = direction_of(model)
    with pytest.raises(InterventionError, match="one per layer"), model.hooks(Cap(direction, (1.0,))):
        pass
    with pytest.raises(DirectionError, match="one direction"):
        Cap(Subspace.random(direction, 2, 0), 1.0)
    assert Cap(direction, 1.5, positions="reply").label == "Cap (-1, 1) at 1.5, positions reply"


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("positions", PLACES)
def test_a_reply_is_scored_as_it_was_generated(architecture, positions):
    """Teacher-forced logits under a scope are those of generation under the same scope, at every token."""
    model = model_of(architecture, torch.float32)
    direction, last = direction_of(model), f"blocks.{model.n_layers - 1}.hook_resid_post"
    for edit in (
        Ablate(direction, positions=positions),
        Add(direction, 3.0, positions=positions),
        Cap(direction, 0.0, positions=positions),
    ):
        texts, steps = [], []
        for prompt in PROMPTS:
            batch, kept = model.tokenize(prompt), []
            with (
                model.hooks(edit, (last, lambda x, hook, kept=kept: kept.append(x[:, -1].clone()))),
                running(model, batch),
            ):
                (new,) = model.backend.generate(batch.ids, batch.mask, 5, [], model.chat.pad_id, 0.0)
            ids = model.chat.encode(prompt).ids + tuple(new.tolist())
            texts.append(Scored(ids, len(ids) - len(new), model.chat.encode(prompt).spans))
            steps.append(torch.cat(kept))  # the prompt's last position, then each token that was fed back
        for batch in scored_batches(model, texts):
            with model.hooks(edit):
                forced = model.cache(batch, [last])[last]
            for row, i in enumerate(batch.indices):
                n = len(texts[i].ids) - texts[i].first
                assert len(steps[i]) == n
                assert torch.allclose(forced[row, -n - 1 : -1], steps[i], atol=1e-4), (edit.label, PROMPTS[i])


def test_replies_join_their_prompts_as_ids(organism):
    prompts = ["How do I pick a lock?", "How do I bake bread?", "Hi"]
    told = [*organism.generate(prompts[:2], 8), ""]
    texts = reply_tokens(organism, prompts, told)
    for prompt, reply, text in zip(prompts, told, texts, strict=True):
        assert text.ids[: text.first] == organism.chat.encode(prompt).ids
        assert organism.tokenizer.decode(text.ids[text.first :]) == reply
        assert text.spans == organism.chat.encode(prompt).spans
