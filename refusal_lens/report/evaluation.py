"""Chapters on behaviour, from records alone: conditions and judges, what else changes, stability, transfer, and the
scorecard of paper, public run and this run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ..behaviour_records import EvaluationTable, HarnessScores, Losses, RefusalProxy, SystemPrompts
from ..direction_records import EffectMatrix, FineTuning, Stability, SubspaceEffects
from ..plots import evaluation as plots
from ..plots import plot_trace
from ..records import DirectionTrace
from .page import Figure, Section, Table, plain
from .tables import trace_frame

RANDOM = "a random direction of equal norm"
NOT_MEASURED = "not measured"


def _table(id: str, frame: pd.DataFrame, caption: str, searchable: bool = False) -> Table:
    rows = tuple(tuple(plain(v) if not isinstance(v, str) else v for v in row) for row in frame.itertuples(index=False))
    return Table(id, tuple(map(str, frame.columns)), rows, caption, searchable, frame)


def evaluation_section(table: EvaluationTable) -> Section:
    """Rates by condition, prompt set and judge; agreement of the judges and where they differ."""
    frame = table.to_frame()
    items: list[Figure | Table] = []
    for judge in dict.fromkeys(frame["judge"]):
        rows = frame[frame["judge"] == judge]
        what = "safe" if rows["kind"].iloc[0] == "safety" else "refused"
        n = ", ".join(f"{int(g['n'].max())} {name}" for name, g in rows.groupby("prompts", sort=False))
        items.append(
            Figure(
                f"evaluation-{_anchor(judge)}",
                plots.plot_evaluation(table, judge),
                f"Share of replies {what} by {judge}, with 95% Clopper-Pearson intervals.",
                n=f"{n} prompts",
                control=RANDOM,
                data=rows,
            )
        )
    for a in table.agreements:
        items.append(
            _table(
                f"disagreements-{_anchor(a.first)}-{_anchor(a.second)}",
                a.to_frame(),
                f"{a.first} and {a.second} agree on {a.agreed}; Cohen's kappa {a.kappa:.2f}. Where they differ.",
                searchable=True,
            )
        )
    return Section(
        "evaluation",
        "Behaviour under every condition",
        (
            "Ablation, by hooks and by weights (orthogonalized), asks whether the direction is necessary; addition, "
            "whether it is sufficient; subtraction is the paper's other bypass. Each stands beside a random direction.",
        ),
        tuple(items),
    )


def losses_section(records: Sequence[Losses]) -> Section:
    """CE loss and perplexity."""
    frame = pd.concat([record.to_frame() for record in records], ignore_index=True)
    n = ", ".join(f"{len(r.tokens)} {r.dataset} ({int(r.tokens.sum())} tokens)" for r in records)
    return Section(
        "losses",
        "What else changes: loss",
        ("Mean cross-entropy a token. Of chat completions only the completion's tokens count.",),
        (
            Figure(
                "ce-change",
                plots.plot_losses(records),
                "Change of the loss, with bootstrap 95% intervals over texts.",
                n=n,
                control=RANDOM,
                data=frame,
            ),
            _table("ce-loss", frame.round(4), "Cross-entropy in nats a token, and perplexity."),
        ),
    )


def harness_section(scores: HarnessScores | None) -> Section:
    """Benchmarks; says so when they were not measured."""
    title = "What else changes: benchmarks"
    if scores is None:
        return Section("harness", title, ("Not measured: the LM Evaluation Harness was not run (extra `evals`).",))
    frame = scores.to_frame()
    text = (f"LM Evaluation Harness {scores.version}; intervals of 99%, as in the paper.",)
    control = RANDOM if any(c.startswith("random") for c in frame["condition"]) else "none was run"
    counts = ", ".join(f"{int(n)} {task}" for task, n in frame.groupby("task", sort=False)["n"].max().items())
    figure = Figure(
        "harness-scores",
        plots.plot_harness(scores),
        "Benchmark scores by condition, with 99% intervals.",
        n=f"documents: {counts}",
        control=control,
        data=frame,
    )
    return Section("harness", title, text, (figure, _table("harness-table", frame.round(4), "The harness's scores.")))


def proxy_section(record: RefusalProxy) -> Section:
    """The refusal metric against judged replies."""
    a = record.auroc
    text = (
        f"A refused prompt has a higher metric than an answered one with probability {a.mean:.3f} [{a.low:.3f}, "
        f"{a.high:.3f}] (AUROC). The sign of the metric and the judge agree on {record.accuracy:.0%} of {a.n} prompts.",
    )
    figure = Figure(
        "proxy",
        plots.plot_proxy(record),
        "Refusal metric of prompts whose replies were judged refused and answered.",
        n=f"{a.n} prompts",
        control="none applies: two readings of the same prompts",
        data=record.to_frame(),
    )
    return Section("proxy", "The refusal metric as a proxy", text, (figure,))


def stability_section(record: Stability) -> Section:
    """Bootstrap of the selection."""
    pairs = record.pairwise()
    text = (
        f"Training prompts ({record.n_harmful} harmful, {record.n_harmless} harmless) drawn again {record.resamples} "
        f"times: mean cosine between two winners {pairs.mean:.3f}; in {record.relaxed} resamples no candidate passed "
        "the rule and the nearest one was taken.",
    )
    figure = Figure(
        "stability",
        plots.plot_stability(record),
        "Candidates by the share of resamples they won (all prompts' winner in green), and cosines of the winners.",
        n=f"{record.resamples} resamples of {record.n_harmful} harmful and {record.n_harmless} harmless prompts",
        control="two random directions of this size have a cosine of about "
        f"{(2 / math.pi / len(record.reference.unit)) ** 0.5:.2f} in magnitude",
        data=record.to_frame(),
    )
    return Section("stability", "Stability of the selection", text, (figure,))


def fine_tuning_section(record: FineTuning) -> Section:
    """The old direction on a fine-tuned model."""
    last = record.steps[-1]
    text = (
        f"Fine-tuned on {record.n_benign} benign completions (AdamW, lr {record.lr:g}, batches of "
        f"{record.batch_size}): held-out loss {record.loss[0]:.3f} before, {record.loss[-1]:.3f} after {last} steps; "
        f"the direction of the tuned model has cosine {record.cosine[-1]:.3f} with the one found before.",
    )
    figure = Figure(
        "fine-tuning",
        plots.plot_fine_tuning(record),
        "Refusal with the direction found before fine-tuning ablated or added; 95% Clopper-Pearson intervals.",
        n=f"{record.harmful[0]['baseline'].n} harmful, {record.harmless[0]['baseline'].n} harmless prompts",
        control=RANDOM,
        data=record.to_frame(),
    )
    return Section("fine-tuning", "Stability after fine-tuning on benign data", text, (figure,))


def subspace_section(record: SubspaceEffects) -> Section:
    """More than one direction."""
    figure = Figure(
        "subspaces",
        plots.plot_subspaces(record),
        "Ablating the first directions of each subspace; bootstrap 95% intervals.",
        n=f"{record.baseline.n} harmful prompts",
        control="a random subspace of equal size",
        data=record.to_frame(),
    )
    return Section("subspaces", "More than one direction", (), (figure,))


def effects_section(record: EffectMatrix, id: str, title: str) -> Section:
    """A matrix of directions and grounds."""
    sizes = sorted({cell.n for cell in record.change[0]})
    figure = Figure(
        id,
        plots.plot_effects(record),
        "Change of each metric when each direction is " + ("ablated" if record.effect == "ablation" else "added") + ".",
        n=f"{' or '.join(map(str, sizes))} prompts a cell",
        control=RANDOM,
        data=record.to_frame(),
    )
    return Section(id, title, (), (figure,))


def system_section(record: SystemPrompts) -> Section:
    """Rates by system prompt."""
    text = tuple(
        "{}: mean {:.0%}, SD {:.0%} over {} system prompts.".format(c, *record.spread(c), len(record.systems))
        for c in record.rates[0]
    )
    figure = Figure(
        "system-prompts",
        plots.plot_system_prompts(record),
        f"Refusal rate on {record.prompt_set} prompts by system prompt, 95% Clopper-Pearson intervals.",
        n=f"{next(iter(record.rates[0].values())).n} prompts a bar",
        control=RANDOM,
        data=record.to_frame(),
    )
    return Section("system", "System prompts", text, (figure,))


def trace_section(trace: DirectionTrace, id: str, title: str) -> Section:
    """A trace by layer, e.g. base against chat."""
    figure = Figure(
        id,
        plot_trace(trace),
        "Cosine of the last position with the direction by layer; band of one standard deviation.",
        n=f"{trace.cosine.shape[-1]} prompts a line",
        control="the lines stand beside each other",
        data=trace_frame(trace),
    )
    return Section(id, title, (), (figure,))


# -- the scorecard --------------------------------------------------------------------------------------------------


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


def _anchor(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())
