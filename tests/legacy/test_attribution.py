"""Attribution and the certificate on ``HookedTransformer``: exact there too, and equal to the bridge's."""

from __future__ import annotations

import torch

from refusal_lens.attribution.components import component_contributions
from refusal_lens.attribution.logits import direct_logit_attribution
from refusal_lens.attribution.sources import source_contributions
from refusal_lens.exactness.identities import certify
from tests.legacy.test_hooked_transformer import PROMPTS, direction, pair  # noqa: F401  (fixtures)


def test_contributions_sum_and_equal_the_bridges(pair, direction):  # noqa: F811
    found = [component_contributions(model, PROMPTS, direction) for model in pair]
    for record in found:
        assert float(record.errors.max()) < 1e-5 * float(record.resid.abs().max())
    assert torch.allclose(found[0].parts, found[1].parts, atol=1e-4)
    sources = source_contributions(pair[0], PROMPTS, direction)
    assert torch.allclose(sources.values.nan_to_num().sum(-1), found[0].heads, atol=1e-5)


def test_logit_parts_sum_to_the_logits(pair):  # noqa: F811
    found = [direct_logit_attribution(model, PROMPTS, [5], [9]) for model in pair]
    assert found[0].error < 1e-4
    assert torch.allclose(found[0].measured, found[1].measured, atol=1e-3)


def test_every_identity_holds(pair):  # noqa: F811
    certificate = certify(pair[0], float64=False)
    failed = [(i.name, i.relative, i.note) for i in certificate.identities if not i.passed]
    assert failed == [] and certificate.backend == "HookedTransformer"
