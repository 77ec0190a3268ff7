"""Sections of a study's report: model and prompts, the paper's numbers beside this run's, provenance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..behaviour.section import calibration_figure
from ..data.prompts import PromptSet
from ..refusal.records import RefusalTokens
from ..report.page import Section, Table, plain

NOT_MEASURED = "not measured"


# Ending of a hub id -> position and layer, and scores, of the paper's direction (Table 5); then, of its public run, the
# refusal rates on JailbreakBench, and the one on harmless prompts with +r.
COLUMNS = ("chosen", "bypass", "induce", "kl", "baseline", "ablation", "addition")
LLAMA_2 = ((-1, 14), -5.295, 5.941, 0.073, 0.97, 0.07, 1.00)
PAPER = {
    "gemma-2b-it": ((-2, 10), -14.435, 6.709, 0.067, 0.91, 0.00, 1.00),
    "llama-2-7b-chat-hf": LLAMA_2,
    "llama-2-7b-chat": LLAMA_2,
    "meta-llama-3-8b-instruct": ((-5, 12), -9.715, 7.681, 0.064, 0.95, 0.00, 1.00),
    "qwen-1_8b-chat": ((-1, 15), -4.415, 1.641, 0.077, 0.70, 0.01, 0.98),
    "yi-6b-chat": ((-5, 20), -6.693, 1.968, 0.046, 0.62, 0.02, 0.88),
}


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
        (
            Table("model-facts", ("what", "value"), tuple(rows), "The model as loaded and the prompts as used."),
            *filter(None, [calibration_figure(tokens)]),
        ),
    )


def scorecard_section(summary: Mapping) -> Section:
    """Paper, public run and this run (``summary.json``) side by side; the paper's columns are filled for its models."""
    ending = str(summary["model"]).rstrip("/").split("/")[-1].lower()
    known = dict(zip(COLUMNS, PAPER[ending], strict=True)) if ending in PAPER else {}
    direction, scores, refusal = summary["direction"], summary["scores"], summary["refusal"]

    def rate(name: str, condition: str) -> str:
        r = refusal[name][condition]
        return f"{r['rate']:.0%} [{r['low']:.0%}, {r['high']:.0%}], n = {r['n']}"

    def of(name: str, form: str = "{:.3f}") -> str:
        return form.format(known[name]) if known else NOT_MEASURED

    none, chosen = NOT_MEASURED, f"({direction['pos']}, {direction['layer']})"
    rows = (
        ("position, layer (Table 5)", of("chosen", "{}"), none, chosen),
        *((f"{name} (Table 5)", of(name), none, f"{scores[name]:.3f}") for name in ("bypass", "induce", "kl")),
        ("harmful refused, baseline (Fig. 1)", none, of("baseline", "{:.0%}"), rate("harmful", "baseline")),
        ("harmful refused, ablation (Fig. 1)", none, of("ablation", "{:.0%}"), rate("harmful", "ablation")),
        ("harmless refused, addition (Fig. 3)", none, of("addition", "{:.0%}"), rate("harmless", "addition")),
    )
    unknown = f"The paper has no numbers for {summary['model']}, so its columns say not measured."
    text = (
        "The paper and its public run used this model." if known else unknown,
        "Prompts, reply lengths and versions may differ between the columns.",
    )
    columns = ("what", "paper", "public run", "this run")
    return Section("scorecard", "Scorecard", text, (Table("scorecard-table", columns, rows, "Side by side."),))


def provenance_section(provenance: Mapping[str, Any], costs: Mapping[str, Sequence[float]]) -> Section:
    """Settings, hashes and versions, enough to reproduce the run; seconds, passes and tokens of each stage."""
    rows = tuple(
        (f"{group}: {key}", "not set" if value in (None, [], ()) else plain(value))
        for group in ("settings", "hashes", "versions")
        for key, value in provenance[group].items()
    )
    again = Table("provenance-table", ("what", "value"), rows, "How to run it again.")
    if not costs:
        return Section("provenance", "Provenance", (), (again,))
    known = ([x for x in column if not math.isnan(x)] for column in zip(*costs.values(), strict=True))
    took = {**costs, "together": [math.fsum(column) if column else math.nan for column in known]}
    table = Table(
        "stage-costs",
        ("stage", "seconds", "forward passes", "tokens"),
        tuple((plain(name), *cost_cells(cost)) for name, cost in took.items()),
        "What each stage took when it was last run, without the model's loading. Passes that end early count as one; "
        "tokens are positions, padding included.",
    )
    return Section("provenance", "Provenance", (), (again, table))


def cost_cells(cost: Sequence[float]) -> tuple[str, ...]:
    """Seconds, passes and tokens as text; "" for what is not known."""
    return tuple("" if math.isnan(x) else f"{x:{form}}" for x, form in zip(cost, (".1f", ",.0f", ",.0f"), strict=True))
