"""All forms of ablation of one direction, measured on one footing, each beside two placebos."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data.paper import MAX_KL
from ..data.prompts import PromptPair, PromptsLike, as_prompts
from ..errors import InterventionError, ModelError
from ..hooks.base import Intervention
from ..hooks.conditions import Conditions
from ..hooks.forms import FORMS
from ..hooks.interventions import Ablate, Twins
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import DirectionLike, as_direction
from ..records.stream import StreamStatistics
from ..refusal.records import Completions, RefusalTokens
from ..refusal.replies import complete, completion, replies
from ..stats import Rate, mean_interval
from ..tensors import kl_divergence, refusal_log_odds
from .effect_records import AblationForms, FormEffect
from .massive import stream_statistics

SEEDS = (1, 2, 3)


def compare_ablations(
    model: HookedChatModel,
    direction: DirectionLike,
    data: PromptPair,
    refusal_tokens: RefusalTokens,
    *,
    statistics: StreamStatistics | None = None,
    forms: Sequence[str] = tuple(FORMS),
    seeds: Sequence[int] = SEEDS,
    max_kl: float = MAX_KL,
    max_new_tokens: int = 32,
    replies: int = 32,
    progress: Progress = silent,
) -> AblationForms:
    """Measure every form of ablation: refusal metric, KL and replies, along the direction and along placebos.

    Validation prompts choose the form, test prompts report.

    Args:
        statistics: of the stream, with covariance for the oblique form; made from ``data``'s training prompts if None
            or without it.
        seeds: of the placebos' directions.
        max_kl: threshold that a form must keep.
        replies: harmful test prompts that are answered at most; 0 for none.

    Example:
        >>> forms = rl.direction.compare_ablations(
        ...     model, found, data, found.refusal_tokens, forms=["paper", "scaled"], replies=0
        ... )
        >>> forms.forms, forms.to_frame().along.tolist()[:3]
        (('paper', 'scaled'), ['direction', 'random', 'matched'])
    """
    direction, left_out = as_direction(direction), dict[str, str]()
    harmful, harmless = data.harmful, data.harmless
    if statistics is None or (statistics.covariance is None and "oblique" in forms):
        both = [*harmful.train, *harmless.train]
        with progress("read the stream's statistics", 0):
            try:
                statistics = stream_statistics(model, both, covariance="oblique" in forms)
            except ModelError as error:
                left_out["oblique"] = str(error)
                statistics = statistics or stream_statistics(model, both)
    edits = {name: Ablate(direction, form=name, statistics=statistics) for name in forms if name not in left_out}
    for name, edit in list(edits.items()):
        try:
            edit.hooks(model)
        except InterventionError as error:  # a constant coordinate
            left_out[name] = str(error)
            del edits[name]
    work = _Splits(model, refusal_tokens, tuple(seeds), progress)
    validation, *_ = work.measure(edits, as_prompts(harmful.val), as_prompts(harmless.val))
    tested, baselines = work.measure(edits, as_prompts(harmful.test), as_prompts(harmless.test))
    rates = work.replies(edits, as_prompts(harmful.test)[:replies], max_new_tokens) if replies else {}
    tested = [replace(effect, refused=rates.get(f"{effect.form} {effect.along}")) for effect in tested]
    rest = (*baselines, rates.get("baseline"), max_kl, tuple(seeds), left_out)
    return AblationForms(direction, tuple(validation), tuple(tested), *rest)


class _Splits:
    """Effects of edits on harmful and harmless prompts of one split."""

    def __init__(self, model: HookedChatModel, tokens: RefusalTokens, seeds: tuple[int, ...], progress: Progress):
        self.model, self.tokens, self.seeds, self.progress = model, tokens, seeds, progress

    def measure(
        self, edits: dict[str, Ablate], harmful: PromptsLike, harmless: PromptsLike
    ) -> tuple[list[FormEffect], tuple[Any, Any]]:
        """Effects of every form and placebo, and the metric of both kinds of prompts without."""
        before = self.model.last_logits(harmless)
        metric = self._metric(self.model.last_logits(harmful)), self._metric(before)
        found = []
        with self.progress("measure the forms of ablation", len(edits) * (1 + len(self.seeds))) as advance:
            for form, edit in edits.items():
                refused = self._twins(edit, harmful)
                calm, far = self._twins(edit, harmless, before)
                both = list(zip(refused[0], calm, far, strict=True))
                values = {"direction": both[:1], "random": [], "matched": both[1:]}
                advance(1)
                for seed in self.seeds:
                    with self.model.hooks(edit.placebo(seed)):
                        after, refusal = self.model.last_logits(harmless), self.model.last_logits(harmful)
                    values["random"].append((self._metric(refusal), self._metric(after), kl_divergence(before, after)))
                    advance(1)
                for along, some in values.items():
                    means = (torch.stack(column).mean(0) for column in zip(*some, strict=True))
                    bypass, other, kl = (mean_interval(mean.tolist()) for mean in means)
                    found.append(FormEffect(form, along, bypass, other, kl))
        return found, (mean_interval(metric[0].tolist()), mean_interval(metric[1].tolist()))

    def _metric(self, logits: Tensor) -> Tensor:
        return refusal_log_odds(logits, self.tokens.ids)

    def _twins(self, edit: Ablate, prompts: PromptsLike, before: Tensor | None = None) -> list[Tensor]:
        """Metric, and KL from ``before``, under the edit and its twins: [1 + seed, prompt] each."""
        n, tokens = 1 + len(self.seeds), self.model.tokenize(prompts)
        found = torch.empty(1 if before is None else 2, n, len(tokens), dtype=torch.float64)
        with self.model.hooks(Twins(edit, self.seeds)):
            for batch in self.model.batches(tokens, max_tokens=2048 // n):
                logits = self.model.logits(batch.take([row for row in range(len(batch)) for _ in range(n)]))[:, -1]
                rows = list(batch.indices)
                found[0][:, rows] = self._metric(logits).reshape(-1, n).T.cpu().double()
                if before is not None:
                    kl = kl_divergence(before[rows].repeat_interleave(n, 0), logits)
                    found[1][:, rows] = kl.reshape(-1, n).T.cpu().double()
        return list(found)

    def replies(self, edits: dict[str, Ablate], prompts: Sequence[str], max_new_tokens: int) -> dict[str, Rate]:
        """Rates of refusal by "form along", placebos with their first seed, and without intervention."""
        under: dict[str, Intervention] = {f"{form} random": edit.placebo(self.seeds[0]) for form, edit in edits.items()}
        plain: Conditions = {"baseline": [], **{name: [edit] for name, edit in under.items()}}
        found = complete(self.model, prompts, plain, "harmful", max_new_tokens, progress=self.progress).rates
        pairs = [prompt for prompt in prompts for _ in range(2)]
        with self.progress("answer beside placebos of the same moves", len(pairs) * len(edits)) as advance:
            for form, edit in edits.items():
                twins = Twins(edit, self.seeds[:1])
                said = replies(self.model, pairs, max_new_tokens, under=[twins], on_batch=advance)
                both = enumerate(zip(pairs, said, strict=True))
                names = (f"{form} direction", f"{form} matched")
                items = [completion(self.model, prompt, reply, names[i % 2]) for i, (prompt, reply) in both]
                found |= Completions(tuple(items), "harmful", max_new_tokens).rates
        return found
