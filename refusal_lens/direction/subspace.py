"""More than one direction: subspaces from PCA and from repeated difference-in-means, and what ablating them does."""

from collections.abc import Sequence

import torch

from ..data.prompts import PromptsLike, as_prompts
from ..errors import DirectionError
from ..hooks.interventions import Ablate
from ..models.model import HookedChatModel
from ..records.direction import DirectionLike, Subspace, as_direction
from ..refusal.records import RefusalTokens
from ..stats import Interval, mean_interval
from ..tensors import kl_divergence, orthonormal, refusal_log_odds
from .effect_records import SubspaceEffects
from .extract import extract_directions
from .stability import prompt_activations


def pca_subspace(
    model: HookedChatModel, harmful: PromptsLike, harmless: PromptsLike, direction: DirectionLike, k: int
) -> Subspace:
    """The first ``k`` principal components, uncentred, of harmful activations minus the harmless mean, at the
    direction's position and layer. Uncentred, so that the first is close to r itself.

    Example:
        >>> plane = rl.direction.pca_subspace(model, data.harmful.val, data.harmless.val, found, k=2)
        >>> with model.hooks(rl.Ablate(plane)):
        ...     replies = model.generate(data.harmful.test[:2], 4)
    """
    harmful, harmless, direction = as_prompts(harmful), as_prompts(harmless), as_direction(direction)
    model.check_direction(direction)
    x, y = (prompt_activations(model, p)[:, direction.pos, direction.layer].double() for p in (harmful, harmless))
    difference = x - y.mean(0)
    if k > min(difference.shape):
        raise DirectionError(f"{len(harmful)} prompts give at most {min(difference.shape)} components, not {k}")
    vectors = torch.linalg.svd(difference, full_matrices=False).Vh[:k]
    signs = (vectors @ difference.mean(0)).sign()
    return Subspace(vectors * signs.where(signs != 0, torch.ones_like(signs))[:, None], "pca", direction)


def repeated_subspace(
    model: HookedChatModel, harmful: PromptsLike, harmless: PromptsLike, direction: DirectionLike, k: int
) -> Subspace:
    """Repeat difference-in-means, each time with the previous ones ablated, at the direction's position and layer.

    Projecting r out of the same activations would leave a mean difference of zero; under ablation the model recomputes
    the earlier layers, and whatever still separates the prompts there is the next direction.

    Raises:
        DirectionError: no difference is left before ``k`` directions are found (always so at layer 0).
    """
    harmful, harmless, direction = as_prompts(harmful), as_prompts(harmless), as_direction(direction)
    vectors = direction.unit.double()[None]
    while len(vectors) < k:
        with model.hooks(Ablate(Subspace(vectors, "repeated", direction))):
            found = extract_directions(model, harmful, harmless)
        r = found.mean_diff[found.positions.index(direction.pos), direction.layer]
        r = r - (vectors @ r) @ vectors
        if not float(r.norm()) > 1e-6 * direction.norm:
            raise DirectionError(
                f"no difference is left at {direction.label} after {len(vectors)} directions: ask for fewer, or use a "
                "direction of a later layer"
            )
        vectors = orthonormal(torch.cat([vectors, r[None] / r.norm()]))
    return Subspace(vectors, "repeated", direction)


def subspace_effects(
    model: HookedChatModel,
    subspaces: Sequence[Subspace],
    harmful: PromptsLike,
    harmless: PromptsLike,
    refusal_tokens: RefusalTokens,
    seed: int = 0,
) -> SubspaceEffects:
    """Ablate the first k directions of each subspace, and of a random one, for every k.

    Args:
        subspaces: of one reference direction.
        harmful, harmless: held-out prompts.
        refusal_tokens: of the refusal metric.
        seed: of the random subspace.
    """
    harmful, harmless = as_prompts(harmful), as_prompts(harmless)
    size = min(map(len, subspaces))
    reference = subspaces[0].reference
    every = [*subspaces, Subspace.random(reference, size, seed)]
    before = model.last_logits(harmless)
    baseline = refusal_log_odds(model.last_logits(harmful), refusal_tokens.ids)

    def ablated(subspace: Subspace) -> tuple[Interval, Interval]:
        with model.hooks(Ablate(subspace)):
            metric = refusal_log_odds(model.last_logits(harmful), refusal_tokens.ids)
            change = kl_divergence(before, model.last_logits(harmless))
        return mean_interval(metric.tolist()), mean_interval(change.tolist())

    grid = [[ablated(subspace.first(k)) for k in range(1, size + 1)] for subspace in every]
    bypass, kl = (tuple(tuple(pair[i] for pair in row) for row in grid) for i in (0, 1))
    cosines = tuple(float(s.vectors[0].double() @ reference.unit.double()) for s in every)
    kinds, sizes = tuple(s.kind for s in every), tuple(range(1, size + 1))
    return SubspaceEffects(kinds, sizes, bypass, kl, mean_interval(baseline.tolist()), cosines)
