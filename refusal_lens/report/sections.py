"""The chapters of the report, from records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..plots import plot_refusal_rates, plot_selection, plot_trace, style
from ..prompts import PromptSet
from ..records import CandidateDirections, Completions, DirectionTrace, RefusalTokens, Selection
from ..stats import Interval, Rate, rate
from .page import Card, Figure, Section, Table, plain

RANDOM = "a random direction of equal norm"


def headline(summary: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Summary sentences, cards and notes for the top of the page, each from the numbers."""
    harmful = {name: Rate(**value) for name, value in summary["refusal"]["harmful"].items()}
    harmless = {name: Rate(**value) for name, value in summary["refusal"]["harmless"].items()}
    chosen = selection.chosen
    sentences = [
        f"On {harmful['baseline'].n} held-out harmful prompts the model refuses {harmful['baseline'].rate:.0%}; with "
        f"the direction ablated {harmful['ablation'].rate:.0%}, with a random one ablated "
        f"{harmful['random_ablation'].rate:.0%}. {_verdict(harmful, 'ablation', -1)}",
        f"On {harmless['baseline'].n} held-out harmless prompts it refuses {harmless['baseline'].rate:.0%}; with the "
        f"direction added {harmless['addition'].rate:.0%}, with a random one of equal norm added "
        f"{harmless['random_addition'].rate:.0%}. {_verdict(harmless, 'addition', +1)}",
    ]
    cards = [
        Card(chosen.label, "position and layer of the direction", f"norm {chosen.norm:.3g}"),
        Card(
            f"{harmful['baseline'].rate:.0%} → {harmful['ablation'].rate:.0%}",
            "harmful prompts refused, ablated",
            f"random: {harmful['random_ablation']}",
        ),
        Card(
            f"{harmless['baseline'].rate:.0%} → {harmless['addition'].rate:.0%}",
            "harmless prompts refused, added",
            f"random: {harmless['random_addition']}",
        ),
        Card(
            f"{selection.score('kl'):.3f}",
            "KL of the next token on harmless prompts, nats",
            f"threshold {selection.thresholds['max_kl']:g}",
        ),
    ]
    notes = []
    if chosen.relaxed:
        notes.append(f"No candidate passed the rule as set. The nearest one was taken, which needs: {chosen.relaxed}.")
    if chosen.coeff != 1:
        notes.append(f"Addition adds {chosen.coeff:g} times the direction, where the paper adds it once.")
    notes.append(
        "Refusal is judged by the paper's phrases: a reply without them is not refused, which does not mean that it "
        "helps. Not measured here: safety classifiers, coherence benchmarks."
    )
    return {"summary": tuple(sentences), "cards": tuple(cards), "notes": tuple(notes)}


def _verdict(rates: Mapping[str, Rate], condition: str, sign: int) -> str:
    """Whether the effect holds beyond its placebo: intervals that do not overlap."""
    effect, placebo = rates[condition], rates[f"random_{condition}"]
    apart = effect.high < placebo.low if sign < 0 else effect.low > placebo.high
    if apart:
        return "The 95% intervals do not overlap: the effect is the direction's."
    return "The 95% intervals overlap: this run does not show an effect of the direction."


def model_section(
    provenance: Mapping[str, Any], harmful: PromptSet, harmless: PromptSet, tokens: RefusalTokens
) -> Section:
    """Model, prompts, refusal tokens."""
    facts = provenance["model"]
    shares = dict(zip(tokens.texts, tokens.shares, strict=False))
    token_list = ", ".join(
        f"{text!r} ({i}{f', {shares[text]:.0%} of refusals' if text in shares else ''})"
        for text, i in zip(tokens.texts, tokens.ids, strict=True)
    )
    rows = [(key, plain(facts[key])) for key in facts if key != "template"]
    rows += [("chat template", facts["template"]), ("refusal tokens", f"{token_list}; {tokens.source}")]
    rows += [
        (f"{p.name} prompts", f"{len(p.train)} train, {len(p.val)} validation, {len(p.test)} test")
        for p in (harmful, harmless)
    ]
    rows += [(f"{p.name} prompts, notes", note) for p in (harmful, harmless) for note in p.notes]
    return Section(
        "model",
        "Model and prompts",
        ("The direction is extracted on the training split, chosen on validation, and reported on the test split.",),
        (Table("model-facts", ("what", "value"), tuple(rows), "The model as loaded, and the prompts as used."),),
    )


def direction_section(selection: Selection, candidates: CandidateDirections) -> Section:
    """The selection grid and why candidates were dropped."""
    frame = selection.scores.to_frame()
    frame["reason"] = [reason for row in selection.reasons for reason in row]
    text = [
        f"Chosen: position {selection.chosen.pos}, layer {selection.chosen.layer}. Bypass "
        f"{selection.score('bypass'):.3f} (baseline {selection.baseline_harmful:.3f}), induce "
        f"{selection.score('induce'):.3f} (baseline {selection.baseline_harmless:.3f}), KL "
        f"{selection.score('kl'):.4f} nats. {len(selection.kept)} candidate(s) are known to pass the rule.",
    ]
    if frame[["bypass", "induce", "kl"]].isna().to_numpy().any():
        text.append("Scores that the winner did not depend on were not computed; a full grid computes them all.")
    items: list[Figure | Table] = [
        Figure(
            "selection-grid",
            plot_selection(selection, candidates.pos_labels),
            "The three selection scores of each candidate by layer, one line a post-instruction position; thresholds "
            "dashed, the layer cut dotted, the chosen one starred.",
            n=f"{selection.n_harmful} harmful and {selection.n_harmless} harmless validation prompts",
            data=frame,
        )
    ]
    if selection.near_misses:
        rows = tuple(
            (f"({m.pos}, {m.layer})", plain(m.bypass), plain(m.induce), plain(m.kl), " and ".join(m.needs))
            for m in selection.near_misses
        )
        columns = ("candidate", "bypass", "induce", "KL", "needs")
        items.append(Table("near-misses", columns, rows, "The candidates nearest to passing, nearest first."))
    return Section("direction", "The direction", tuple(text), tuple(items))


def effect_sections(
    completions: Mapping[str, Completions],
    metric_harmful: Mapping[str, Interval],
    metric_harmless: Mapping[str, Interval],
    trace: DirectionTrace,
) -> tuple[Section, Section]:
    """Necessary and sufficient; and the trace inside the model."""
    rates = {
        name: {c: rate([item.refused for item in replies.of(c)]) for c in replies.conditions}
        for name, replies in completions.items()
    }
    rate_rows = [
        {"prompts": name, "condition": c, "rate": r.rate, "low": r.low, "high": r.high, "n": r.n}
        for name, by_condition in rates.items()
        for c, r in by_condition.items()
    ]
    metric_rows = tuple(
        (name, style.readable(c), f"{m.mean:.3f}", f"{m.low:.3f} to {m.high:.3f}", str(m.n))
        for name, metrics in (("harmful, refused at baseline", metric_harmful), ("harmless", metric_harmless))
        for c, m in metrics.items()
    )
    n = ", ".join(f"{len(replies.of(replies.conditions[0]))} {name}" for name, replies in completions.items())
    effects = Section(
        "effects",
        "Necessary and sufficient",
        (
            "Necessary: does the model stop refusing harmful prompts when the direction is ablated at every write to "
            "the residual stream? Sufficient: does it refuse harmless ones when the direction is added at its layer?",
        ),
        (
            Figure(
                "refusal-rates",
                plot_refusal_rates(rates),
                "Share of replies with one of the paper's refusal phrases, with 95% Clopper-Pearson intervals.",
                n=f"{n} held-out prompts",
                control=RANDOM,
                data=pd.DataFrame(rate_rows),
            ),
            Table(
                "refusal-metric",
                ("prompts", "condition", "mean refusal metric", "95% interval", "n"),
                metric_rows,
                "Log-odds of the refusal tokens after the prompt, held-out prompts, bootstrap intervals.",
            ),
            *(_side_by_side(name, replies) for name, replies in completions.items()),
        ),
    )
    inside = Section(
        "inside",
        "Inside the model",
        (),
        (
            Figure(
                "trace",
                plot_trace(trace),
                "Cosine of the last position's residual stream with the direction, by layer: mean over prompts, band "
                "of one standard deviation.",
                n=f"{trace.cosine.shape[-1]} held-out prompts of each kind",
                data=_trace_frame(trace),
            ),
        ),
    )
    return effects, inside


def _trace_frame(trace: DirectionTrace) -> pd.DataFrame:
    rows = [
        {
            "condition": condition,
            "layer": layer,
            "cosine_mean": float(trace.cosine[i, layer].mean()),
            "cosine_sd": float(trace.cosine[i, layer].std(correction=0)),
            "projection_mean": float(trace.projection[i, layer].mean()),
        }
        for i, condition in enumerate(trace.conditions)
        for layer in range(trace.cosine.shape[1])
    ]
    return pd.DataFrame(rows)


def _side_by_side(name: str, completions: Completions) -> Table:
    """One row a prompt, one column a condition."""
    columns = completions.conditions
    replies = [completions.of(condition) for condition in columns]
    rows = tuple(
        (prompt_replies[0].prompt, *(("✗ " if r.refused else "") + r.response for r in prompt_replies))
        for prompt_replies in zip(*replies, strict=True)
    )
    return Table(
        f"completions-{name}",
        ("prompt", *(style.readable(c) for c in columns)),
        rows,
        f"Greedy replies to {name} prompts, at most {completions.max_new_tokens} tokens; ✗ marks a refusal.",
        searchable=True,
    )


def provenance_section(provenance: Mapping[str, Any]) -> Section:
    """Settings, hashes and versions: enough to run it again."""
    rows = tuple(
        (f"{group}: {key}", plain(value))
        for group in ("settings", "hashes", "versions")
        for key, value in provenance[group].items()
    )
    return Section(
        "provenance", "Provenance", (), (Table("provenance-table", ("what", "value"), rows, "How to run it again."),)
    )
