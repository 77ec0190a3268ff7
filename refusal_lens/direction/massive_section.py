"""What is massive in a model's stream, and the forms of ablation beside each other, for the report."""

from ..records.direction import Direction
from ..records.stream import MASSIVE
from ..report.page import Figure, Item, Section, Table, frame_table, plain
from .effect_records import AblationForms
from .figures import FORM_NAMES, plot_massive
from .records import CandidateDirections, Selection

CONCENTRATED = 0.5  # share of the squared length of r on one coordinate from which the report warns


def massive_sentences(candidates: CandidateDirections, direction: Direction) -> list[str]:
    """What is massive at the direction's layer, in words, and a warning where it decides what ablation does."""
    statistics = candidates.statistics
    if statistics is None:
        return []
    layer, energy = direction.layer, candidates.energy(direction.pos, direction.layer)
    places, size = statistics.coordinates(layer), statistics.size[layer]
    one, eight = float(energy[0]), float(energy[:8].sum())
    said = f"Of the squared length of r at {direction.label}, {one:.0%} lies on one coordinate, {eight:.0%} on eight. "
    if places:
        shown = ", ".join(f"{i} ({float(size[i] / size.median()):.0f} medians)" for i in places[:5])
        said += f"Massive coordinates of this layer's stream (above {MASSIVE:g} medians): {len(places)}, {shown}."
    else:
        said += f"No coordinate of this layer's stream is massive (above {MASSIVE:g} medians)."
    if statistics.tokens:
        texts = ", ".join(f"{t.text!r} (up to {t.ratio:.0f} medians, layer {t.layer})" for t in statistics.tokens[:5])
        said += f" Massive tokens, by norm against their sequence's median: {texts}."
    warning = (
        "Massive coordinates make plain ablation destructive along any direction, a random one too: read the effects "
        "beside their placebos, and compare the forms of ablation with `refusal-lens ablations`."
    )
    return [said, warning] if places or one > CONCENTRATED else [said]


def placebo_sentences(selection: Selection, ablations: AblationForms | None) -> list[str]:
    """KL of random directions under the ablation that selected, and what it says of the threshold."""
    if not selection.placebo_kl:
        return []
    values = ", ".join(f"{value:.3g}" for value in selection.placebo_kl)
    found = [
        f"Ablation of the form {selection.form!r}. KL of {len(selection.placebo_kl)} random directions under it, the "
        f"placebo of every candidate: {values}."
    ]
    if selection.placebo_fails:
        best = ablations.recommended if ablations is not None else ""
        named = "`refusal-lens ablations` compares the forms"
        if ablations is not None:
            named = f"the form {best!r} does (section Forms of ablation)" if best else "no form measured does"
        found.append(
            "No random direction stays below the KL threshold either: with this form the thresholds do not measure "
            f"refusal on this model; {named}."
        )
    return found


def massive_items(candidates: CandidateDirections, direction: Direction) -> list[Item]:
    """Energy by coordinate, the massive tokens as a table, and sizes by layer."""
    statistics = candidates.statistics
    if statistics is None:
        return []
    layer = direction.layer
    caption = (
        f"Left: share of the squared length that the k largest coordinates hold, of the stream at layer {layer} "
        f"(massive tokens left out) and of r at {direction.label}. Right: tokens of the training prompts whose norm is "
        f"above {MASSIVE:g} medians of their sequence (dashed)."
    )
    n = f"{statistics.n_tokens[layer]} tokens of {statistics.n_prompts} prompts"
    found: list[Item] = [Figure("massive", plot_massive(candidates, direction), caption, n, "none: a description")]
    if statistics.tokens:
        rows = tuple((repr(t.text), str(t.id), str(t.layer), plain(t.ratio), str(t.times)) for t in statistics.tokens)
        columns = ("token", "id", "layer where largest", "norm over the median", "times")
        found.append(Table("massive-tokens", columns, rows[:20], "Massive tokens of the training prompts."))
    caption = "The stream by layer, massive tokens left out: norms of tokens, sizes (root mean square) of coordinates."
    return [*found, frame_table("stream-sizes", statistics.to_frame(), caption)]


def ablations_section(record: AblationForms) -> Section:
    """All forms, the recommended one, and why not the others."""
    best = record.recommended
    text = [
        f"Recommended: {best} (chosen on validation prompts, reported on test prompts). {_said(record, best)}"
        if best
        else "No form is recommended: none lowers the metric beyond its placebos at a KL within the threshold."
    ]
    text += [record.warning] if record.warning else []
    rows = tuple(
        (e.form, FORM_NAMES[e.along], str(e.harmful), str(e.harmless), str(e.kl), str(e.refused or "not measured"))
        for e in record.test
    )
    against = [(form, record.verdict(form) or "nothing speaks against it") for form in record.forms]
    against += [(form, f"not measured: {why}") for form, why in record.left_out.items()]
    columns = ("form", "along", "metric, harmful", "metric, harmless", "KL", "refused in replies")
    caption = "Every form of ablation on test prompts, with 95% intervals."
    n = f"{record.harmful.n} harmful and {record.harmless.n} harmless test prompts"
    control = f"{len(record.seeds)} random directions; every token moved as far along random directions"
    items: tuple[Item, ...] = (
        Figure.of("ablation-forms", record, caption, n, control),
        Table("ablation-forms-table", columns, rows, caption, data=record.to_frame()),
        Table("ablation-verdicts", ("form", "on validation prompts"), tuple(against), "What speaks against each form."),
    )
    return Section("ablations", "Forms of ablation", tuple(text), items)


def _said(record: AblationForms, form: str) -> str:
    found, random = record.effect(form), record.effect(form, "random")
    said = (
        f"Metric of harmful prompts {record.harmful.mean:.2f} without, {found.harmful.mean:.2f} with it, "
        f"{random.harmful.mean:.2f} along random directions; KL {found.kl.mean:.3g}, random {random.kl.mean:.3g}."
    )
    if found.refused is None or random.refused is None:
        return said
    rates = f"{record.refused} without, {found.refused} with it, {random.refused} along a random direction"
    return f"{said} Refused in replies: {rates}."
