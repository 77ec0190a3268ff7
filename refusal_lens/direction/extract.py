"""Difference-in-means directions at every post-instruction position and layer (paper section 2.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..engines.base import Engine
from ..engines.local import LocalEngine
from ..errors import ModelError
from ..hooks.base import Hooks, Model
from ..hooks.readers import Reader
from ..models.chat import Tokens, padded
from ..models.health import check_activations
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.labels import visible
from .massive import Moments, statistics_of
from .records import CandidateDirections


@dataclass(eq=False)
class _Sum(Reader[Tensor]):
    """Sum of resid_pre over prompts, in float64: memory is one batch and one sum."""

    before: int = 0  # positions before the post-instruction ones
    can_pack: ClassVar[bool] = True

    def begin(self, model: Model, tokens: Any) -> None:
        super().begin(model, tokens)
        self.n_post = tokens.n_post + self.before

    def hooks(self, model: Model, batch: Any) -> Hooks:
        self.layers: list[Tensor] = []

        def add(x: Tensor, hook: Any) -> None:
            self.layers.append(batch.last(x, self.n_post).double().sum(0).to(model.device))

        return [(f"blocks.{layer}.hook_resid_pre", add) for layer in range(model.n_layers)]

    def values(self, model: Model, batch: Any, logits: Tensor | None) -> dict[str, Tensor]:
        return {"sum": torch.stack(self.layers, 1)}

    def put(self, indices: Sequence[int], values: dict[str, Tensor]) -> None:
        self.rows["sum"] = self.rows.get("sum", 0) + values["sum"].cpu()

    def result(self) -> Float[Tensor, "pos layer d_model"]:
        return self.rows["sum"]


def mean_activations(model: HookedChatModel, prompts: PromptsLike | Tokens) -> Float[Tensor, "pos layer d_model"]:
    """Mean resid_pre at the post-instruction positions, accumulated in float64.

    Memory is one batch and one running sum, whatever the number of prompts. Interventions active on the model act;
    batches are then by length instead of packed.

    Raises:
        ModelError: an activation is NaN or infinite; the message names its hook point.
    """
    asked = prompts if isinstance(prompts, Tokens) else as_prompts(prompts, "train")
    return _read(model, asked, [_Sum()])[0]


def _read(
    model: HookedChatModel,
    asked: list[str] | Tokens,
    readers: list[Reader],
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> tuple[Any, ...]:
    """The mean that the first reader sums up, checked, and what the others found."""
    engine = None if isinstance(asked, Tokens) else engine or LocalEngine(model)
    total, *others = model.run(asked, read=readers, pack=True, engine=engine, on_batch=on_batch)
    check_activations(model.name, {f"blocks.{layer}.hook_resid_pre": x for layer, x in enumerate(total.unbind(1))})
    return total / len(asked), *others


def extract_directions(
    model: HookedChatModel,
    harmful: PromptsLike | Tokens,
    harmless: PromptsLike | Tokens,
    progress: Progress = silent,
    engine: Engine | None = None,
    request: bool = False,
) -> CandidateDirections:
    """Subtract the mean over harmless from the mean over harmful prompts, at every post-instruction position and layer.

    The same pass gives the stream's mean and deviation by layer, and its massive tokens (``candidates.statistics``).

    Args:
        harmful, harmless: requests; of a ``PromptSet`` its training split. Tokens of ``after_thoughts`` give directions
            at the end of the thought.
        engine: where the work runs; this process if None.
        request: also at the request's last token, as the first position, labelled "request" (the sixth one in the
            paper's count for Llama 2).

    Example:
        >>> candidates = rl.extract_directions(model, data.harmful, data.harmless)  # of their training splits
        >>> candidates.sizes
        {'pos': 5, 'layer': 5, 'd_model': 96}
    """
    kinds = [p if isinstance(p, Tokens) else as_prompts(p, "train") for p in (harmful, harmless)]
    n_harmful, n_harmless = map(len, kinds)
    labels, asked = model.chat.post_labels(), kinds[0]
    if isinstance(asked, Tokens):
        labels = tuple(visible(model.tokenizer.decode([token])) for token in asked.ids[0, -asked.n_post :].tolist())
    with progress("extract directions", n_harmful + n_harmless) as advance:
        read = [_read(model, some, [_Sum(int(request)), Moments()], advance, engine) for some in kinds]
    means, moments = zip(*read, strict=True)
    labels = ("request", *labels) if request else labels
    about = (labels, n_harmful, n_harmless, model.basis, model.fingerprint)
    statistics = statistics_of(model, moments, n_harmful + n_harmless)
    return CandidateDirections(means[0] - means[1], means[0], means[1], *about, statistics)


def after_thoughts(model: HookedChatModel, prompts: PromptsLike, max_new_tokens: int = 256) -> Tokens:
    """Append the model's own thoughts to prompts, so that the last positions are the end of the thought.

    Prompts whose thought does not end within ``max_new_tokens`` are left out.

    Raises:
        ModelError: no reply has a thought that ends.

    Example:
        >>> thinking = rl.load_model("organism", thought=("I'm", ","))  # as if "I'm sorry," were a thought
        >>> tokens = rl.direction.after_thoughts(thinking, data.harmful.train[:8], 16)
        >>> rl.extract_directions(thinking, tokens, tokens).pos_labels
        (',',)
    """
    texts, chat, rows, spans = as_prompts(prompts, "train"), model.chat, [], []
    for text, reply in zip(texts, model.generate(list(texts), max_new_tokens), strict=True):
        thought = chat.split(reply)
        if not (thought.thought and thought.finished):
            continue
        begun, place = chat.encode(text), reply.index(thought.thought) + len(thought.thought)
        stop = next(reply.index(end, place) + len(end) for _, end in chat.template.markers if end in reply[place:])
        whole = begun.text + reply[:stop]
        encoding = model.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        n = len(encoding["input_ids"])
        end = sum(last > len(begun.text) + place for _, last in encoding["offset_mapping"])
        rows.append(encoding["input_ids"])
        spans.append(replace(begun.spans, template_post=(n - end, n), thought=(begun.spans.template_post[1], n)))
    if not rows:
        raise ModelError(
            f"no thought of {model.name} ends within {max_new_tokens} tokens: ask for more, or for thoughts"
        )
    shared = min(span.template_post[1] - span.template_post[0] for span in spans)
    spans = [replace(s, template_post=(s.template_post[1] - shared, s.template_post[1])) for s in spans]
    return padded(rows, spans, chat.pad_id).to(model.device)
