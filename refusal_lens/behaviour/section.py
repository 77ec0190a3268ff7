"""Report sections on behaviour, from records alone: replies and judges, losses, benchmarks, the metric as a proxy."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ..refusal.records import Completions, RefusalTokens
from ..report import style
from ..report.page import RANDOM_DIRECTION, Figure, Section, Table, anchor, frame_table
from ..stats import Interval
from .false_refusal_records import OverRefusal
from .figures import plot_calibration, plot_losses, plot_refusal_rates, plot_reply_classes
from .records import EvaluationTable, HarnessScores, Losses, RefusalProxy


def evaluation_section(table: EvaluationTable) -> Section:
    """Rates by condition, prompt set and judge; agreement of the judges and where they differ."""
    frame = table.to_frame()
    items: list[Figure | Table] = []
    for judge in dict.fromkeys(frame["judge"]):
        rows = frame[frame["judge"] == judge]
        what = "safe" if rows["kind"].iloc[0] == "safety" else "refused"
        n = ", ".join(f"{int(g['n'].max())} {name}" for name, g in rows.groupby("prompts", sort=False))
        caption = f"Share of replies {what} by {judge}, with 95% Clopper-Pearson intervals."
        rest = (caption, f"{n} prompts", RANDOM_DIRECTION)
        items.append(Figure.of(f"evaluation-{anchor(judge)}", table, *rest, data=rows, judge=judge))
    for a in table.agreements:
        id = f"disagreements-{anchor(a.first)}-{anchor(a.second)}"
        caption = f"{a.first} and {a.second} agree on {a.agreed}; Cohen's kappa {a.kappa:.2f}. Where they differ."
        items.append(frame_table(id, a.to_frame(), caption, searchable=True))
    text = (
        "Ablation, by hooks and by weights (orthogonalized), asks whether the direction is necessary; addition, "
        "whether it is sufficient; subtraction is the paper's alternative. Each has a random direction as placebo."
    )
    return Section("evaluation", "Behaviour under every condition", (text,), tuple(items))


def losses_section(records: Sequence[Losses]) -> Section:
    """CE loss and perplexity."""
    frame = pd.concat([record.to_frame() for record in records], ignore_index=True)
    n = ", ".join(f"{len(r.tokens)} {r.dataset} ({int(r.tokens.sum())} tokens)" for r in records)
    text = "Mean cross-entropy per token. In chat completions, only the completion's tokens count."
    caption = "Change of the loss, with bootstrap 95% intervals over texts."
    figure = Figure("ce-change", plot_losses(records), caption, n, RANDOM_DIRECTION, frame)
    table = frame_table("ce-loss", frame.round(4), "Cross-entropy in nats per token, and perplexity.")
    return Section("losses", "Side effects: loss", (text,), (figure, table))


def harness_section(scores: HarnessScores | None) -> Section:
    """Benchmarks; says so when they were not measured."""
    title = "Side effects: benchmarks"
    if scores is None:
        return Section("harness", title, ("Not measured: the LM Evaluation Harness was not run (extra `evals`).",))
    frame = scores.to_frame()
    text = f"LM Evaluation Harness {scores.version}; intervals of 99%, as in the paper."
    control = RANDOM_DIRECTION if any(c.startswith("random") for c in frame["condition"]) else "none was run"
    counts = ", ".join(f"{int(n)} {task}" for task, n in frame.groupby("task", sort=False)["n"].max().items())
    caption = "Benchmark scores by condition, with 99% intervals."
    figure = Figure.of("harness-scores", scores, caption, f"documents: {counts}", control)
    table = frame_table("harness-table", frame.round(4), "The harness's scores.")
    return Section("harness", title, (text,), (figure, table))


def proxy_section(record: RefusalProxy) -> Section:
    """The refusal metric against judged replies."""
    a = record.auroc
    text = (
        f"A refused prompt has a higher metric than an answered one with probability {a.mean:.3f} [{a.low:.3f}, "
        f"{a.high:.3f}] (AUROC). The sign of the metric and the judge agree on {record.accuracy:.0%} of {a.n} prompts.",
    )
    caption = "Refusal metric of prompts whose replies were judged refusals, and of those that were answered."
    control = "none applies: two readings of the same prompts"
    figure = Figure.of("proxy", record, caption, f"{a.n} prompts", control)
    return Section("proxy", "The refusal metric as a proxy", text, (figure,))


POINT_WORDS = {
    "calibrated": "Youden's point on training prompts",
    "accuracy": "the point with the fewest errors on training prompts",
    "equal_error": "the point with equal error rates on refused and answered training prompts",
    "paper": "the paper's 0",
}


def calibration_figure(tokens: RefusalTokens) -> Figure | None:
    """How well the refusal metric separates refused from answered training prompts; None without calibration."""
    c = tokens.calibration
    if c is None:
        return None
    area = "" if tokens.auroc is None else f" The metric tells them apart with AUROC {tokens.auroc}."
    begun = ", ".join(f"{share} of {kind} replies" for kind, share in tokens.coverage.items())
    caption = (
        f"Refusal metric of training prompts by judged reply.{area} The refusal tokens begin {begun}. A prompt counts "
        f"as refused above {c.threshold:.3g} ({POINT_WORDS[c.point]}): {c.above} of refused replies lie above it and "
        f"{c.below} of answered ones below."
    )
    n = f"{len(c.refused)} training prompts, {sum(c.refused)} of them refused"
    control = "the replies that are answers"
    return Figure("calibration", plot_calibration(tokens), caption, n, control, data=c.to_frame())


def effect_section(
    completions: Mapping[str, Completions],
    metric_harmful: Mapping[str, Interval],
    metric_harmless: Mapping[str, Interval],
    form: str = "paper",
) -> Section:
    """Necessity and sufficiency: rates, the refusal metric, and the replies side by side."""
    rates = {name: replies.rates for name, replies in completions.items()}
    rows = [{"prompts": name, "condition": c, **vars(r)} for name, some in rates.items() for c, r in some.items()]
    metrics = tuple(
        (name, style.readable(c), f"{m.mean:.3f}", f"{m.low:.3f} to {m.high:.3f}", str(m.n))
        for name, some in (("harmful, refused at baseline", metric_harmful), ("harmless", metric_harmless))
        for c, m in some.items()
    )
    n = ", ".join(f"{len(replies.of('baseline'))} {name}" for name, replies in completions.items())
    n += " held-out prompts"
    text = (
        "Necessary: does the model stop refusing harmful prompts when the direction is ablated at every write to the "
        "residual stream? Sufficient: does it refuse harmless ones when the direction is added at its layer?"
    )
    text += "" if form == "paper" else f" Here ablation has the form {form!r} (docs/how-to/nothing_passes.md)."
    caption = "Share of replies with one of the paper's refusal phrases, with 95% Clopper-Pearson intervals."
    rest = (caption, n, f"{RANDOM_DIRECTION} (hatched)", pd.DataFrame(rows))
    columns = ("prompts", "condition", "mean refusal metric", "95% interval", "n")
    caption = (
        "Log-odds of the refusal tokens after the prompt, held-out prompts, bootstrap intervals. Control: "
        f"{RANDOM_DIRECTION}."
    )
    items: tuple[Figure | Table, ...] = (
        Figure("refusal-rates", plot_refusal_rates(rates), *rest, wide=False),
        _classes(tuple(completions.values()), n),
        Table("refusal-metric", columns, metrics, caption),
        *(_side_by_side(name, replies) for name, replies in completions.items()),
    )
    return Section("effects", "Necessity and sufficiency", (text,), items)


def _classes(completions: Sequence[Completions], n: str) -> Figure:
    """Four classes of replies by condition, and how far the replies keep to the request."""
    rows = [
        {"prompts": record.prompt_set, "condition": condition, "class": kind, **vars(share)}
        for record in completions
        for condition, classes in record.classes.items()
        for kind, share in classes.items()
    ]
    kept = "; ".join(
        f"{record.prompt_set}, {style.readable(condition)} {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
        for record in completions
        for condition, found in record.overlap.items()
        if found.n
    )
    caption = (
        "Not refused does not mean answered: replies by class, by rules without a model (docs/evaluation.md). Share of "
        f"the request's content words that replies without refusal repeat: {kept}."
    )
    rest = (caption, n, RANDOM_DIRECTION, pd.DataFrame(rows))
    return Figure("reply-classes", plot_reply_classes(completions), *rest, wide=False)


def _side_by_side(name: str, completions: Completions) -> Table:
    """One row per prompt, one column per condition."""
    replies = [completions.of(condition) for condition in completions.conditions]
    rows = tuple(
        (prompt_replies[0].prompt, *(("✗ " if r.refused else "") + r.response for r in prompt_replies))
        for prompt_replies in zip(*replies, strict=True)
    )
    limit, columns = completions.max_new_tokens, ("prompt", *map(style.readable, completions.conditions))
    caption = f"Greedy replies to {len(rows)} {name} prompts, at most {limit} tokens; ✗ marks a refusal."
    return Table(f"completions-{name}", columns, rows, caption, searchable=True)


def over_refusal_section(record: OverRefusal) -> Section:
    """Borderline prompts under every condition, both kinds of refusal without the direction of false refusal."""
    n = ", ".join(f"{record.prompt_sets.count(name)} {name}" for name in record.sets)
    caption = (
        "Share of replies refused (95% Clopper-Pearson intervals) and mean change of the refusal metric (bootstrap). "
        "The direction of false refusal is the difference in means of other borderline and of harmless prompts, made "
        "orthogonal to the refusal direction."
    )
    control = f"{RANDOM_DIRECTION}; beside the direction of false refusal, one orthogonal to r̂ (hatched)"
    figure = Figure.of("over-refusal", record, caption, f"{n} test prompts", control)
    said = [said for said in record.completions if said.prompt_set == "borderline"]
    classes = "The same replies to borderline prompts by class: what is not refused need not be an answer."
    n = f"{record.prompt_sets.count('borderline')} test prompts"
    kinds = Figure("over-refusal-classes", plot_reply_classes(said), classes, n, control)
    replies = [_side_by_side(some.prompt_set, some) for some in said]
    return Section("over-refusal", "Over-refusal", record.summary(), (figure, kinds, *replies))
