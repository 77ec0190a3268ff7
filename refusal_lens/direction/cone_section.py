"""Report sections: learned directions and cones, and whether one direction is enough."""

from collections.abc import Sequence

from ..report.page import RANDOM_DIRECTION, Figure, Section
from .cone_records import GroupAngles, Independence, LearnedCones, SubspaceEffects
from .effect_records import EffectMatrix


def cones_section(
    effects: SubspaceEffects, learned: Sequence[LearnedCones], independence: Independence | None = None
) -> Section:
    """Training by seed, what the learned directions do beside others, and whether they are independent."""
    items = [_effects(effects, "cones-effects")]
    for record in learned:
        harmful, harmless = record.n_prompts
        caption = (
            "Loss by training step, with random starts. Targets are the openings of the model's own answers and "
            f"refusals. The state with the lowest validation loss is kept (star); lr {record.lr:g}."
        )
        n = f"{harmful} harmful and {harmless} harmless training prompts"
        control = "the loss of the random start, at step 0; the difference in means, dashed"
        items.append(Figure.of(f"cones-training-{record.dimension}", record, caption, n, control))
    text = [*effects.summary(), *(sentence for record in learned for sentence in record.summary())]
    if independence is not None:
        caption = (
            "Change of the stream's cosine with a direction (at the last token of harmful prompts) when another is "
            "ablated; bootstrap 95% intervals. A direction's own cosine becomes 0."
        )
        n = f"{independence.before.shape[-1]} harmful test prompts"
        items.append(Figure.of("cones-independence", independence, caption, n, "a random direction ablated: placebo"))
    return Section("cones", "Learned directions and cones", tuple(text), tuple(items))


def subspace_section(
    record: SubspaceEffects,
    categories: GroupAngles | None = None,
    languages: GroupAngles | None = None,
    transfer: EffectMatrix | None = None,
) -> Section:
    """Effect by dimension, angles between categories and between languages, and effects across languages."""
    items, text = [_effects(record, "subspaces")], [*record.summary()]
    for name, found in (("categories", categories), ("languages", languages)):
        if found is None:
            continue
        text += [f"{name.capitalize()}: {sentence}" for sentence in found.summary()]
        caption = (
            f"Smallest principal angle between {name}, at the direction's position and layer. Few prompts leave an "
            f"angle even within a group: halves of one group are {float(found.halves.mean()):.0f}° apart."
        )
        n = f"{sum(found.sizes_harmful)} harmful prompts"
        control = f"the mean of {len(found.control)} random groupings"
        items.append(Figure.of(f"angles-{name}", found, caption, n, control))
    if transfer is not None:
        caption = (
            "Change of the refusal metric of harmful prompts with r, or each language's difference in means, ablated; "
            "a language's direction on its own prompts is in-sample."
        )
        items.append(Figure.of("languages-transfer", transfer, caption, transfer.sizes_in_words, RANDOM_DIRECTION))
    return Section("subspaces", "Is one direction enough?", tuple(text), tuple(items))


def _effects(record: SubspaceEffects, id: str) -> Figure:
    caption = (
        "The first k directions of each subspace ablated, one inside the first k ablated alone (the weakest of some, "
        "chosen on these prompts), the k-th added; 95% intervals (Clopper-Pearson for refusals, else bootstrap)."
    )
    n = f"{record.values.shape[-1]} prompts of each kind"
    return Figure.of(id, record, caption, n, "a random subspace of equal size, dashed")
