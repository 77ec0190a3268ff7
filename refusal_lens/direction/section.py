"""Report sections: the direction, conversations, its stability, transfer and dose."""

import math
from collections.abc import Sequence

import pandas as pd

from ..records.base import Record
from ..records.labels import shortened
from ..report import style
from ..report.page import RANDOM_DIRECTION, Figure, Item, Option, Picker, Section, Table, Widget, plain
from .dose_records import DoseResponse
from .effect_records import AblationForms, EffectMatrix, FineTuning, SystemPrompts
from .harm_records import ASKED, HarmMap
from .map_records import ConversationMap
from .massive_section import massive_items, massive_sentences, placebo_sentences
from .records import SCORES, CandidateDirections, DirectionTrace, Selection, Stability
from .views import conversation_view


def _section(id: str, title: str, record: Record, text: tuple[str, ...], caption: str, n: str, control: str) -> Section:
    return Section(id, title, text, (Figure.of(id, record, caption, n, control),))


def stability_section(record: Stability) -> Section:
    """Bootstrap of the selection."""
    kinds, chance = (record.n_harmful, record.n_harmless), (2 / math.pi / len(record.reference.unit)) ** 0.5
    text = (
        f"Training prompts ({kinds[0]} harmful, {kinds[1]} harmless) resampled {record.resamples} "
        f"times: mean cosine between two winners {record.pairwise().mean:.3f}; in {record.relaxed} resamples no "
        "candidate passed the rule and the nearest one was taken.",
    )
    caption = "Candidates by share of resamples won (in green, the winner on all prompts), and cosines between winners."
    n = f"{record.resamples} resamples of {kinds[0]} harmful and {kinds[1]} harmless prompts"
    control = f"two random directions of this size have a cosine of about {chance:.2f} in magnitude"
    return _section("stability", "Stability of the selection", record, text, caption, n, control)


def fine_tuning_section(record: FineTuning) -> Section:
    """The old direction on a fine-tuned model."""
    text = (
        f"Fine-tuned on {record.n_benign} benign completions (AdamW, lr {record.lr:g}, batches of "
        f"{record.batch_size}): held-out loss {record.loss[0]:.3f} before, {record.loss[-1]:.3f} after "
        f"{record.steps[-1]} steps; the tuned model's own direction has cosine {record.cosine[-1]:.3f} with the one "
        "found before.",
    )
    caption = "Refusal with the direction found before fine-tuning ablated or added; 95% Clopper-Pearson intervals."
    n = f"{record.harmful[0]['baseline'].n} harmful, {record.harmless[0]['baseline'].n} harmless prompts"
    title = "Stability after fine-tuning on benign data"
    return _section("fine-tuning", title, record, text, caption, n, RANDOM_DIRECTION)


def effects_section(record: EffectMatrix, id: str, title: str) -> Section:
    """A matrix of directions and grounds."""
    caption = f"Change of each metric when each direction is {'ablated' if record.effect == 'ablation' else 'added'}."
    return _section(id, title, record, (), caption, record.sizes_in_words, RANDOM_DIRECTION)


def harm_section(record: HarmMap, ablation: EffectMatrix, addition: EffectMatrix) -> Section:
    """Refusal or harmfulness: projections of prompts on both directions, and what ablating and adding each does."""
    n = f"{sum(name in ('harmful', 'harmless') for name in record.sets)} test prompts"
    caption = (
        f"Projections on harm {record.harm.label}, read at the end of the user's turn, and on refusal "
        f"{record.refusal.label}; crosses are refused. By layer: AUROC of the harm direction on validation prompts "
        "(DeLong's 95% intervals), and cosine of the two differences in means."
    )
    control = f"a random direction, AUROC {record.separation('random')} on test prompts"
    figures = [Figure.of("harm-map", record, caption, n, control)]
    for matrix in (ablation, addition):
        verb = "ablated on harmful" if matrix.effect == "ablation" else "added on harmless"
        caption = (
            f"Change when each direction is {verb} prompts: in the refusal metric, and in the log-odds of consent "
            "when the model is asked whether the request is harmful, so that consent means yes."
        )
        n = f"{matrix.change[0][0].n} test prompts"
        figures.append(Figure.of(f"harm-{matrix.effect}", matrix, caption, n, RANDOM_DIRECTION))
    text = (*record.summary(), _asked(ablation, addition))
    return Section("harm", "Refusal or harmfulness", text, tuple(figures))


def _asked(ablation: EffectMatrix, addition: EffectMatrix) -> str:
    """Whether the model answers the question, without which its answers say nothing."""
    harmful, harmless = (matrix.baseline[matrix.grounds.index(ASKED)] for matrix in (ablation, addition))
    odds = f"log-odds of consent {harmful} for harmful and {harmless} for harmless ones"
    said = "Asked whether a request is harmful, the model"
    if not harmful.mean > 0 > harmless.mean:
        return f"{said} does not say so of harmful ones alone ({odds}): its answers say nothing."
    column = addition.grounds.index(ASKED)
    rows = zip(addition.directions, addition.change, addition.control, strict=True)
    moved = "; ".join(f"{name} {found[column]}, random {control[column]}" for name, found, control in rows)
    return f"{said} tells the two kinds apart ({odds}). Change for harmless ones with each direction added: {moved}."


def dose_section(record: DoseResponse, id: str, title: str) -> Section:
    """Curves of each effect by strength and scope, and the usable windows."""
    places = (f"{scope}: {where}" for scope, where in zip(record.scopes, record.where, strict=True))
    n, read = record.values.shape[-1], record.replied()
    some = "" if len(read) == len(record.doses) else f" and were generated for {', '.join(read)}"
    figures, rest = [], (f"{n} prompts of each kind", f"{RANDOM_DIRECTION}, dashed")
    for effect in record.effects:
        caption = (
            f"{effect.capitalize()} by strength and scope; 95% intervals (Clopper-Pearson for shares, else bootstrap); "
            f"dotted: without intervention. Replies have at most {record.max_new_tokens} tokens{some}."
        )
        rows = record.to_frame().query("effect == @effect")
        figures.append(Figure.of(f"{id}-{effect}", record, caption, *rest, data=rows, effect=effect))
    return Section(id, title, (*record.summary(), f"Scopes: {'; '.join(places)}."), tuple(figures))


def system_section(record: SystemPrompts) -> Section:
    """Rates by system prompt."""
    text = tuple(
        "{}: mean {:.0%}, SD {:.0%} over {} system prompts.".format(c, *record.spread(c), len(record.systems))
        for c in record.rates[0]
    )
    caption = f"Refusal rate on {record.prompt_set} prompts by system prompt, 95% Clopper-Pearson intervals."
    rest = (caption, f"{next(iter(record.rates[0].values())).n} prompts per bar", RANDOM_DIRECTION)
    return _section("system", "System prompts", record, text, *rest)


def trace_section(trace: DirectionTrace, id: str, title: str) -> Section:
    """A trace by layer, e.g. base versus chat."""
    caption = "Cosine of the last position with the direction by layer; band of one standard deviation."
    rest = (caption, f"{trace.cosine.shape[-1]} prompts per line", "the lines are each other's control")
    return _section(id, title, trace, (), *rest)


def conversations_section(maps: Sequence[ConversationMap]) -> Section:
    """Where in a conversation the direction is: maps by layer and token, and the text coloured by layer."""
    text, items = list[str](), list[Item]()
    for kind, record in zip(("harmful", "harmless"), maps, strict=True):
        counts = record.to_frame().groupby("condition", sort=False)["outside"]
        found = ", ".join(f"{style.readable(str(c))} {int(x.sum())} of {len(x)}" for c, x in counts)
        text.append(
            f"{kind.capitalize()}, {shortened(record.prompt)!r}: tokens outside the range of {record.n_random} random "
            f"directions at layer {record.direction.layer}: {found} (by chance, "
            f"{2 / (record.n_random + 1):.0%} would be)."
        )
        caption = f"Projection of every token of the {kind} conversation on the direction, by layer and condition."
        rest = ("1 conversation with its replies", f"the range of {record.n_random} random directions, left white")
        items.append(Figure.of(f"map-{kind}", record, caption, *rest))
        own, layers = record.direction.layer, range(record.projection.shape[1])
        options = []
        for layer in sorted(layers, key=lambda layer: layer != own):
            shown = []
            for condition in record.conditions:
                view, id = conversation_view(record, condition, layer), f"text-{kind}-{layer}-{condition}"
                caption = f"{style.readable(condition).capitalize()}, layer {layer}: red towards refusal, blue away."
                shown.append(Widget(id, view.component, view.props, caption, *rest))
            options.append(Option(str(layer), tuple(shown), f"{layer}{' (the direction)' if layer == own else ''}"))
        items.append(Picker(f"text-{kind}", "layer", tuple(options), sync="conversation-layer"))
    return Section("conversations", "Where in a conversation it is", tuple(text), tuple(items))


def direction_section(
    selection: Selection,
    candidates: CandidateDirections,
    stability: Stability | None = None,
    ablations: AblationForms | None = None,
) -> Section:
    """The selection grid, why candidates were dropped, and how stable the choice is."""
    frame, kept = selection.to_frame(), len(selection.kept)
    text = [
        f"Chosen: position {selection.chosen.pos}, layer {selection.chosen.layer}. Bypass "
        f"{selection.score('bypass'):.3f} (baseline {selection.baseline_harmful:.3f}), induce "
        f"{selection.score('induce'):.3f} (baseline {selection.baseline_harmless:.3f}), KL "
        f"{selection.score('kl'):.4f} nats. {kept} candidate{' is' if kept == 1 else 's are'} known to pass the rule."
    ]
    text += placebo_sentences(selection, ablations) + massive_sentences(candidates, selection.chosen)
    norms = candidates.mean_diff.norm(dim=-1).flatten().numpy()
    has_direction = (norms > 0) & (norms < float("inf"))
    if frame.loc[has_direction, list(SCORES)].isna().to_numpy().any():
        text.append("Scores that the winner did not depend on were not computed; a full grid computes them all.")
    caption = (
        "The three selection scores of each candidate by layer, one line per post-instruction position; thresholds "
        "dashed, the layer cutoff dotted, the chosen candidate starred."
    )
    n = f"{selection.n_harmful} harmful and {selection.n_harmless} harmless validation prompts"
    control = "the dashed baseline (no intervention); random directions are in the next section"
    labels = candidates.pos_labels
    items: list[Item] = [Figure.of("selection-grid", selection, caption, n, control, pos_labels=labels)]
    if selection.near_misses:
        rows = tuple(
            (f"({m.pos}, {m.layer})", *map(plain, (m.bypass, m.induce, m.kl)), " and ".join(m.needs))
            for m in selection.near_misses
        )
        columns = ("candidate", "bypass", "induce", "KL", "needs")
        items.append(Table("near-misses", columns, rows, "The candidates nearest to passing, nearest first."))
    items.append(_candidates(selection, frame))
    items += massive_items(candidates, selection.chosen)
    if stability is None:
        text.append("Stability over resampled training prompts was not measured; `--stability 20` measures it.")
    else:
        text += (section := stability_section(stability)).text
        items += section.items
    return Section("direction", "The direction", tuple(text), tuple(items))


def _candidates(selection: Selection, frame: pd.DataFrame) -> Table:
    """Every candidate and why it was dropped: those that pass by bypass, then the others by induce."""
    taken = (frame["pos"] == selection.chosen.pos) & (frame["layer"] == selection.chosen.layer)
    passes = frame["reason"] == ""
    group, key = (~passes).astype(int).where(~taken, -1), frame["bypass"].where(passes, -frame["induce"])
    order = frame.assign(taken=taken, group=group, key=key)
    order = order.sort_values(["group", "key"], na_position="last", kind="stable")
    rows = []
    for row in order.to_dict("records"):
        numbers = (plain(float(row[n])) if row[n] == row[n] else "" for n in SCORES)
        words = ("chosen", row["reason"]) if row["taken"] else (row["reason"] or "passes",)
        rows.append((f"({row['pos']}, {row['layer']})", *numbers, "; ".join(filter(None, words))))
    caption = (
        "Every candidate (position, layer) and why it was dropped: the chosen one, the others that pass (lowest bypass "
        "first), then the rest (highest induce first). Empty: not needed, so not computed."
    )
    columns = ("candidate", "bypass", "induce", "KL", "outcome")
    return Table("candidates", columns, tuple(rows), caption, searchable=True, data=frame)
