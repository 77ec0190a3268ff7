"""Named conditions of an experiment: the paper's interventions, each with its placebo."""

from collections.abc import Mapping, Sequence

from ..errors import RefusalLensError
from ..records.direction import DirectionLike
from ..records.labels import CONDITIONS
from ..records.stream import StreamStatistics
from .base import Intervention
from .forms import Form
from .interventions import Ablate, Add
from .orthogonalize import Orthogonalize

Conditions = Mapping[str, Sequence[Intervention]]
NECESSITY = ("baseline", "ablation", "random_ablation")  # on harmful prompts: is the direction necessary for refusals?
SUFFICIENCY = ("baseline", "addition", "random_addition")  # on harmless prompts: is it sufficient?


def named_conditions(
    direction: DirectionLike,
    names: Sequence[str] = CONDITIONS,
    seed: int = 0,
    allow_gap: bool = False,
    *,
    form: Form | str = "paper",
    statistics: StreamStatistics | None = None,
) -> dict[str, list[Intervention]]:
    """Give interventions by condition; each ``random_`` one is a placebo of equal norm (paper sections 2.4, 3, I.1).

    Args:
        direction: the direction; ``subtraction`` adds -r at its layer, the other conditions are the paper's.
        names: some of ``CONDITIONS``, e.g. ``NECESSITY``.
        seed: of the random direction.
        form, statistics: of "ablation" and "random_ablation", as in ``Ablate``; "orthogonalized" has the paper's form.
        allow_gap: let ``orthogonalized`` run on a model with post-norms (see ``Orthogonalize``).

    Raises:
        RefusalLensError: an unknown condition.

    Example:
        >>> from refusal_lens.hooks import named_conditions
        >>> list(named_conditions(found.direction, ["baseline", "ablation", "random_ablation"]))
        ['baseline', 'ablation', 'random_ablation']
    """
    effects: dict[str, Intervention] = {
        "ablation": Ablate(direction, form=form, statistics=statistics),
        "addition": Add(direction),
        "subtraction": Add(direction, -1.0),
        "orthogonalized": Orthogonalize(direction, allow_gap),
    }
    every: dict[str, list[Intervention]] = {"baseline": []}
    for name, effect in effects.items():
        every |= {name: [effect], f"random_{name}": [effect.placebo(seed)]}
    if unknown := [name for name in names if name not in every]:
        raise RefusalLensError(f"there is no condition {unknown[0]!r}; choose from {', '.join(CONDITIONS)}")
    return {name: every[name] for name in names}
