"""The certificate passes on every architecture, and fails where an identity is broken."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from refusal_lens.errors import ModelError
from refusal_lens.exactness.identities import certify
from refusal_lens.exactness.records import Certificate
from refusal_lens.tensors import project_out

from .cases import ALL, POST_NORM, PROMPT, direction_of, model_of

PROMPTS = (PROMPT, "Hi")
# Hooks and plain weight edits differ by nature behind post-norms; every other identity must hold everywhere.
EDITED = "orthogonalized weights = ablation by hooks"

certify_module = sys.modules["refusal_lens.exactness.identities"]


@pytest.mark.parametrize("architecture", ALL)
def test_every_identity_holds(architecture):
    model = model_of(architecture, torch.float32)
    before = model.last_logits([PROMPT])
    found = certify(model, PROMPTS)
    rows = {i.name: i for i in found.identities}
    assert len(rows) >= 9 and found.dtype == "float32"
    for name, row in rows.items():
        if name == EDITED and architecture in POST_NORM:
            continue
        assert row.passed, row
        if row.result == "n/a":
            assert architecture == "mixtral" and "experts" in row.note
        elif name != "padded = alone":
            # Measured, in both dtypes, and far better in float64.
            assert row.relative64 <= row.tolerance64 < row.tolerance or row.tolerance == 0
    stream = rows["writes sum to the stream"]
    assert stream.absolute > 0 and stream.relative64 < 1e-14
    assert rows["sources sum to heads"].relative64 < 1e-12
    assert rows["ablation by hooks leaves no component"].relative64 < 1e-12
    assert model.dtype == torch.float32 and torch.equal(model.last_logits([PROMPT]), before)


def test_a_forgotten_bias_fails(monkeypatch):
    model = model_of("llama-bias", torch.float32)
    monkeypatch.setattr(type(model.backend), "attn_bias", lambda self, layer: None)
    rows = {i.name: i for i in certify(model, PROMPTS, float64=False).identities}
    failed = {name for name, row in rows.items() if not row.passed}
    assert {
        "heads and bias sum to attention",
        "parts sum to resid · r̂ at every layer",
        "logit parts sum to the logits",
    } <= failed
    assert rows["sources sum to heads"].passed and rows["writes sum to the stream"].passed


def test_a_forgotten_offset_fails(monkeypatch):
    """Gemma's norm weight counts from 1; without it neither post-norm nor final norm would add up."""
    model = model_of("gemma2", torch.float32)
    monkeypatch.setattr(type(model.tl.ln_final), "uses_weight_offset", False)
    rows = {i.name: i for i in certify(model, PROMPTS, float64=False).identities}
    assert not rows["heads and bias sum to attention"].passed
    assert not rows["logit parts sum to the logits"].passed


def test_float64_is_left_out_for_large_models_and_said_so(monkeypatch):
    model = model_of("llama", torch.float32)
    monkeypatch.setattr(certify_module, "FLOAT64_LIMIT", 10)
    found = certify(model, PROMPTS)
    assert found.passed and all(math.isnan(i.relative64) for i in found.identities)
    assert any("not measured" in i.note for i in found.identities)
    monkeypatch.setattr(certify_module.copy, "deepcopy", lambda _: (_ for _ in ()).throw(RuntimeError("no copy")))
    found = certify(model, PROMPTS, float64=True)
    assert found.passed and any("no copy" in i.note for i in found.identities)


def test_a_model_in_float64_is_its_own_reference():
    found = certify(model_of("qwen2"), [PROMPT])
    assert found.dtype == "float64" and found.passed
    assert all(i.relative == i.relative64 for i in found.identities if i.result == "PASS")


def test_nan_never_passes():
    error = certify_module._Error("sum", "")
    error.add(torch.tensor([0.0, float("nan")]), 1.0)
    assert not error.within(1.0)
    error.add(0.0, 1.0)
    assert not error.within(1.0)


@contextmanager
def edited_weights(model, direction, forget=None):
    """r̂ projected out of the embedding, every W_O and every W_out of an untied model without biases."""
    tl = model.tl
    weights = [(tl.embed.weight, -1)]
    weights += [(w, 0) for block in tl.blocks for w in (block.attn.o.weight, block.mlp.out.weight)]
    saved = [w.detach().clone() for w, _ in weights]
    with torch.no_grad():
        for i, (w, axis) in enumerate(weights):
            if i != forget:
                w.copy_(project_out(w.movedim(axis, -1), direction.unit).movedim(-1, axis))
    try:
        yield
    finally:
        with torch.no_grad():
            for (w, _), before in zip(weights, saved, strict=True):
                w.copy_(before)


def replace_edit(monkeypatch, edit):
    """Let the certificate edit weights by ``edit(model, direction)`` instead of ``Orthogonalize``."""

    def made(direction, allow_gap):
        return SimpleNamespace(applied=lambda model: edit(model, direction))

    monkeypatch.setattr(certify_module, "Orthogonalize", made)


def test_edited_weights_are_compared_with_hooks(monkeypatch):
    model = model_of("llama", torch.float32)
    replace_edit(monkeypatch, edited_weights)
    row = certify(model, PROMPTS).identities[-2]
    assert row.name == EDITED and row.passed and row.relative > 0 and row.relative64 < 1e-5
    # Forgetting one of the seven matrices shows.
    replace_edit(monkeypatch, partial(edited_weights, forget=3))
    found = certify(model, PROMPTS, float64=False)
    assert [i.name for i in found.identities if not i.passed] == [EDITED] and not found.passed

    def refuses(model, direction):
        raise ModelError("norms after the sublayers")

    replace_edit(monkeypatch, refuses)
    row = certify(model, PROMPTS, float64=False).identities[-2]
    assert row.result == "FAIL" and row.note == "norms after the sublayers" and math.isnan(row.absolute)


def test_a_given_direction_is_used_and_the_table_is_saved(tmp_path):
    model = model_of("llama", torch.float32)
    found = certify(model, PROMPTS, direction_of(model), float64=False)
    assert found.fingerprint == model.fingerprint and found.backend == "TransformerBridge"
    again = Certificate.load(found.save(tmp_path / "certificate"))
    assert again.to_frame()["result"].tolist() == found.to_frame()["result"].tolist()
    assert set(again.to_frame()["result"]) == {"PASS"}
