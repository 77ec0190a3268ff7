"""Inside the model: what writes the direction and the refusal logits, and the certificate."""

from __future__ import annotations

import math

import pandas as pd

from ..attribution.records import LogitAttribution
from ..attribution.reports import CausalCheck, HeadReport
from ..attribution.token_records import AttentionPatterns, Propagation, SourceContributions
from ..certificate import Certificate
from ..plots import attribution as plots
from .page import Figure, Section, Table, Widget, plain


def attribution_section(
    heads: HeadReport,
    causal: CausalCheck,
    logits: LogitAttribution,
    propagation: Propagation,
    sources: SourceContributions,
    patterns: AttentionPatterns,
) -> Section:
    """Top heads, their causal check, logit attribution, propagation, sources and attention patterns."""
    top = causal.change("mean_ablation")
    random = causal.change("random_mean_ablation")
    apart = top.high < random.low
    verdict = (
        "the intervals do not overlap: these heads carry refusal."
        if apart
        else "the intervals overlap: that these heads carry refusal is not shown."
    )
    text = (
        f"The heads were chosen on {heads.n_selection} validation prompts and are reported on {heads.n_report} "
        f"held-out ones. Replacing the top {len(heads.heads)} heads' outputs by their mean over harmless prompts "
        f"changes the refusal metric by {top}; the same for random heads of the same layers by {random}: {verdict}",
        "Attribution says what a head writes along the direction; the causal check says what the model does without "
        f"it. Predicted and measured changes of single heads correlate with Spearman {causal.spearman:.2f} "
        f"(p = {causal.p_value:.2g}).",
    )
    n_heads = f"{heads.n_report} held-out harmful prompts, heads chosen on {heads.n_selection} others"
    return Section(
        "attribution",
        "What writes the direction",
        text,
        (
            Figure(
                "head-map",
                plots.plot_head_contributions(heads),
                "What each head writes along the direction at the last position; the top heads are labelled.",
                n=n_heads,
                data=heads.report.to_frame(),
            ),
            Figure(
                "head-report",
                plots.plot_head_report(heads),
                "The chosen heads on the prompts that chose them, on held-out harmful ones with 95% intervals, and on "
                "harmless ones.",
                n=n_heads,
                control="harmless prompts",
                data=heads.to_frame(),
            ),
            Figure(
                "causal-check",
                plots.plot_causal_check(causal),
                "Left: change of the refusal metric when heads are replaced. Right: predicted against measured change, "
                "one point a head.",
                n=f"{causal.n_report} held-out harmful prompts",
                control="random heads of the same layers",
                data=causal.to_frame(),
            ),
            Figure(
                "dla",
                plots.plot_components(logits),
                f"Direct logit attribution at the last position: logit of {logits.answer} minus that of "
                f"{logits.against}, through the frozen final norm; the parts add up to the total (largest error "
                f"{logits.error:.2g}).",
                n=f"{logits.values.shape[-1]} held-out harmful prompts",
                data=logits.to_frame(),
            ),
            Figure(
                "propagation",
                plots.plot_propagation(propagation),
                "Projection on the direction by layer and token, from the instruction to the last position.",
                n=f"{propagation.projection.shape[-2]} held-out harmful prompts",
            ),
            Figure(
                "sources",
                plots.plot_sources_by_region(sources, heads.heads),
                "Where the top heads take what they write along the direction, by region of the prompt.",
                n=f"{len(sources.tokens)} held-out harmful prompts",
            ),
            Widget(
                "attention",
                *plots.attention_props(patterns),
                "Attention of the top heads on one held-out prompt: hover or click a head, then a token.",
                n="1 prompt",
            ),
            Widget(
                "source-tokens",
                *plots.tokens_props(sources, 0, heads.heads),
                "What each token of that prompt writes into the direction through the top heads: red towards refusal, "
                "blue away.",
                n="1 prompt",
            ),
        ),
    )


def certificate_section(certificate: Certificate) -> Section:
    """The identities that the numbers above rest on, measured on this model."""
    frame = certificate.to_frame()
    rows = tuple(
        (
            i.name,
            i.result,
            _number(i.relative),
            f"{i.tolerance:g}",
            _number(i.relative64),
            i.note,
        )
        for i in certificate.identities
    )
    columns = ("identity", "result", f"largest relative error, {certificate.dtype}", "limit", "in float64", "note")
    text = (
        "All identities hold within rounding on this model."
        if certificate.passed
        else "Not all identities hold on this model; the note says which and why."
    )
    table = Table("certificate-table", columns, rows, "Identities measured on this model.", data=pd.DataFrame(frame))
    return Section("certificate", "Exactness certificate", (text,), (table,))


def _number(value: float) -> str:
    return "not measured" if math.isnan(value) else plain(value)
