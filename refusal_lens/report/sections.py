"""The chapters of the report, from records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..direction_records import Stability
from ..plots import plot_refusal_rates, plot_selection, style
from ..prompts import PromptSet
from ..records import CandidateDirections, Completions, RefusalTokens, Selection
from ..stats import Interval, rate
from .evaluation import RANDOM, stability_section
from .page import Figure, Item, Section, Table, plain


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


def direction_section(
    selection: Selection, candidates: CandidateDirections, stability: Stability | None = None
) -> Section:
    """The selection grid, why candidates were dropped, and how stable the choice is."""
    frame = selection.scores.to_frame()
    frame["reason"] = [reason for row in selection.reasons for reason in row]
    text = [
        f"Chosen: position {selection.chosen.pos}, layer {selection.chosen.layer}. Bypass "
        f"{selection.score('bypass'):.3f} (baseline {selection.baseline_harmful:.3f}), induce "
        f"{selection.score('induce'):.3f} (baseline {selection.baseline_harmless:.3f}), KL "
        f"{selection.score('kl'):.4f} nats. {_count(len(selection.kept), 'candidate')} known to pass the rule.",
    ]
    norms = candidates.mean_diff.norm(dim=-1).flatten().numpy()
    has_direction = (norms > 0) & (norms < float("inf"))
    if frame.loc[has_direction, ["bypass", "induce", "kl"]].isna().to_numpy().any():
        text.append("Scores that the winner did not depend on were not computed; a full grid computes them all.")
    items: list[Item] = [
        Figure(
            "selection-grid",
            plot_selection(selection, candidates.pos_labels),
            "The three selection scores of each candidate by layer, one line a post-instruction position; thresholds "
            "dashed, the layer cut dotted, the chosen one starred.",
            n=f"{selection.n_harmful} harmful and {selection.n_harmless} harmless validation prompts",
            control="the dashed baseline (no intervention); random directions are in the next section",
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
    items.append(_candidates(selection, frame))
    if stability is None:
        text.append("Stability under other training prompts was not measured; `--stability 20` measures it.")
    else:
        told = stability_section(stability)
        text += told.text
        items += told.items
    return Section("direction", "The direction", tuple(text), tuple(items))


def _count(n: int, what: str) -> str:
    return f"{n} {what} is" if n == 1 else f"{n} {what}s are"


def _candidates(selection: Selection, frame: pd.DataFrame) -> Table:
    """Every candidate and what kept it out: those that pass by bypass, then the others by induce."""
    best = selection.chosen
    taken = (frame["pos"] == best.pos) & (frame["layer"] == best.layer)
    passes = frame["reason"] == ""
    group = (~passes).astype(int).where(~taken, -1)
    order = frame.assign(taken=taken, group=group, key=frame["bypass"].where(passes, -frame["induce"]))
    order = order.sort_values(["group", "key"], na_position="last", kind="stable")
    rows = []
    for row in order.to_dict("records"):
        place, reason = f"({row['pos']}, {row['layer']})", str(row["reason"])
        numbers = (plain(float(row[n])) if row[n] == row[n] else "" for n in ("bypass", "induce", "kl"))
        words = ("chosen", reason) if row["taken"] else (reason or "passes",)
        rows.append((place, *numbers, "; ".join(word for word in words if word)))
    return Table(
        "candidates",
        ("candidate", "bypass", "induce", "KL", "what became of it"),
        tuple(rows),
        "Every candidate (position, layer) and what kept it out: the chosen one, the others that pass, lowest bypass "
        "first, then the rest, highest induce first. Empty: not needed, so not computed.",
        searchable=True,
        data=frame,
    )


def effect_section(
    completions: Mapping[str, Completions],
    metric_harmful: Mapping[str, Interval],
    metric_harmless: Mapping[str, Interval],
) -> Section:
    """Necessary and sufficient: rates, the refusal metric, and the replies side by side."""
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
    return Section(
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
                control=f"{RANDOM} (hatched)",
                data=pd.DataFrame(rate_rows),
                wide=False,
            ),
            Table(
                "refusal-metric",
                ("prompts", "condition", "mean refusal metric", "95% interval", "n"),
                metric_rows,
                "Log-odds of the refusal tokens after the prompt, held-out prompts, bootstrap intervals. Control: "
                f"{RANDOM}.",
            ),
            *(_side_by_side(name, replies) for name, replies in completions.items()),
        ),
    )


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
        f"Greedy replies to {len(rows)} {name} prompts, at most {completions.max_new_tokens} tokens; ✗ marks a "
        "refusal.",
        searchable=True,
    )


def provenance_section(provenance: Mapping[str, Any]) -> Section:
    """Settings, hashes and versions: enough to run it again."""
    rows = tuple(
        (f"{group}: {key}", "not set" if value in (None, [], ()) else plain(value))
        for group in ("settings", "hashes", "versions")
        for key, value in provenance[group].items()
    )
    return Section(
        "provenance", "Provenance", (), (Table("provenance-table", ("what", "value"), rows, "How to run it again."),)
    )
