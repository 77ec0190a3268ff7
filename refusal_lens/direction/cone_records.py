"""Learned directions and cones, what subspaces do by their dimension, and independence under intervention."""

from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DirectionError
from ..records.base import Record
from ..records.direction import Direction, Subspace
from ..records.labels import index_of
from ..stats import Interval, Rate, columns, mean_interval, rate

PARTS = ("ablation", "addition", "retain", "independence")
MEASURES = ("bypass", "alone", "middle", "induce", "kl", "refused")
FIGURES = "refusal_lens.direction.cone_figures"


@dataclass(frozen=True)
class LearnedCones(Record, axes={"seed": "seeds", "part": PARTS}, figures=FIGURES):
    """Directions (cones of one dimension) or cones learned by gradient, one per seed (Wollschläger et al. 2025).

    Attributes:
        direction: the difference in means whose layer and norm they share.
        seeds: of the random start, the batches and the sampled directions.
        basis: float64, orthonormal rows; the state with the lowest validation loss.
        losses: mean loss of each step's batch by part, nats per token, unweighted; NaN after the last step.
        checks: weighted validation loss by check: before the first step, then every ``every`` steps; NaN after the end.
        every: steps between two checks.
        best: step whose basis is kept, by seed.
        diverged: step at which a training's numbers ceased to be finite, by seed; -1 where they did not.
        reference: weighted validation loss of the difference in means.
        weights: of the parts, in the order of ``PARTS``.
        lr: learning rate.
        n_prompts: harmful and harmless training prompts.
    """

    direction: Direction
    seeds: tuple[int, ...]
    basis: Float[Tensor, "seed vector d_model"]
    losses: Float[Tensor, "seed step part"]
    checks: Float[Tensor, "seed check"]
    every: int
    best: tuple[int, ...]
    diverged: tuple[int, ...]
    reference: float
    weights: tuple[float, ...]
    lr: float
    n_prompts: tuple[int, int]

    @property
    def dimension(self) -> int:
        """Number of basis vectors."""
        return self.basis.shape[1]

    def cone(self, seed: int) -> Subspace:
        """The basis learned with a seed."""
        vectors = self.basis[index_of(self.seeds, seed, "seed")]
        return Subspace(vectors, "learned" if self.dimension == 1 else "cone", self.direction)

    def learned(self, seed: int, vector: int = 0) -> Direction:
        """One basis vector learned with a seed, with the norm and layer of the difference in means."""
        return replace(self.direction, unit=self.cone(seed).vectors[vector].float(), relaxed="", random=None)

    @property
    def overlaps(self) -> Float[Tensor, "seed other"]:
        """Mean cosine of the principal angles between the spans of two seeds; of directions, |cosine|."""
        sizes = [[torch.linalg.svdvals(a @ b.T).mean() for b in self.basis] for a in self.basis]
        return torch.tensor(sizes, dtype=torch.float64).clamp_max(1)

    @property
    def stability(self) -> Interval:
        """Mean overlap of two seeds, bootstrap interval over pairs (which share seeds, so it is too narrow)."""
        n = len(self.seeds)
        return mean_interval([float(self.overlaps[i, j]) for i in range(n) for j in range(i)])

    @property
    def cosines(self) -> Float[Tensor, "seed vector"]:
        """Cosine of each basis vector with the difference in means."""
        return self.basis @ self.direction.unit.double()

    @property
    def _lowest(self) -> list[float]:
        """Lowest validation loss of each seed."""
        return self.checks.nan_to_num(torch.inf).amin(1).tolist()

    def summary(self) -> tuple[str, ...]:
        """How the training ended, and how much seeds agree, in words."""
        what = "direction" if self.dimension == 1 else f"cone of {self.dimension} dimensions"
        ends = (
            f"seed {seed}: validation loss {self.checks[i, 0]:.3g} at the start, {self._lowest[i]:.3g} at step {step}"
            for i, (seed, step) in enumerate(zip(self.seeds, self.best, strict=True))
        )
        told = [f"Learned {what}: {'; '.join(ends)}; of the difference in means {self.reference:.3g}."]
        told += [
            diverged_at(step, self.lr, best) for step, best in zip(self.diverged, self.best, strict=True) if step >= 0
        ]
        own = ", ".join(f"{c:.2f}" for c in self.cosines[:, 0].tolist())
        agree = f"; overlap of two seeds {self.stability.mean:.2f}" if len(self.seeds) > 1 else ""
        return (*told, f"Cosine of the first vector with the difference in means, by seed: {own}{agree}.")

    def to_frame(self) -> pd.DataFrame:
        """One row per seed and basis vector."""
        return pd.DataFrame(
            {
                "seed": seed,
                "vector": i,
                "cosine with r": float(cosine),
                "best step": self.best[s],
                "loss at start": float(self.checks[s, 0]),
                "lowest loss": self._lowest[s],
            }
            for s, seed in enumerate(self.seeds)
            for i, cosine in enumerate(self.cosines[s])
        )


def diverged_at(step: int, lr: float, best: int) -> str:
    """The sentence for a training whose numbers ceased to be finite."""
    return (
        f"The training diverged at step {step} with lr {lr:g} (a number is not finite); the best state before, of "
        f"step {best}, is kept: use a smaller lr."
    )


@dataclass(frozen=True)
class SubspaceEffects(Record, axes={"kind": "kinds", "size": "ks", "measure": MEASURES}, figures=FIGURES):
    """Effects of the first k directions of subspaces, each beside a random subspace.

    Attributes:
        kinds: names of the subspaces, the random one last.
        ks: numbers of directions.
        values: float64, per prompt; NaN where a subspace has fewer directions. On harmful prompts the refusal metric
            with the first k ablated (``bypass``), with the k-th ablated alone (``alone``), and with the middle of the
            first k, their normalized sum, ablated alone (``middle``: inside a cone every direction should do); on
            harmless prompts the metric with the k-th added at the length of r (``induce``) and the KL(baseline ||
            ablated) of the next token with the first k ablated, nats (``kl``); ``refused``, whether the reply to a
            harmful prompt with the first k ablated is a refusal (NaN if not asked for).
        baseline: the same without intervention (KL: 0).
        leading_cosine: cosine of each subspace's first direction with r̂.
        direction: r, whose layer and length addition uses.
        inside: the refusal metric with one direction inside the first k ablated alone, drawn uniformly from their cone;
            NaN as in ``values``; None in records made before this was measured.
    """

    kinds: tuple[str, ...]
    ks: tuple[int, ...]
    values: Float[Tensor, "kind size measure prompt"]
    baseline: Float[Tensor, "measure prompt"]
    leading_cosine: tuple[float, ...]
    direction: Direction
    inside: Float[Tensor, "kind size sample prompt"] | None = None

    def found(self, kind: str, k: int, measure: str) -> Interval | Rate:
        """A measure with its 95% interval: Clopper-Pearson's of refusals, else a bootstrap over prompts."""
        return _point(self._row(kind, k, measure), measure)

    def sampled(self, kind: str, k: int) -> tuple[Interval, Interval]:
        """The metric with a direction inside the first k ablated: mean over those drawn, and the weakest of them.

        The weakest is chosen and reported on the same prompts, so it looks a little weaker than it is.
        """
        if self.inside is None:
            raise DirectionError("these effects have no directions inside: measure them again")
        rows = self.inside[index_of(self.kinds, kind, "kind"), index_of(self.ks, k, "size")]
        return mean_interval(rows.mean(0).tolist()), mean_interval(rows[int(rows.mean(1).argmax())].tolist())

    def before(self, measure: str) -> Interval | Rate:
        """The same without intervention."""
        return _point(self.baseline[index_of(MEASURES, measure, "measure")], measure)

    def size(self, kind: str) -> int:
        """Number of directions of a subspace."""
        known = ~self.values[index_of(self.kinds, kind, "kind"), :, 0].isnan().all(-1)
        return self.ks[int(known.nonzero().max())]

    def gain(self, kind: str, k: int) -> Interval:
        """How much further the k-th direction lowers the metric beyond the random subspace's k-th, paired by prompt."""
        if k < 2 or k > self.size(kind):
            raise DirectionError(f"{kind} has {self.size(kind)} directions: give k from 2 to {self.size(kind)}")
        drops = [self._row(name, k - 1, "bypass") - self._row(name, k, "bypass") for name in (kind, "random")]
        return mean_interval((drops[0] - drops[1]).tolist())

    def _row(self, kind: str, k: int, measure: str) -> Float[Tensor, "prompt"]:
        return self.sel(kind=kind, size=k, measure=measure).values

    def summary(self) -> tuple[str, ...]:
        """What one direction does, and what the second adds beyond the placebo, in words."""
        one = ", ".join(f"{kind} {self.found(kind, 1, 'bypass').mean:.2f}" for kind in self.kinds)
        told = [
            f"Refusal metric of harmful prompts with one direction ablated: {one} (without: "
            f"{self.before('bypass').mean:.2f})."
        ]
        more = {kind: self.gain(kind, 2) for kind in self.kinds[:-1] if self.size(kind) > 1}
        if more:
            found = "; ".join(f"{kind} {gain}" for kind, gain in more.items())
            told.append(f"A second direction lowers it further, beyond a random one, by: {found}.")
            if self.inside is not None:
                weak = ", ".join(f"{kind} {self.sampled(kind, 2)[1]}" for kind in (*more, self.kinds[-1]))
                n = self.inside.shape[2]
                told.append(f"With the weakest of {n} directions inside the first two ablated alone it is: {weak}.")
        return tuple(told)

    def to_frame(self) -> pd.DataFrame:
        """One row per subspace and number of directions."""
        rows = []
        for kind in self.kinds:
            for k in self.ks[: self.size(kind)]:
                row: dict[str, object] = {"kind": kind, "k": k}
                for name in MEASURES:
                    row |= columns(self.found(kind, k, name), name, f"{name}_")
                if self.inside is not None:
                    for name, found in zip(("inside", "weakest"), self.sampled(kind, k), strict=True):
                        row |= columns(found, name, f"{name}_")
                rows.append({**row, "n": self.values.shape[-1]})
        return pd.DataFrame(rows).dropna(axis=1, how="all")


def _point(values: Tensor, measure: str) -> Interval | Rate:
    known = values[~values.isnan()].tolist()
    return rate([v > 0.5 for v in known]) if measure == "refused" and known else mean_interval(known)


@dataclass(frozen=True)
class Independence(Record, axes={"ablated": "ablations", "read": "names", "other": "names"}, figures=FIGURES):
    """Change of the stream's cosine with each direction when another is ablated: none for directions that are
    representationally independent (Wollschläger et al. 2025).

    Attributes:
        names: the directions that are read.
        ablations: those ablated, a random one last.
        before: cosine of resid_pre at the prompt's last token with each direction, without intervention.
        change: cosine under ablation minus before.
        cosines: of every two directions.
        direction: the difference in means they stand beside.
    """

    names: tuple[str, ...]
    ablations: tuple[str, ...]
    before: Float[Tensor, "read layer prompt"]
    change: Float[Tensor, "ablated read layer prompt"]
    cosines: Float[Tensor, "read other"]
    direction: Direction

    def size(self, ablated: str, read: str) -> Interval:
        """Mean over layers of the change's magnitude, bootstrap 95% interval over prompts."""
        return mean_interval(self.sel(ablated=ablated, read=read).change.abs().mean(0).tolist())

    def to_frame(self) -> pd.DataFrame:
        """One row per ablated and read direction."""
        return pd.DataFrame(
            {"ablated": a, "read": b, **columns(found := self.size(a, b), "change"), "n": found.n}
            for a in self.ablations
            for b in self.names
        )


@dataclass(frozen=True)
class GroupAngles(Record, axes={"group": "names", "other": "names"}, figures=FIGURES):
    """Principal angles between the subspaces of groups of prompts: categories of harm, or languages.

    Attributes:
        names: of the groups.
        sizes_harmful: harmful prompts of each group.
        basis: orthonormal: a group's difference in means first, then the principal components of what is left.
        angles: degrees, smallest first, at the direction's position and layer.
        control: the same for random groups of the same sizes out of all prompts, by draw.
        halves: smallest angle between random halves of one group, by draw: what a sample of this size leaves open.
        direction: r, whose position and layer they share.
    """

    names: tuple[str, ...]
    sizes_harmful: tuple[int, ...]
    basis: Float[Tensor, "group vector d_model"]
    angles: Float[Tensor, "group other angle"]
    control: Float[Tensor, "draw group other angle"]
    halves: Float[Tensor, "draw group"]
    direction: Direction

    @property
    def subspace(self) -> Subspace:
        """One subspace of all groups' differences in means: their principal components, uncentred, largest first."""
        units = self.basis[:, 0]
        vectors = torch.linalg.svd(units, full_matrices=False).Vh
        return Subspace(
            vectors * torch.where((units.sum(0) @ vectors.T) < 0, -1.0, 1.0)[:, None], "groups", self.direction
        )

    def pairs(self, angle: int = 0) -> list[tuple[str, str, float, float, float]]:
        """Every two groups: names, angle, the mean of random groups, and the share of draws at least as large."""
        found = []
        for i, one in enumerate(self.names):
            for j in range(i):
                own, drawn = self.angles[i, j, angle], self.control[:, i, j, angle]
                share = (1 + int((drawn >= own).sum())) / (1 + len(drawn))
                found.append((self.names[j], one, float(own), float(drawn.mean()), share))
        return found

    def summary(self) -> tuple[str, ...]:
        """The angles beside those of random groups, in words."""
        rows = self.pairs()
        far = [p for *_, p in rows if p <= 0.05]
        mean, control = (sum(found) / len(rows) for found in ([row[2] for row in rows], [row[3] for row in rows]))
        return (
            f"Smallest principal angle between two of {len(self.names)} groups: mean {mean:.0f}°, of random groups of "
            f"the same sizes {control:.0f}°, of halves of one group {float(self.halves.mean()):.0f}°. Larger than in "
            f"95% of {len(self.control)} random groupings: {len(far)} of {len(rows)} pairs.",
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of groups and angle."""
        return pd.DataFrame(
            [(k + 1, *row) for k in range(self.angles.shape[-1]) for row in self.pairs(k)],
            columns=["angle", "group", "other", "degrees", "random groups", "p"],
        )
