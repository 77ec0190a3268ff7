"""The top of the page in plain words: the findings, how sure they are, and what was not measured."""

from collections.abc import Mapping
from typing import Any

from ..attribution.section import causal_sentence
from ..direction.records import Selection
from ..hijacking.section import suffix_findings
from ..report.claims import few_in
from ..report.page import Card
from ..stats import Rate


def headline(study: Any) -> dict[str, Any]:
    """Summary sentences, cards and notes for ``Page``, of a ``Study``."""
    refusal = study.summary["refusal"]
    harmful, harmless = ({k: Rate(**v) for k, v in refusal[kind].items()} for kind in ("harmful", "harmless"))
    return {
        "summary": (*filter(None, [few_in(study.summary)]), *_found(study, harmful, harmless)),
        "cards": _cards(study.selection, harmful, harmless),
        "notes": _notes(study.selection),
        "sure": _sure(study, harmful),
        "missing": _missing(study),
    }


def _found(study: Any, harmful: Mapping[str, Rate], harmless: Mapping[str, Rate]) -> tuple[str, ...]:
    found = [
        _plainly(apart(harmful, "ablation", -1), apart(harmless, "addition", +1)),
        f"Necessary? On {harmful['baseline'].n} held-out harmful prompts the model refuses "
        f"{harmful['baseline'].rate:.0%}; with the direction ablated {harmful['ablation'].rate:.0%}, with a random one "
        f"ablated {harmful['random_ablation'].rate:.0%}. {effect_sentence(harmful, 'ablation', -1)}",
        f"Sufficient? On {harmless['baseline'].n} held-out harmless prompts it refuses "
        f"{harmless['baseline'].rate:.0%}; with the direction added {harmless['addition'].rate:.0%}, with a random one "
        f"of equal norm added {harmless['random_addition'].rate:.0%}. {effect_sentence(harmless, 'addition', +1)}",
    ]
    if study.heads is not None:
        said = f" {causal_sentence(study.causal)}" if study.causal is not None else ""
        found.append(f"What writes it? Most along the direction write {', '.join(study.heads.labels)}.{said}")
    if study.suffixes is not None:
        found += suffix_findings(study.suffixes)
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

    def change(rates: Mapping[str, Rate], effect: str, label: str) -> Card:
        before_after = f"{rates['baseline'].rate:.0%} → {rates[effect].rate:.0%}"
        return Card(before_after, label, f"random: {rates[f'random_{effect}']}")

    return (
        Card(chosen.label, "position and layer of the direction", f"norm {chosen.norm:.3g}"),
        change(harmful, "ablation", "harmful prompts refused, ablated"),
        change(harmless, "addition", "harmless prompts refused, added"),
        Card(
            f"{selection.score('kl'):.3f}",
            "KL of the next token on harmless prompts, nats",
            f"threshold {selection.thresholds['max_kl']:g}",
        ),
    )


def _notes(selection: Selection) -> tuple[str, ...]:
    notes = []
    if selection.chosen.relaxed:
        notes.append(
            f"No candidate passed the rule as set. The nearest one was taken, which needs: {selection.chosen.relaxed}."
        )
    if selection.chosen.coeff != 1:
        notes.append(f"Addition adds {selection.chosen.coeff:g} times the direction, where the paper adds it once.")
    return tuple(notes)


def _sure(study: Any, harmful: Mapping[str, Rate]) -> tuple[str, ...]:
    stability, certificate, n_kept = study.stability, study.certificate, len(study.selection.kept)
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
    if n_kept > 1:
        sure.append(f"{n_kept} candidates pass the rule; another of them could have been chosen.")
    return tuple(sure)


def _missing(study: Any) -> tuple[str, ...]:
    missing = [
        "Refusal is judged by the paper's phrases: a reply without them is not refused, which does not mean that it "
        "helps, or that it is safe or coherent."
    ]
    missing += [f"Not to be had on this model: {name} ({why})." for name, why in study.missing.items()]
    absent = []
    if study.evaluation is None:
        absent.append("other judges and the other conditions (`refusal-lens evaluate`)")
    absent.append("what else the intervention changes: loss and benchmarks (the scripts in analyses/)")
    if study.stability is None and "stability" not in study.missing:
        absent.append("stability under other training prompts (`--stability 20`)")
    if not study.inside and not study.missing:
        absent.append("which heads and tokens write the direction (`--attribution`)")
    if study.suffixes is None:
        absent.append("adversarial suffixes (`refusal-lens hijack`)")
    return (*missing, f"Not measured here: {'; '.join(absent)}.")
