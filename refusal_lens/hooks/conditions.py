"""What the model says under each condition, and how often it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from ..errors import RefusalLensError
from ..records.direction import Direction
from ..records.labels import CONDITIONS
from .base import Intervention, Model
from .interventions import Ablate, Add
from .orthogonalize import Orthogonalize

Edit = Intervention | Orthogonalize
Conditions = Mapping[str, Sequence[Edit]]


def necessity_conditions(direction: Direction, seed: int = 0) -> dict[str, list[Intervention]]:
    """Baseline, ablation and its placebo, for harmful prompts: is the direction necessary for refusing?"""
    return {
        "baseline": [],
        "ablation": [Ablate(direction)],
        "random_ablation": [Ablate(direction.random_control(seed))],
    }


def sufficiency_conditions(direction: Direction, seed: int = 0) -> dict[str, list[Intervention]]:
    """Baseline, addition and its placebo, for harmless prompts: is the direction sufficient for refusing?"""
    return {
        "baseline": [],
        "addition": [Add(direction)],
        "random_addition": [Add(direction.random_control(seed))],
    }


def named_conditions(
    direction: Direction, names: Sequence[str] = CONDITIONS, seed: int = 0, allow_gap: bool = False
) -> dict[str, list[Edit]]:
    """Conditions by name, each ``random_`` one with a random direction of equal norm (paper sections 2.4, 3, I.1).

    Args:
        direction: the direction; ``subtraction`` adds -r at its layer, the others are the paper's.
        names: some of ``CONDITIONS``.
        seed: of the random direction.
        allow_gap: let ``orthogonalized`` run on a model with post-norms (``orthogonalization.orthogonalized``).

    Raises:
        RefusalLensError: an unknown condition.
    """
    found: dict[str, list[Edit]] = {}
    for name in names:
        if name not in CONDITIONS:
            raise RefusalLensError(f"there is no condition {name!r}; choose from {', '.join(CONDITIONS)}")
        r = direction.random_control(seed) if name.startswith("random_") else direction
        edits: dict[str, list[Edit]] = {
            "baseline": [],
            "ablation": [Ablate(r)],
            "addition": [Add(r)],
            "subtraction": [Add(r, -1.0)],
            "orthogonalized": [Orthogonalize(r, allow_gap)],
        }
        found[name] = edits[name.removeprefix("random_")]
    return found


@contextmanager
def active(model: Model, edits: Sequence[Edit]) -> Iterator[Model]:
    """Interventions and weight edits of one condition, active inside (weights first, then hooks)."""
    with ExitStack() as stack:
        for edit in edits:
            if isinstance(edit, Orthogonalize):
                stack.enter_context(edit.applied(model))
        stack.enter_context(model.hooks(*(e for e in edits if not isinstance(e, Orthogonalize))))
        yield model
