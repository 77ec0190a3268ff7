"""Memory of every stage does not grow with the number of prompts or suffixes, and weights are there once."""

from __future__ import annotations

import gc

import pytest
import torch

from benchmarks.live import LiveBytes
from benchmarks.measure import LinearFlops
from refusal_lens import load_model
from refusal_lens.attribution.components import heads as head_contributions
from refusal_lens.attribution.sources import source_contributions
from refusal_lens.direction.extract import mean_activations
from refusal_lens.engines.local import LocalEngine
from refusal_lens.errors import ModelError
from refusal_lens.hijacking.screening import screen
from refusal_lens.records.direction import Direction
from refusal_lens.refusal.metric import refusal_metric
from refusal_lens.refusal.tokens import given_refusal_tokens


def _prompts(n: int) -> list[str]:
    return [f"Write down what you know about the number {1000 + i}" + " and the next one" * 12 for i in range(n)]


def _peak(work) -> int:
    gc.collect()
    with LiveBytes() as live:
        result = work()
    del result
    return live.peak


def _stages(model):
    tokens = given_refusal_tokens(model, [5])
    direction = Direction(torch.eye(model.d_model)[0], 1.0, -1, 1)
    engine = LocalEngine(model)
    return {
        "extraction": lambda n: mean_activations(model, _prompts(n)),
        "metric": lambda n: refusal_metric(model, _prompts(n), tokens),
        "heads": lambda n: head_contributions(model, _prompts(n), direction),
        "sources": lambda n: source_contributions(model, _prompts(n), direction),
        "suffixes": lambda n: screen(
            engine.model, _prompts(1), [f" {1000 + i} now" for i in range(n)], tokens, engine=engine
        ),
    }


# With the fewer already a full batch (for extraction an item) runs while the one before it is still held.
FEW_AND_MANY = {
    "extraction": (64, 96),
    "metric": (24, 48),
    "heads": (24, 48),
    "sources": (48, 72),
    "suffixes": (180, 260),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", FEW_AND_MANY)
def test_peak_memory_does_not_grow_with_prompts(organism, stage):
    """What is added for each further prompt is its own result and its token ids: far less than its activations."""
    work = _stages(organism)[stage]
    work(4)  # what is made once
    few, many = FEW_AND_MANY[stage]
    growth = (_peak(lambda: work(many)) - _peak(lambda: work(few))) / (many - few)
    length = int(organism.tokenize(_prompts(1)).lengths[0])
    activations = organism.n_layers * length * organism.d_model * 4
    result = 2 * 4 * organism.n_layers * organism.n_heads * length if stage == "sources" else 0
    assert growth < 0.05 * activations + result, f"{growth:.0f} bytes a prompt, its activations are {activations}"


def test_the_counter_sees_what_is_kept_and_nothing_that_was_there():
    kept = []
    weight = torch.zeros(100_000)
    with LiveBytes() as live:
        weight.view(100, 1000).T.add_(1)
        for _ in range(4):
            kept.append(torch.zeros(1000))
            torch.ones(500)
    assert live.peak == 4 * 4000 + 2000


def test_padding_is_not_counted_as_useful(organism):
    """A batch's multiplications, times its share of real tokens."""
    batch = organism.tokenize(["short", "a much longer prompt than the other one, by far"])
    counts = []
    for pad_id in (-1, organism.chat.pad_id):
        with LinearFlops(pad_id) as flops:
            organism.logits(batch)
        counts.append(flops.total)
    matrices = sum(p.numel() for p in organism.backend.layers.parameters() if p.ndim == 2)
    everything = 2 * (batch.ids.numel() * matrices + len(batch) * organism.d_model * organism.d_vocab)
    assert counts[0] == pytest.approx(everything)
    assert counts[1] == pytest.approx(everything * float(batch.mask.double().mean()))


def test_weights_are_loaded_once():
    model = load_model("organism")
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.tl.parameters()}
    alone = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.backend.hf.parameters()}
    assert storages == alone, "the bridge holds weights of its own"


def test_a_device_map_is_passed_on():
    """On a machine without GPUs a map can only say "cpu"; that it is read shows in a device that does not exist."""
    plain = load_model("organism")
    prompts = _prompts(3)
    for spread in ("auto", {"": "cpu"}):
        mapped = load_model("organism", device_map=spread, device="cpu")
        assert torch.equal(mapped.last_logits(prompts), plain.last_logits(prompts))
    with pytest.raises(ModelError, match="nowhere"):
        load_model("organism", device_map={"": "nowhere"})
