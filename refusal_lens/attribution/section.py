"""Inside the model: the trace, what writes the logits and the direction, and every head in detail."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..direction.records import DirectionTrace
from ..records.labels import Head, head_label, shortened
from ..report.claims import grade, percent
from ..report.page import Figure, Item, Note, Option, Picker, Section, Widget
from .causal_records import CausalCheck
from .records import DirectLogitAttribution, TopHeads
from .token_records import AttentionPatterns, Lens, Propagation, SourceContributions
from .views import attention_notice, attention_props, tokens_props

MAX_HEADS = 64  # heads that can be picked: the strongest, so that the page stays small
MAX_PROMPTS = 3  # prompts on which a picked head is shown
EXACT = "none applies: these are exact parts of one sum"
SINGLE = "none applies: one head on one prompt"


@dataclass(frozen=True)
class Inside:
    """What a study measured inside the model; None where the model lacks what it takes."""

    heads: TopHeads | None = None
    causal: CausalCheck | None = None
    logits: DirectLogitAttribution | None = None
    propagation: Propagation | None = None
    sources: SourceContributions | None = None
    patterns: AttentionPatterns | None = None
    lens: Lens | None = None


def causal_sentence(causal: CausalCheck) -> str:
    """Share of the ablation's effect that the top heads account for beyond random ones, with interval and grade."""
    top, random, share = causal.change("mean_ablation"), causal.change("random_mean_ablation"), causal.share()
    said = (
        f"Replacing the outputs of the top {len(causal.heads)} heads by their mean over harmless prompts changes the "
        f"refusal metric by {top}; doing so for random heads of the same layers, by {random}"
    )
    if "direction_ablation" not in causal.conditions:
        return f"{said}. How this compares with ablating the direction was not measured."
    whole = causal.change("direction_ablation")
    return (
        f"{said}; ablating the direction, by {whole}. These heads' share of that effect, beyond random heads, is "
        f"{percent(share)}: {grade(share)}."
    )


def inside_section(trace: DirectionTrace, inside: Inside | None) -> Section:
    """The trace by layer, and, where it was measured, attribution: logits, heads, propagation, attention."""
    caption = (
        "Cosine of the last position's residual stream with the direction, by layer: mean over prompts, band of one "
        "standard deviation."
    )
    n = f"{trace.cosine.shape[-1]} held-out prompts of each kind"
    first = Figure.of("trace", trace, caption, n, "harmless prompts", wide=False)
    if inside is None:
        missing = "Attribution was not run, so what writes the direction was not measured."
        return Section("inside", "Inside the model", (missing,), (first,))
    text: list[str] = []
    items: list[Item] = [first]
    heads, causal = inside.heads, inside.causal
    if heads is not None:
        text.append(
            f"The heads were chosen on {heads.n_selection} validation prompts and are reported on {heads.n_reported} "
            "held-out ones." + (f" {causal_sentence(causal)}" if causal is not None else "")
        )
    if causal is not None:
        text.append(
            "Attribution says what a head writes along the direction; the causal check says what the model does "
            "without it. Over single heads, predicted and measured changes have a Spearman correlation of "
            f"{causal.spearman:.2f} (p = {causal.p_value:.2g})."
        )
    if inside.logits is not None:
        items.append(_logits(inside.logits))
    if inside.lens is not None:
        items.append(_lens(inside.lens))
    if heads is not None:
        items += _heads(inside, heads)
    return Section("inside", "Inside the model", tuple(text), (*items, *_tokens(inside)))


def _logits(logits: DirectLogitAttribution) -> Figure:
    caption = (
        f"Direct logit attribution at the last position: mean logit of {', '.join(map(repr, logits.answer))} minus "
        f"that of {', '.join(map(repr, logits.against)) or 'nothing'}, through the frozen final norm. The bars add up "
        f"to the total (largest error {logits.error:.2g}); the table has every part with its 95% interval."
    )
    n = f"{logits.values.shape[-1]} held-out harmful prompts"
    return Figure.of("dla", logits, caption, n, EXACT)


def _lens(lens: Lens) -> Figure:
    caption = (
        "What the direction, the candidates of other layers at its position, and the mean writes of the top heads "
        "favour and disfavour: logits through the final norm and the unembedding, minus their mean over all tokens. "
        "The direction's opposite favours what the direction disfavours."
    )
    control = f"the last row, and the highest logit of {len(lens.random)} random directions in the title"
    return Figure.of("lens", lens, caption, "the direction: weights alone; heads: held-out harmful prompts", control)


def _heads(inside: Inside, heads: TopHeads) -> Iterator[Item]:
    """The map, every head in detail, the chosen ones, and what the model does without them."""
    n = f"{heads.n_reported} held-out harmful prompts"
    chosen = f"{n}, heads chosen on {heads.n_selection} others"
    caption = (
        "What each head writes along the direction at the last position; the top heads are labelled. Click a head, or "
        "pick it from the list below, to see it in detail."
    )
    control, wide = "the same heads on harmless prompts, in the figures below", heads.reported.mean.shape[1] > 12
    more = {"data": heads.reported.to_frame(), "picks": "heads", "wide": wide}
    yield Figure.of("head-map", heads, caption, chosen, control, "map", **more)
    yield head_picker(inside, heads)
    caption = "The chosen heads on held-out harmful prompts and on harmless ones, with 95% bootstrap intervals."
    yield Figure.of("head-report", heads, caption, chosen, "harmless prompts", "top heads", wide=False)
    if inside.causal is not None:
        caption = (
            "Left: change in the refusal metric when heads are replaced. Right: predicted against measured change, one "
            "point per head. 95% bootstrap intervals."
        )
        n, control = f"{inside.causal.n_reported} held-out harmful prompts", "random heads of the same layers"
        yield Figure.of("causal-check", inside.causal, caption, n, control)


def head_picker(inside: Inside, heads: TopHeads) -> Picker:
    """Every head, strongest first: what it writes on each prompt, from which tokens, and where it attends."""
    options = []
    for rank, head in enumerate(heads.ranked()):
        label, chosen = head_label(*head), ", chosen" if head in heads.heads else ""
        items = tuple(_head_items(inside, heads, head)) if rank < MAX_HEADS else (_not_stored(label),)
        options.append(Option(label, items, f"{label} ({float(heads.reported.mean[head]):+.3f}{chosen})"))
    return Picker("heads", "head", tuple(options))


def _not_stored(label: str) -> Note:
    return Note(
        f"{label} is not stored in this page, which keeps the {MAX_HEADS} heads that write most. Its mean is in the "
        "heatmap's data; its attention can be read with refusal_lens.attribution.attention_patterns."
    )


def _head_items(inside: Inside, heads: TopHeads, head: Head) -> Iterator[Item]:
    patterns, label = inside.patterns, head_label(*head)
    found = heads.reported.interval(*head)
    control = "none: the study has no harmless prompts here"
    if heads.contrast is not None:
        other = heads.contrast.interval(*head)
        control = f"{other.n} harmless prompts: {other.mean:.3f} [{other.low:.3f}, {other.high:.3f}]"
    caption = (
        f"What {label} writes along the direction, one point per prompt: mean {found.mean:.3f} [{found.low:.3f}, "
        f"{found.high:.3f}], adjusted p {float(heads.p_values[head]):.2g}."
    )
    n = f"{heads.n_reported} held-out harmful prompts"
    yield Figure(f"head-{label}", heads.plot("head", head=head), caption, n, control, wide=False)
    if inside.sources is not None:
        yield _token_picker(inside.sources, head)
    if patterns is None or head not in patterns.heads:
        yield Note(
            f"The full attention pattern of {label} was not stored, to keep the page small; its attention from the "
            "last token is shown above."
        )
        return
    caption = f"Where every token (row) attends (column) through {label}, on the prompt {shortened(patterns.prompt)!r}."
    drawn, wide = patterns.plot(head=head), len(patterns.tokens) > 8
    yield Figure(f"head-{label}-pattern", drawn, caption, "1 prompt", SINGLE, wide=wide)


def _token_picker(sources: SourceContributions, head: Head) -> Picker:
    """From which tokens one head writes, by prompt."""
    label, options = head_label(*head), []
    caption = (
        f"Above: attention of {label} from the last position to each token of the prompt. Below: what it takes from "
        "that token along the direction; the bars add up to what the head writes on this prompt."
    )
    for i, prompt in enumerate(sources.prompts[:MAX_PROMPTS]):
        drawn = sources.plot("head", prompt=i, head=head)
        figure = Figure(f"head-{label}-tokens-{i}", drawn, caption, "1 prompt", EXACT)
        options.append(Option(str(i), (figure,), shortened(prompt)))
    return Picker(f"head-{label}-prompts", "prompt", tuple(options), sync="head-prompt")


def _tokens(inside: Inside) -> Iterator[Item]:
    """How the direction moves through the model, what the top heads write it from, and where they attend."""
    propagation, sources, heads = inside.propagation, inside.sources, inside.heads
    if propagation is not None:
        caption = (
            "Projection on the direction by layer and token, from the instruction to the last position: where the "
            "direction appears, and how it moves through the model."
        )
        n = f"{propagation.projection.shape[-2]} held-out harmful prompts"
        control = "harmless prompts, in the trace above (last position)"
        yield Figure.of("propagation", propagation, caption, n, control)
    if heads is None or sources is None:
        return
    caption = "The regions of the prompt from which the top heads write along the direction."
    drawn, n = sources.plot("by region", heads=heads.heads), f"{len(sources.tokens)} held-out harmful prompts"
    yield Figure("sources", drawn, caption, n, EXACT, sources.to_frame(heads.heads), wide=False)
    if inside.patterns is not None:
        yield from _attention(heads, sources, inside.patterns)


def _attention(heads: TopHeads, sources: SourceContributions, patterns: AttentionPatterns) -> Iterator[Item]:
    """The top heads on one prompt: where they attend, and what each token contributes."""
    top = [i for i, head in enumerate(patterns.heads) if head in heads.heads]
    few = replace(patterns, values=patterns.values[top], heads=tuple(patterns.heads[i] for i in top))
    notice = attention_notice(patterns)
    caption = (
        f"Attention of the top heads on the prompt {shortened(patterns.prompt)!r}: hover over or click a head, then "
        "hover over a token." + (f" {notice}." if notice else "")
    )
    control = "none applies: single heads on one prompt"
    yield Widget("attention", *attention_props(few), caption, "1 prompt", control)
    prompt = min(range(len(sources.tokens)), key=lambda i: sources.prompts[i] != patterns.prompt)
    caption = (
        "What each token of that prompt writes along the direction through the top heads: red towards refusal, blue "
        f"away from it. Sum {float(sources.of_prompt(prompt, heads.heads).sum()):.3f}."
    )
    yield Widget("source-tokens", *tokens_props(sources, prompt, heads.heads), caption, "1 prompt", EXACT)
