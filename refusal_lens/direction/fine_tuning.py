"""Effect of a direction after fine-tuning on benign data (not in the paper; cf. Qi et al. 2023).

The trained weights stay in memory and are dropped at the end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..errors import ModelError, PromptError
from ..hooks.conditions import NECESSITY, SUFFICIENCY, named_conditions
from ..models.model import HookedChatModel
from ..models.texts import Scored, predictions, scored_batches
from ..progress import Progress, silent
from ..records.direction import DirectionLike, as_direction
from ..refusal.phrases import is_refusal
from ..refusal.replies import complete
from ..stats import Rate
from .effect_records import FineTuning
from .extract import extract_directions


@contextmanager
def fine_tunable(model: HookedChatModel) -> Iterator[list[nn.Parameter]]:
    """Run ``model`` on trainable copies of its parameters; restore the originals at the end.

    Memory: one copy of the weights. Other threads can't use the model inside.

    Raises:
        ModelError: quantized or offloaded weights.
    """
    # Both are cached at first use: they must be those of the weights as loaded.
    _ = model.fingerprint, model.basis
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    copies: dict[int, nn.Parameter] = {}
    with model.hooks():
        try:
            for module in model.tl.modules():
                for name, parameter in list(module._parameters.items()):
                    if parameter is None:
                        continue
                    if not parameter.is_floating_point() or parameter.is_meta:
                        raise ModelError(
                            f"{model.name}: {type(module).__name__}.{name} is quantized or offloaded, so it can't be "
                            "trained; load the whole model in float32 or bfloat16"
                        )
                    if id(parameter) not in copies:  # tied weights stay tied
                        copies[id(parameter)] = nn.Parameter(parameter.detach().clone())
                    swapped.append((module, name, parameter))
                    module._parameters[name] = copies[id(parameter)]
            yield list(copies.values())
        finally:
            for module, name, parameter in reversed(swapped):
                module._parameters[name] = parameter


def train(
    model: HookedChatModel,
    parameters: Sequence[nn.Parameter],
    texts: Sequence[Scored],
    *,
    lr: float = 3e-4,
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[float]:
    """Train with AdamW on the completions' cross-entropy, endlessly; yields the loss (nats per token) of each step.

    Args:
        parameters: from ``fine_tunable``.
        texts: from ``models.texts.completion_tokens``.
        lr: constant learning rate; no weight decay, gradients clipped to norm 1.
        seed: of the order of the texts.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while True:
        if len(order) < min(batch_size, len(texts)):
            order += torch.randperm(len(texts), generator=generator).tolist()
        rows, order = order[:batch_size], order[batch_size:]
        with torch.enable_grad():
            loss = completion_loss(model, [texts[i] for i in rows])
            optimizer.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield float(loss.detach())


def completion_loss(model: HookedChatModel, texts: Sequence[Scored]) -> Tensor:
    """Mean cross-entropy, nats per token, of the tokens that count; with a gradient where one is on."""
    total, count = torch.zeros((), device=model.device), 0
    for tokens in scored_batches(model, texts):
        some = [texts[i] for i in tokens.indices]
        for rows, targets in predictions(partial(model.backend.logits, tokens.ids, tokens.mask), tokens, some):
            total = total + nn.functional.cross_entropy(rows.float(), targets, reduction="sum")
            count += len(targets)
    return total / count


def fine_tuning_stability(
    model: HookedChatModel,
    direction: DirectionLike,
    benign: Sequence[Scored],
    held_out: Sequence[Scored],
    train_prompts: tuple[Sequence[str], Sequence[str]],
    test_prompts: tuple[Sequence[str], Sequence[str]],
    *,
    steps: Sequence[int] = (0, 10, 30, 100),
    lr: float = 3e-4,
    batch_size: int = 16,
    max_new_tokens: int = 48,
    seed: int = 0,
    judge: Callable[[str], bool] = is_refusal,
    progress: Progress = silent,
) -> FineTuning:
    """Fine-tune on ``benign`` and measure the effect of the direction after each of ``steps``.

    Args:
        direction: found on the model as loaded.
        benign, held_out: completions to train on, and others of the same kind for the loss (``completion_tokens``).
        train_prompts, test_prompts: (harmful, harmless), for the direction of the tuned model and for the rates.
        steps: numbers of optimizer steps, in rising order.

    Raises:
        PromptError: no benign completion has a token to learn.
        ModelError: quantized weights, or a loss that is not finite.
        DirectionError: a direction of another model.
    """
    direction = as_direction(direction)
    model.check_direction(direction)
    if not benign or not held_out:
        raise PromptError("fine-tuning needs benign completions to train on and others to measure the loss on")
    wanted = sorted(set(steps))
    under = [named_conditions(direction, names, seed) for names in (NECESSITY, SUFFICIENCY)]
    rows: list[tuple[float, float, dict[str, Rate], dict[str, Rate]]] = []

    def measure() -> None:
        with torch.inference_mode():
            loss = float(completion_loss(model, held_out))
        now = extract_directions(model, *train_prompts).direction(direction.pos, direction.layer)
        cosine = float(now.unit.double() @ direction.unit.double())
        harmful, harmless = (
            complete(model, prompts, conditions, "", max_new_tokens, judge).rates
            for prompts, conditions in zip(test_prompts, under, strict=True)
        )
        rows.append((loss, cosine, harmful, harmless))

    with progress("fine-tune", wanted[-1]) as advance, fine_tunable(model) as parameters:
        training = train(model, parameters, benign, lr=lr, batch_size=batch_size, seed=seed)
        for before, step in pairwise([0, *wanted]):
            for done in range(before + 1, step + 1):
                if not math.isfinite(next(training)):
                    raise ModelError(f"the loss is not finite after {done} steps of fine-tuning; use a smaller lr")
                advance(1)
            measure()
    losses, cosines, harmful, harmless = zip(*rows, strict=True)
    return FineTuning(direction, tuple(wanted), losses, cosines, harmful, harmless, lr, batch_size, len(benign))
