"""The top of the page in plain words: the findings, how sure they are, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..attribution.section import Inside, causal_sentence
from ..direction.records import Selection, Stability
from ..exactness.records import Certificate
from ..report.claims import few_in
from ..report.page import Card
from ..stats import Rate


def headline(
    summary: Mapping[str, Any],
    selection: Selection,
    inside: Inside | None = None,
    certificate: Certificate | None = None,
    stability: Stability | None = None,
    measured: tuple[str, ...] = (),
    missing: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Summary sentences, cards and notes for ``Page``.

    Args:
        summary: ``summary.json``.
        selection: scores and the chosen direction.
        inside, certificate, stability: what else was measured; None where it was not.
        measured: which of "suffixes" and "evaluation" the page has a section of.
        missing: stages that this model can't have, and why.
    """
    harmful = {name: Rate(**value) for name, value in summary["refusal"]["harmful"].items()}
    harmless = {name: Rate(**value) for name, value in summary["refusal"]["harmless"].items()}
    return {
        "summary": (*filter(None, [few_in(summary)]), *_found(harmful, harmless, inside)),
        "cards": _cards(selection, harmful, harmless),
        "notes": _notes(selection),
        "sure": _sure(selection, harmful, certificate, stability),
        "missing": _missing(inside, stability, measured, missing or {}),
    }


def _found(harmful: Mapping[str, Rate], harmless: Mapping[str, Rate], inside: Inside | None) -> tuple[str, ...]:
    found = [
        _plainly(apart(harmful, "ablation", -1), apart(harmless, "addition", +1)),
        f"Necessary? On {harmful['baseline'].n} held-out harmful prompts the model refuses "
        f"{harmful['baseline'].rate:.0%}; with the direction ablated {harmful['ablation'].rate:.0%}, with a random one "
        f"ablated {harmful['random_ablation'].rate:.0%}. {effect_sentence(harmful, 'ablation', -1)}",
        f"Sufficient? On {harmless['baseline'].n} held-out harmless prompts it refuses "
        f"{harmless['baseline'].rate:.0%}; with the direction added {harmless['addition'].rate:.0%}, with a random one "
        f"of equal norm added {harmless['random_addition'].rate:.0%}. {effect_sentence(harmless, 'addition', +1)}",
    ]
    if inside is not None and inside.heads is not None:
        said = f" {causal_sentence(inside.causal)}" if inside.causal is not None else ""
        found.append(f"What writes it? Most along the direction write {', '.join(inside.heads.labels)}.{said}")
    return tuple(found)


def _plainly(necessary: bool, sufficient: bool) -> str:
    """The answer before its numbers."""
    if necessary and sufficient:
        return (
            "One direction in this model's activations carries its refusals: without it the model refuses fewer "
            "harmful requests, with more of it more harmless ones, each time beyond what a random direction does."
        )
    if necessary:
        return (
            "Without one direction in its activations this model refuses fewer harmful requests, beyond what a random "
            "direction does. That adding it makes the model refuse harmless requests was not shown."
        )
    if sufficient:
        return (
            "With one direction added to its activations this model refuses more harmless requests, beyond what a "
            "random direction does. That refusals of harmful requests need it was not shown."
        )
    return (
        "A direction was found, but this run does not show that it carries refusal: neither taking it out nor adding "
        "it did more than a random direction did."
    )


def apart(rates: Mapping[str, Rate], condition: str, sign: int) -> bool:
    """Whether the interval of an effect lies below (sign -1) or above (+1) its placebo's."""
    effect, placebo = rates[condition], rates[f"random_{condition}"]
    return effect.high < placebo.low if sign < 0 else effect.low > placebo.high


def effect_sentence(rates: Mapping[str, Rate], condition: str, sign: int) -> str:
    """Whether the effect holds beyond its placebo, in words."""
    if apart(rates, condition, sign):
        return "The 95% intervals do not overlap: the effect is the direction's."
    return "The 95% intervals overlap: this run does not show an effect of the direction."


def _cards(selection: Selection, harmful: Mapping[str, Rate], harmless: Mapping[str, Rate]) -> tuple[Card, ...]:
    chosen = selection.chosen
    return (
        Card(chosen.label, "position and layer of the direction", f"norm {chosen.norm:.3g}"),
        _change(harmful, "ablation", "harmful prompts refused, ablated"),
        _change(harmless, "addition", "harmless prompts refused, added"),
        Card(
            f"{selection.score('kl'):.3f}",
            "KL of the next token on harmless prompts, nats",
            f"threshold {selection.thresholds['max_kl']:g}",
        ),
    )


def _change(rates: Mapping[str, Rate], effect: str, label: str) -> Card:
    change = f"{rates['baseline'].rate:.0%} → {rates[effect].rate:.0%}"
    return Card(change, label, f"random: {rates[f'random_{effect}']}")


def _notes(selection: Selection) -> tuple[str, ...]:
    notes = []
    if selection.chosen.relaxed:
        notes.append(
            f"No candidate passed the rule as set. The nearest one was taken, which needs: {selection.chosen.relaxed}."
        )
    if selection.chosen.coeff != 1:
        notes.append(f"Addition adds {selection.chosen.coeff:g} times the direction, where the paper adds it once.")
    return tuple(notes)


def _sure(
    selection: Selection, harmful: Mapping[str, Rate], certificate: Certificate | None, stability: Stability | None
) -> tuple[str, ...]:
    sure = [
        "The direction was extracted, chosen and reported on different prompts. Rates have exact (Clopper-Pearson) "
        "95% intervals, means bootstrap ones; they cover which prompts were drawn, not other prompt sets, seeds or "
        f"system prompts. On harmful prompts, ablated: {harmful['ablation']}.",
        "Each effect stands beside the same with one random direction of equal norm.",
    ]
    if stability is not None:
        pairs, own = stability.pairwise(), stability.wins.get(stability.reference.label)
        again = f"{own.rate:.0%} of them chose the same position and layer" if own else "none chose the same candidate"
        sure.append(
            f"Drawing the training prompts again {stability.resamples} times: {again}; two winners have a mean cosine "
            f"of {pairs.mean:.3f}."
        )
    if certificate is not None:
        bad = [i.name for i in certificate.identities if not i.passed]
        exact = f"The identities behind these numbers hold within rounding in {certificate.dtype}"
        exact = f"Not exact on this model: {'; '.join(bad)}" if bad else exact
        sure.append(f"{exact} (section Exactness certificate).")
    if len(selection.kept) > 1:
        sure.append(f"{len(selection.kept)} candidates pass the rule; another of them could have been chosen.")
    return tuple(sure)


def _missing(
    inside: Inside | None, stability: Stability | None, measured: tuple[str, ...], lacking: Mapping[str, str]
) -> tuple[str, ...]:
    missing = [
        "Refusal is judged by the paper's phrases: a reply without them is not refused, which does not mean that it "
        "helps, or that it is safe or coherent."
    ]
    missing += [f"Not to be had on this model: {name} ({why})." for name, why in lacking.items()]
    absent = []
    if "evaluation" not in measured:
        absent.append("other judges and the other conditions (`refusal-lens evaluate`)")
    absent.append("what else the intervention changes: loss and benchmarks (the scripts in analyses/)")
    if stability is None and "stability" not in lacking:
        absent.append("stability under other training prompts (`--stability 20`)")
    if inside is None and not lacking:
        absent.append("which heads and tokens write the direction (`--attribution`)")
    if "suffixes" not in measured:
        absent.append("adversarial suffixes (`refusal-lens hijack`)")
    return (*missing, f"Not measured here: {'; '.join(absent)}.")
