"""Figures of one head, thinned attention maps, the certificate's picture, and the tables behind figures."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from refusal_lens.attribution.figures import plot_attention, plot_head, plot_head_tokens
from refusal_lens.attribution.ranking import confirm_heads
from refusal_lens.attribution.stage import kept_patterns
from refusal_lens.attribution.token_records import AttentionPatterns
from refusal_lens.attribution.views import attention_notice, attention_props, thinned
from refusal_lens.exactness.figures import plot_certificate
from refusal_lens.exactness.records import Certificate, Identity
from refusal_lens.exactness.section import WEIGHTS, certificate_section
from refusal_lens.report.frames import figure_frame
from tests.unit.test_plots_attribution import heads, sources

NAN = float("nan")


def pattern(n: int) -> AttentionPatterns:
    values = torch.rand(2, n, n, generator=torch.Generator().manual_seed(0)).tril()
    names = tuple(f" t{i}" for i in range(n))
    return AttentionPatterns(values / values.sum(-1, keepdim=True), ((0, 1), (1, 0)), names, "p")


@pytest.mark.parametrize("n", [5, 97, 250])
def test_a_thinned_map_keeps_its_rows_whole_and_says_so(n):
    record = pattern(n)
    small, labels, notice = thinned(record.values, record.tokens)
    assert len(labels) == small.shape[-1] == small.shape[-2] <= 96
    torch.testing.assert_close(small.sum(-1), torch.ones(2, len(labels)))
    assert bool(notice) == (n > 96) == (str(n) in notice) and attention_notice(record) == notice
    assert len(json.dumps(attention_props(record)[1])) < 400_000
    figure = plot_attention(record, (1, 0))
    assert (notice in figure.layout.title.text) and len(figure.data[0].z) == len(labels)
    assert figure.data[0].z[0][1] is None  # nothing is read from the future
    assert figure.layout.xaxis.ticktext[0].startswith("␣t0")


def test_whole_patterns_of_as_many_heads_as_the_page_can_hold():
    report = confirm_heads(heads("s", 1), heads("r", 2), heads("h", 3), top=2)
    everything = {(layer, head) for layer, row in enumerate(report.reported.labels) for head in range(len(row))}
    ranked = report.ranked()
    assert ranked[:2] == report.heads and set(ranked) == everything and len(ranked) == len(everything)
    others = [abs(float(report.reported.mean[head])) for head in ranked[2:]]
    assert others == sorted(others, reverse=True)
    assert kept_patterns(report, 10) == ranked
    assert kept_patterns(report, 150) == ranked[: max(2, 60_000 // 96**2)]


def test_a_head_shows_every_prompt_and_its_tokens_add_up():
    report = confirm_heads(heads("s", 1), heads("r", 2), heads("h", 3), top=2)
    figure = plot_head(report, report.heads[0])
    torch.testing.assert_close(
        torch.tensor(figure.data[0].x), report.reported.values[report.heads[0]], atol=1e-3, rtol=0
    )
    record = sources()
    bars = plot_head_tokens(record, 1, (2, 1)).data[1]
    assert sum(bars.y) == pytest.approx(float(record.values[2, 1, 1].sum()), abs=1e-3)
    assert len(bars.y) == len(record.tokens[1]) and list(bars.text)[-1] == "⏎"
    frame = figure_frame(plot_head_tokens(record, 1, (2, 1)))
    assert frame[frame["trace"] == "along r̂"]["y"].sum() == pytest.approx(sum(bars.y))


def test_the_certificate_shows_errors_limits_and_the_gap_of_orthogonalization():
    exact = Identity("parts = whole", 1e-6, 1e-7, 1e-4, 0.0, 0.0, 1e-9, True, "x", "")
    edited = Identity(WEIGHTS, 0.25, 0.01, 4e-2, NAN, NAN, NAN, True, "largest logit", "")
    absent = dataclasses.replace(edited, absolute=NAN, relative=NAN, note="no identity here: gap measured 0.7")
    figure = plot_certificate(Certificate("m", "f", "b", "bfloat16", (exact, edited)))
    shown = {trace.name: list(trace.customdata) for trace in figure.data}
    assert shown["bfloat16"] == [1e-7, 0.01] and shown["limit, bfloat16"] == [1e-4, 4e-2] and shown["float64"][0] == 0
    told = certificate_section(Certificate("m", "f", "b", "bfloat16", (exact, edited))).text[1]
    assert "0.25" in told and "0.01" in told
    assert "gap measured 0.7" in certificate_section(Certificate("m", "f", "b", "bfloat16", (exact, absent))).text[1]
