"""Identities of the pure functions, on random input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from refusal_lens.errors import DirectionError
from refusal_lens.tensors import kl_divergence, project_out, random_unit, refusal_log_odds, unit

seeds = st.integers(0, 2**20)
sizes = st.integers(2, 40)


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds, sizes)
def test_project_out_leaves_nothing_and_is_idempotent(seed, d):
    x, r = _draw(seed, 3, d), unit(_draw(seed + 1, d))
    once = project_out(x, r)
    assert torch.allclose(once @ r, torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(project_out(once, r), once, atol=1e-12)
    # Nothing orthogonal to r is touched.
    assert torch.allclose(x - once, (x @ r)[:, None] * r, atol=1e-12)


@given(seeds, sizes)
def test_orthogonalized_weight_writes_what_projection_leaves(seed, d):
    weight, x, r = _draw(seed, d, 5), _draw(seed + 1, 5), unit(_draw(seed + 2, d))
    left = project_out(weight.mT, r).mT @ x
    assert torch.allclose(left, project_out(weight @ x, r), atol=1e-12)


@given(seeds, sizes)
def test_kl_is_zero_on_itself_and_positive_elsewhere(seed, d):
    a, b = _draw(seed, d), _draw(seed + 1, d)
    assert float(kl_divergence(a, a)) == 0
    assert float(kl_divergence(a, b)) > -1e-5  # the paper's eps lets it dip below zero by that much


@given(seeds, sizes)
def test_refusal_log_odds_is_the_logit_of_the_summed_probability(seed, d):
    logits = _draw(seed, d)
    p = float(logits.softmax(-1)[[0, 1]].sum())
    got = float(refusal_log_odds(logits, [0, 1]))
    assert math.isclose(got, math.log(p + 1e-8) - math.log(1 - p + 1e-8), rel_tol=1e-9)


def test_random_unit_is_seeded_and_spread():
    a, b = random_unit(512, 0), random_unit(512, 1)
    assert torch.equal(a, random_unit(512, 0))
    assert abs(float(a @ b)) < 0.2 and math.isclose(float(a.norm()), 1, rel_tol=1e-6)


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf"), 1.0])])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(DirectionError, match="finite and not zero"):
        unit(bad)


def test_project_out_keeps_dtype_and_input():
    x = torch.randn(4, 8).bfloat16()
    before = x.clone()
    out = project_out(x, random_unit(8, 0))
    assert out.dtype is torch.bfloat16 and torch.equal(x, before)
