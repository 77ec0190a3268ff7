"""More than one direction: subspaces from PCA, from repeated difference-in-means and of groups of prompts, what
ablating them does, and whether ablating one direction moves another."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import subspace_angles
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts
from ..errors import DirectionError, PromptError
from ..hooks.base import Intervention
from ..hooks.interventions import Ablate, Add
from ..hooks.readers import Activations
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import DirectionLike, Subspace, as_direction
from ..refusal.metric import refusal_metric
from ..refusal.records import RefusalTokens
from ..refusal.replies import complete
from ..tensors import cosine, kl_divergence, orthonormal, project_out, unit
from .cone_records import MEASURES, GroupAngles, Independence, SubspaceEffects
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
    subspaces: Mapping[str, Subspace] | Sequence[Subspace],
    harmful: PromptsLike,
    harmless: PromptsLike,
    refusal_tokens: RefusalTokens,
    *,
    max_new_tokens: int = 0,
    samples: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> SubspaceEffects:
    """Ablate and add the directions of each subspace, and of a random one, for every number of directions.

    Args:
        subspaces: of one reference direction, by label (by their kind if not given).
        harmful, harmless: held-out prompts; as many of each are used.
        max_new_tokens: length limit of the replies whose refusals are counted; 0 for none.
        samples: directions drawn inside the first k, each ablated alone.
        seed: of the random subspace and of the directions inside.

    Raises:
        DirectionError: no subspace, or subspaces of different directions.

    Example:
        >>> planes = [rl.direction.pca_subspace(model, data.harmful.train, data.harmless.train, found, k=2)]
        >>> effects = rl.direction.subspace_effects(
        ...     model, planes, data.harmful.test, data.harmless.test, found.refusal_tokens)
        >>> effects.kinds, effects.gain("pca", 2).n
        (('pca', 'random'), 12)
    """
    every = dict(subspaces) if isinstance(subspaces, Mapping) else {space.kind: space for space in subspaces}
    if not every or any(not torch.equal(a.reference.unit, b.reference.unit) for a, b in pairwise(every.values())):
        raise DirectionError("give subspaces of one reference direction, at least one")
    r, size = next(iter(every.values())).reference, max(map(len, every.values()))
    every["random"] = Subspace.random(r, size, seed)
    n = min(len(as_prompts(harmful)), len(as_prompts(harmless)))
    asked, calm = as_prompts(harmful)[:n], as_prompts(harmless)[:n]
    before = model.last_logits(calm)

    def metric(prompts: list[str], *under: Intervention) -> Tensor:
        return refusal_metric(model, prompts, refusal_tokens, under=under)

    def refused(*under: Intervention) -> Tensor:
        if not max_new_tokens:
            return torch.full((n,), torch.nan, dtype=torch.float64)
        said = complete(model, asked, {"ablation": under}, "harmful", max_new_tokens)
        return torch.tensor([item.refused for item in said], dtype=torch.float64)

    def measured(vectors: Float[Tensor, "k d_model"]) -> Tensor:
        first, last, middle = Ablate(vectors), Ablate(vectors[-1]), Ablate(vectors.sum(0))
        with model.hooks(first):
            kl = kl_divergence(before, model.last_logits(calm)).cpu()
        along = Add(r.coeff * r.norm * vectors[-1], layers=r.layer)
        alone = [metric(asked, edit) for edit in (first, *((last, middle) if len(vectors) > 1 else ()))]
        return torch.stack([*(alone * 3)[:3], metric(calm, along), kl, refused(first)])

    def within(vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "sample prompt"]:
        """Each of some directions inside their cone ablated alone; there is only one inside a single direction."""
        mixes = inside_cone(len(vectors), samples if len(vectors) > 1 else 1, torch.Generator().manual_seed(seed))
        return torch.stack([metric(asked, Ablate(mix @ vectors)) for mix in mixes]).expand(samples, n)

    values = torch.full((len(every), size, len(MEASURES), n), torch.nan, dtype=torch.float64)
    inside = torch.full((len(every), size, samples, n), torch.nan, dtype=torch.float64)
    with progress("ablate subspaces", sum(map(len, every.values()))) as advance:
        for i, space in enumerate(every.values()):
            for k in range(1, len(space) + 1):
                values[i, k - 1], inside[i, k - 1] = measured(space.vectors[:k]), within(space.vectors[:k])
                advance(1)
    own = metric(asked)
    baseline = torch.stack([own, own, own, metric(calm), torch.zeros_like(own), refused()])
    cosines = tuple(float(space.vectors[0].double() @ r.unit.double()) for space in every.values())
    return SubspaceEffects(tuple(every), tuple(range(1, size + 1)), values, baseline, cosines, r, inside)


def inside_cone(dimension: int, n: int, draw: torch.Generator) -> Float[Tensor, "n vector"]:
    """Nonnegative combinations of a cone's basis, uniform over its part of the sphere."""
    return unit(torch.randn(n, dimension, generator=draw, dtype=torch.float64).abs())


def group_angles(
    model: HookedChatModel,
    groups: Mapping[str, PromptsLike],
    harmless: PromptsLike | Mapping[str, PromptsLike],
    direction: DirectionLike,
    *,
    k: int = 1,
    draws: int = 20,
    least: int = 6,
    seed: int = 0,
) -> GroupAngles:
    """Principal angles between the subspaces of groups of harmful prompts, beside those of random groups.

    A group's subspace is its difference in means, then the principal components of what is left.

    Args:
        groups: name -> harmful prompts: categories of harm, or languages.
        harmless: prompts for all groups, or for each by name (in its language).
        direction: whose position and layer is read.
        k: dimensions of each subspace.
        draws: random groupings, and halves of each group.
        least: fewest prompts of a group.

    Raises:
        PromptError: fewer than two groups, or a group with too few prompts.

    Example:
        >>> prompts = data.harmful.train
        >>> halves = {"first": prompts[:24], "second": prompts[24:]}
        >>> rl.direction.group_angles(model, halves, data.harmless.train, found, draws=4).sizes
        {'group': 2, 'vector': 1, 'd_model': 96, 'other': 2, 'angle': 1, 'draw': 4}
    """
    reference = as_direction(direction)
    model.check_direction(reference)
    calm = dict(harmless) if isinstance(harmless, Mapping) else dict.fromkeys(groups, harmless)
    if len(groups) < 2 or set(groups) - set(calm):
        raise PromptError("give at least two groups of harmful prompts, and harmless prompts for each")
    for name in groups:
        for kind, some in (("harmful", groups[name]), ("harmless", calm[name])):
            if (count := len(as_prompts(some))) < max(least, k + 1):
                raise PromptError(
                    f"the group {name!r} has {count} {kind} prompts, and its subspace needs at least "
                    f"{max(least, k + 1)}: give more, or leave the group out"
                )

    def read(prompts: PromptsLike) -> Tensor:
        return prompt_activations(model, prompts)[:, reference.pos, reference.layer].double()

    shared = None if isinstance(harmless, Mapping) else read(harmless)
    pairs = [(read(some), read(calm[name]) if shared is None else shared) for name, some in groups.items()]
    draw = torch.Generator().manual_seed(seed)

    def regrouped() -> list[tuple[Tensor, Tensor]]:
        """All prompts dealt anew; harmless ones too, unless they are common."""
        x, y = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        x, y = x[torch.randperm(len(x), generator=draw)], y[torch.randperm(len(y), generator=draw)]
        some = (part.split([len(pair[i]) for pair in pairs]) for i, part in enumerate((x, y)))
        return [(a, b if shared is None else shared) for a, b in zip(*some, strict=True)]

    def halves(x: Tensor, y: Tensor) -> float:
        a, b = x[torch.randperm(len(x), generator=draw)].tensor_split(2)
        return float(_angles([_span(a, y, 1), _span(b, y, 1)])[0, 1, 0])

    basis = torch.stack([_span(x, y, k) for x, y in pairs])
    control = torch.stack([_angles([_span(x, y, k) for x, y in regrouped()]) for _ in range(draws)])
    apart = torch.tensor([[halves(x, y) for x, y in pairs] for _ in range(draws)], dtype=torch.float64)
    counts = tuple(len(x) for x, _ in pairs)
    return GroupAngles(tuple(groups), counts, basis, _angles(list(basis)), control, apart, reference)


def _span(harmful: Tensor, harmless: Tensor, k: int) -> Float[Tensor, "k d_model"]:
    """Difference in means, then the principal components of what is left of the harmful ones, orthonormal."""
    x = harmful - harmless.mean(0)
    first = unit(x.mean(0))
    rest = project_out(x, first)
    return orthonormal(torch.cat([first[None], torch.linalg.svd(rest, full_matrices=False).Vh[: k - 1]]))


def _angles(spans: Sequence[Tensor]) -> Float[Tensor, "group other angle"]:
    """Principal angles in degrees, smallest first."""
    found = [[subspace_angles(a.T.numpy(), b.T.numpy())[::-1].copy() for b in spans] for a in spans]
    return torch.tensor(np.array(found)).rad2deg()


def representational_independence(
    model: HookedChatModel,
    directions: Mapping[str, DirectionLike],
    prompts: PromptsLike,
    seed: int = 0,
) -> Independence:
    """Ablate each direction, and a random one, and read how the stream's cosine with each changes, layer by layer
    (Wollschläger et al. 2025).

    Args:
        directions: by label; for the basis of a cone, one per vector. The first is what they stand beside.
        prompts: held-out harmful prompts, read at their last token.
        seed: of the random direction.

    Example:
        >>> two = {"r": found, "random": found.direction.random_control(1)}
        >>> rl.direction.representational_independence(model, two, data.harmful.test).ablations
        ('r', 'random', 'placebo')
    """
    texts, reader = as_prompts(prompts), Activations(1)
    known = {name: as_direction(d) for name, d in directions.items()}
    first = next(iter(known.values()))

    def cosines(*under: Any) -> Float[Tensor, "read layer prompt"]:
        x = model.run(texts, read=reader, under=under)[reader][:, 0].double()  # [prompt layer d_model]
        return torch.stack([cosine(x, d.unit.double()).T for d in known.values()])

    before = cosines()
    ablated = {**known, "placebo": first.random_control(seed)}
    units = torch.stack([d.unit.double() for d in known.values()])
    change = torch.stack([cosines(Ablate(d)) - before for d in ablated.values()])
    return Independence(tuple(known), tuple(ablated), before, change, units @ units.T, first)
