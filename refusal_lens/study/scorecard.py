"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..report.page import Section, Table

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class PaperModel:
    """What the paper (p) and its stored public run (r) report of one model; NaN where they do not.

    Attributes:
        names: endings of the model's hub ids.
        chosen: position and layer of the paper's direction (Table 5).
        bypass, induce, kl: its scores (Table 5).
        baseline, ablation: refusal on JailbreakBench in the public run.
        addition: refusal on harmless prompts with +r in the public run.
    """

    names: tuple[str, ...]
    chosen: tuple[int, int]
    bypass: float
    induce: float
    kl: float
    baseline: float
    ablation: float
    addition: float


PAPER = (
    PaperModel(("gemma-2b-it",), (-2, 10), -14.435, 6.709, 0.067, 0.91, 0.00, 1.00),
    PaperModel(("llama-2-7b-chat-hf", "llama-2-7b-chat"), (-1, 14), -5.295, 5.941, 0.073, 0.97, 0.07, 1.00),
    PaperModel(("meta-llama-3-8b-instruct",), (-5, 12), -9.715, 7.681, 0.064, 0.95, 0.00, 1.00),
    PaperModel(("qwen-1_8b-chat",), (-1, 15), -4.415, 1.641, 0.077, 0.70, 0.01, 0.98),
    PaperModel(("yi-6b-chat",), (-5, 20), -6.693, 1.968, 0.046, 0.62, 0.02, 0.88),
)


def scorecard_section(summary: Mapping) -> Section:
    """Paper, public run and this run side by side, for a ``summary.json``; "not measured" where there is nothing.

    The paper's columns are filled only where this run used the same model.
    """
    ending = str(summary["model"]).rstrip("/").split("/")[-1].lower()
    known = next((m for m in PAPER if ending in m.names), None)
    direction, scores, refusal = summary["direction"], summary["scores"], summary["refusal"]

    def rate(name: str, condition: str) -> str:
        r = refusal[name][condition]
        r = r if isinstance(r, Mapping) else vars(r)
        return f"{r['rate']:.0%} [{r['low']:.0%}, {r['high']:.0%}], n = {r['n']}"

    def of(name: str, form: str = "{:.3f}") -> str:
        return form.format(getattr(known, name)) if known else NOT_MEASURED

    none = NOT_MEASURED
    rows = (
        (
            "position, layer (Table 5)",
            str(known.chosen) if known else none,
            none,
            f"({direction['pos']}, {direction['layer']})",
        ),
        *((f"{name} (Table 5)", of(name), none, f"{scores[name]:.3f}") for name in ("bypass", "induce", "kl")),
        ("harmful refused, baseline (Fig. 1)", none, of("baseline", "{:.0%}"), rate("harmful", "baseline")),
        ("harmful refused, ablation (Fig. 1)", none, of("ablation", "{:.0%}"), rate("harmful", "ablation")),
        ("harmless refused, addition (Fig. 3)", none, of("addition", "{:.0%}"), rate("harmless", "addition")),
    )
    text = (
        "The paper and its public run used this model."
        if known
        else f"The paper has no numbers for {summary['model']}: its columns are not measured.",
        "Prompts, lengths of replies and versions may differ between the columns.",
    )
    columns = ("what", "paper", "public run", "this run")
    return Section("scorecard", "Scorecard", text, (Table("scorecard-table", columns, rows, "Side by side."),))
