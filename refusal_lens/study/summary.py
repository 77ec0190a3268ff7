"""The top of the page in plain words: the findings, how certain they are, and what was not measured."""

from collections.abc import Mapping
from typing import Any

from ..attribution.section import causal_sentence
from ..direction.records import Selection
from ..hijacking.section import few_refused, suffix_findings
from ..report.claims import NOT_SHOWN, few_in, grade_beyond, net_effect, percent
from ..report.page import Card
from ..stats import Rate

EFFECTS = {"harmful": "ablation", "harmless": "addition"}


def headline(study: Any) -> dict[str, Any]:
    """Summary sentences, cards and notes for ``Page``, of a ``Study``."""
    refusal = study.summary["refusal"]
    harmful, harmless = ({k: Rate(**v) for k, v in refusal[kind].items()} for kind in ("harmful", "harmless"))
    causal = None if study.causal is None else len(study.causal.prompts)
    few = few_in(study.summary, causal), "" if study.suffixes is None else few_refused(study.suffixes)
    return {
        "caution": tuple(filter(None, few)),
        "summary": _found(study, harmful, harmless),
        "cards": _cards(study.selection, harmful, harmless),
        "notes": _notes(study.selection),
        "sure": _sure(study, harmful),
        "missing": _missing(study),
    }


def _found(study: Any, harmful: Mapping[str, Rate], harmless: Mapping[str, Rate]) -> tuple[str, ...]:
    found = [
        _plainly(graded(harmful, "ablation", -1), graded(harmless, "addition", +1)),
        f"Necessary? On {harmful['baseline'].n} held-out harmful prompts the model refuses "
        f"{harmful['baseline'].rate:.0%}; with the direction ablated {harmful['ablation'].rate:.0%}, with a random one "
        f"ablated {harmful['random_ablation'].rate:.0%}. {effect_sentence(harmful, 'ablation', -1)}",
        f"Sufficient? On {harmless['baseline'].n} held-out harmless prompts it refuses "
        f"{harmless['baseline'].rate:.0%}; with the direction added {harmless['addition'].rate:.0%}, with a random one "
        f"of equal norm added {harmless['random_addition'].rate:.0%}. {effect_sentence(harmless, 'addition', +1)}",
    ]
    found.append(_said(study))
    if study.heads is not None:
        said = f" {causal_sentence(study.causal)}" if study.causal is not None else ""
        found.append(f"What writes it? The heads that write most along it are {', '.join(study.heads.labels)}.{said}")
    if study.suffixes is not None:
        found += suffix_findings(study.suffixes)
    return tuple(found)


def _said(study: Any) -> str:
    """What the replies are that are not refusals: "not refused" is not "answered"."""
    classes = {kind: study.completions[kind].classes[name] for kind, name in EFFECTS.items()}
    kinds = {
        kind: ", ".join(f"{name} {percent(share)}" for name, share in found.items()) for kind, found in classes.items()
    }
    return (
        f"What do the replies say, by rules that need no model? To harmful prompts, ablated: {kinds['harmful']}. To "
        f"harmless prompts, added: {kinds['harmless']}."
    )


def _plainly(necessary: str, sufficient: str) -> str:
    """The answer before its numbers, by the grades of both effects."""
    lost, turned = necessary.removesuffix(" it"), sufficient.removesuffix(" it")
    if NOT_SHOWN not in (necessary, sufficient):
        return (
            f"Without one direction in its activations, this model loses {lost} its refusals of harmful requests; "
            f"adding it turns {turned} its answers to harmless requests into refusals. A random direction does less "
            "in both cases."
        )
    if necessary != NOT_SHOWN:
        return (
            f"Without one direction in its activations, this model loses {lost} its refusals of harmful requests, "
            "beyond what a random direction does. It was not shown that adding it makes the model refuse harmless ones."
        )
    if sufficient != NOT_SHOWN:
        return (
            f"Adding one direction to its activations turns {turned} this model's answers to harmless requests into "
            "refusals, beyond what a random direction does. It was not shown that refusals of harmful requests need it."
        )
    return (
        "A direction was found, but this run does not show that it mediates refusal: neither ablating it nor adding "
        "it did more than a random direction did."
    )


def graded(rates: Mapping[str, Rate], condition: str, sign: int) -> str:
    """Grade of an effect on the refusal rate, sign -1 for refusals that are gone, +1 for new ones."""
    return grade_beyond(*(net_effect(rates, name, sign) for name in (condition, f"random_{condition}")))


def effect_sentence(rates: Mapping[str, Rate], condition: str, sign: int) -> str:
    """Size of an effect and of its placebo, with their intervals, and its grade."""
    effect, placebo = (percent(net_effect(rates, name, sign)) for name in (condition, f"random_{condition}"))
    what = "of the refusals are gone" if sign < 0 else "of the answers became refusals"
    return f"{effect} {what} (a random direction: {placebo}): {graded(rates, condition, sign)}."


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
            "next-token KL on harmless prompts, nats",
            f"threshold {selection.thresholds['max_kl']:g}",
        ),
    )


def _notes(selection: Selection) -> tuple[str, ...]:
    notes = []
    if selection.chosen.relaxed:
        notes.append(
            f"No candidate passed the rule as set. The nearest one was taken; it needs: {selection.chosen.relaxed}."
        )
    if selection.chosen.coeff != 1:
        notes.append(f"Addition uses {selection.chosen.coeff:g} times the direction; the paper adds it once.")
    return tuple(notes)


def _sure(study: Any, harmful: Mapping[str, Rate]) -> tuple[str, ...]:
    stability, certificate, n_kept = study.stability, study.certificate, len(study.selection.kept)
    sure = [
        "The direction was extracted, chosen and reported on different prompts. Rates have exact (Clopper-Pearson) "
        "95% intervals, means bootstrap ones; they cover the sampling of prompts, not other prompt sets, seeds or "
        f"system prompts. On harmful prompts, ablated: {harmful['ablation']}.",
        "Each effect is compared with that of one random direction of equal norm.",
    ]
    if stability is not None:
        pairs, own = stability.pairwise(), stability.wins.get(stability.reference.label)
        again = f"{own.rate:.0%} of them chose the same position and layer" if own else "none chose the same candidate"
        sure.append(
            f"Training prompts resampled {stability.resamples} times: {again}; two winners have a mean cosine of "
            f"{pairs.mean:.3f}."
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
        "Refusal is judged by the paper's phrases: a reply without them counts as not refused, which does not mean "
        "that it is helpful, safe or coherent."
    ]
    missing += [f"Not available on this model: {name} ({why})." for name, why in study.missing.items()]
    absent = []
    if study.evaluation is None:
        absent.append("other judges and the other conditions (`refusal-lens evaluate`)")
    absent.append("side effects of the intervention on loss and benchmarks (the scripts in analyses/)")
    if study.stability is None and "stability" not in study.missing:
        absent.append("stability over resampled training prompts (`--stability 20`)")
    if not study.inside and not study.missing:
        absent.append("which heads and tokens write the direction (`--attribution`)")
    if study.suffixes is None:
        absent.append("adversarial suffixes (`refusal-lens hijack`)")
    return (*missing, f"Not measured here: {'; '.join(absent)}.")
