"""The loss of a learned direction: the model's own words as targets (Wollschläger et al. 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..data.prompts import PromptPair
from ..errors import ModelError
from ..hooks.interventions import Ablate, Add
from ..models.chat import Tokens, no_regions, padded
from ..models.model import HookedChatModel
from ..models.prefixes import shared_length, shifted
from ..models.texts import Scored, predictions, reply_tokens
from ..records.direction import Direction
from ..refusal.phrases import is_refusal
from ..refusal.replies import completion, replies
from ..tensors import cosine, unit, wide

OPENING, RETAIN, JUDGED = 4, 16, 24  # tokens: of targets, over which KL is taken, of replies that are judged


@dataclass(frozen=True)
class OwnWords:
    """Prompts of one split as tokens with the model's own replies, and the openings of these."""

    harmful: tuple[Scored, ...]  # refused
    harmless: tuple[Scored, ...]  # answered
    refusals: tuple[tuple[int, ...], ...]
    openings: tuple[tuple[int, ...], ...]


def own_words(model: HookedChatModel, data: PromptPair, split: str) -> OwnWords:
    """Refused harmful and answered harmless prompts, by the model's own replies."""
    kept: list[tuple[Scored, ...]] = []
    for kind, refused in ((data.harmful, True), (data.harmless, False)):
        prompts = list(getattr(kind, split))
        told = replies(model, prompts, JUDGED) if prompts else []
        judged = [completion(model, p, r, "", is_refusal).refused for p, r in zip(prompts, told, strict=True)]
        texts = reply_tokens(model, prompts, told) if prompts else []
        texts = [
            text for text, flag in zip(texts, judged, strict=True) if flag == refused and len(text.ids) > text.first
        ]
        if not texts:
            verb = "refuses" if refused else "answers"
            raise ModelError(
                f"{model.name} {verb} none of {len(prompts)} {kind.name} {split} prompts in its replies, so there is "
                "nothing to learn from: use a model with safety training or other prompts"
            )
        kept.append(tuple(texts))
    ends = [tuple(text.ids[text.first :][:OPENING] for text in texts) for texts in kept]
    return OwnWords(kept[0], kept[1], ends[0], ends[1])


@dataclass(frozen=True)
class Batch:
    answer: list[Scored]  # harmful prompts, an opening of an answer after each
    refuse: list[Scored]  # harmless prompts, an opening of a refusal after each
    retain: list[Scored]  # harmless prompts with their own replies
    before: Float[Tensor, "token vocab"]  # log probabilities of these, without intervention
    harmful: list[Scored]  # harmful prompts alone
    streams: tuple[Tensor, ...]  # of these, without intervention and without the other direction


@dataclass(frozen=True)
class ConeLoss:
    """The loss of one direction on a batch."""

    model: HookedChatModel
    direction: Direction
    other: Direction | None
    weights: tuple[float, ...]
    openings: tuple[tuple[int, ...], ...]
    refusals: tuple[tuple[int, ...], ...]

    def batch(self, words: OwnWords, harmful: Sequence[int], harmless: Sequence[int], draw: torch.Generator) -> Batch:
        """Prompts with targets drawn from the model's own words."""

        def ended(texts: list[Scored], ends: tuple[tuple[int, ...], ...]) -> list[Scored]:
            rows = torch.randint(len(ends), (len(texts),), generator=draw).tolist()
            return [replace(t, ids=t.ids[: t.first] + ends[row]) for t, row in zip(texts, rows, strict=True)]

        asked, calm = [words.harmful[i] for i in harmful], [words.harmless[i] for i in harmless]
        retain = [replace(text, ids=text.ids[: text.first + RETAIN]) for text in calm]
        alone = [replace(text, ids=text.ids[: text.first]) for text in asked]
        with torch.no_grad():
            before = wide(forced_logits(self.model, retain)[0]).log_softmax(-1)
            edits = [] if self.other is None else [(), (Ablate(self.other),)]
            streams = tuple(_streams(self.model, alone, *under) for under in edits)
        return Batch(ended(asked, self.openings), ended(calm, self.refusals), retain, before, alone, streams)

    def parts(self, vector: Float[Tensor, "d_model"], batch: Batch) -> Float[Tensor, "part"]:
        """The loss by part, with a gradient to ``vector`` where one is on."""
        model, r = self.model, unit(vector)
        ablate = Ablate(r)
        logits, targets = forced_logits(model, [*batch.answer, *batch.retain], ablate)  # one pass for both
        n = len(targets) - len(batch.before)
        after = wide(logits[n:]).log_softmax(-1)
        return torch.stack(
            [
                _cross_entropy(logits[:n], targets[:n]),
                self.addition(r, batch),
                functional.kl_div(after, batch.before, log_target=True, reduction="batchmean").double().cpu(),
                self._dependence(r, ablate, batch),
            ]
        )

    def addition(self, r: Float[Tensor, "d_model"], batch: Batch) -> Tensor:
        """The loss of refusals when the unit vector r is added at the length of the difference in means."""
        add = Add(self.direction.coeff * self.direction.norm * r, layers=self.direction.layer)
        return _cross_entropy(*forced_logits(self.model, batch.refuse, add))

    def _dependence(self, r: Tensor, ablate: Ablate, batch: Batch) -> Tensor:
        """Mean square, over layers and prompts, of how each direction's cosine changes when the other is ablated."""
        if self.other is None:
            return torch.zeros((), dtype=torch.float64)
        before, without = batch.streams
        mine = _streams(self.model, batch.harmful, ablate)
        a = cosine(mine, self.other.unit) - cosine(before, self.other.unit)
        b = cosine(without, r) - cosine(before, r)
        return (a.square() + b.square()).mean().double().cpu()

    def total(self, parts: Float[Tensor, "part"]) -> Tensor:
        return parts @ torch.tensor(self.weights, dtype=torch.float64)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(wide(logits), targets).double().cpu()


def _batched(model: HookedChatModel, texts: Sequence[Scored]) -> Tokens:
    spans = [text.spans or no_regions(text.first) for text in texts]
    return padded([text.ids for text in texts], spans, model.chat.pad_id).to(model.device)


def forced_logits(
    model: HookedChatModel, texts: Sequence[Scored], *under: Any
) -> tuple[Float[Tensor, "token vocab"], Tensor]:
    """Logits that predict the tokens that count, text after text, and these tokens; with a gradient where one is on."""
    tokens = _batched(model, texts)
    with model.hooks(*under):
        shared, mask, rest = shared_length(model, tokens), tokens.mask, dict[str, Any]()
        if shared:  # run once, with its gradient
            prefix = model.backend.prefix_cache(tokens.ids[0][mask[0]][:shared])
            rest = {"prefix": shifted(prefix, mask), "prefix_mask": mask[:, :shared]}
        read = partial(model.backend.logits, tokens.ids[:, shared:], mask[:, shared:], **rest)
        rows, targets = zip(*predictions(read, tokens, texts), strict=True)
    return torch.cat(rows), torch.cat(targets)


def _streams(model: HookedChatModel, texts: Sequence[Scored], *under: Any) -> Float[Tensor, "layer prompt d_model"]:
    """resid_pre of every layer at the last token, with a gradient where one is on."""
    tokens, kept = _batched(model, texts), list[Tensor]()

    def keep(x: Tensor, hook: Any) -> None:
        kept.append(wide(x[:, -1]))

    reads = [(f"blocks.{layer}.hook_resid_pre", keep) for layer in range(model.n_layers)]
    with model.hooks(*under, *reads):
        model.backend.logits(tokens.ids, tokens.mask)
    return torch.stack(kept)
