"""Detectors of harmful requests against each other: the projection on r̂ beside probes that were trained for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..data.borderline import Borderline
from ..data.prompts import PromptPair, check_pair
from ..errors import PromptError
from ..hooks.readers import Cache, Residual, at
from ..models.model import HookedChatModel
from ..progress import Progress, silent
from ..records.direction import Direction, DirectionLike, as_direction
from ..stats import auroc, threshold_at
from .controls import random_controls
from .probe_records import DETECTORS, PROBES, DetectorComparison

L2, K = 0.01, 16  # penalty on squared coefficients beside the mean loss; coordinates of the sparse probe
Scorer = Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class _Features:
    """What detectors see of some prompts: resid_pre of every layer at r̂'s position, and pooled projections."""

    x: np.ndarray  # layer prompt d_model, float32
    pooled: np.ndarray  # layer prompt


def _read(
    model: HookedChatModel, texts: Sequence[str], r: Direction, suffixes: Sequence[str] | None = None
) -> _Features:
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    stream, regions = Cache(names, at(r.pos)), [Residual(r, "instruction")]
    regions += [Residual(r, "suffix")] * (suffixes is not None)
    rows = model.run(list(texts), suffixes, read=[stream, *regions])
    x = torch.stack([rows[stream][name][:, 0].float() for name in names])
    pooled = torch.stack([rows[region].highest[:-1] for region in regions]).amax(0)
    return _Features(x.numpy(), pooled.double().numpy())


def fit_probes(x: np.ndarray, harmful: np.ndarray) -> dict[str, list[Scorer | None]]:
    """Fit the trained detectors at every layer.

    Logistic regression has an L2 penalty on standardized coordinates; the sparse probe is one on the 16 coordinates
    whose class means differ most in standard deviations (Gurnee et al. 2023); the distance is Mahalanobis's from the
    harmless prompts in their standard deviations, with Ledoit and Wolf's covariance.

    Args:
        x: activations of training prompts, [layer prompt d_model].
        harmful: which prompts are harmful.

    Returns:
        Detector -> one score function per layer, None where the layer is the same for all prompts.
    """
    found: dict[str, list[Scorer | None]] = {name: [] for name in PROBES}
    for layer in x:
        if not _varies(layer):
            found = {name: [*scorers, None] for name, scorers in found.items()}
            continue
        sparse = SelectKBest(f_classif, k=min(K, int((np.ptp(layer, axis=0) > 0).sum())))
        for name, select in (("logistic regression", []), ("sparse probe", [sparse])):
            last = LogisticRegression(C=1 / (L2 * len(layer)), max_iter=1000)
            pipe = make_pipeline(VarianceThreshold(), StandardScaler(), *select, last).fit(layer, harmful)
            found[name].append(pipe.decision_function)
        found["Mahalanobis distance"].append(_distance(layer[~harmful].astype(float)))
    return found


def _distance(harmless: np.ndarray) -> Scorer:
    """From these prompts; standardized first, since the covariance is shrunk to one variance for all coordinates."""
    if not _varies(harmless):
        return lambda x: np.zeros(len(x))
    scale = make_pipeline(VarianceThreshold(), StandardScaler()).fit(harmless)
    covariance = LedoitWolf().fit(scale.transform(harmless))
    return lambda x: covariance.mahalanobis(scale.transform(x))


def _varies(layer: np.ndarray) -> bool:
    """Whether prompts differ at a layer by more than rounding; at the first one a template token is itself."""
    return bool(np.ptp(layer, axis=0).max() > 1e-6 * np.abs(layer).max())


class _Scores:
    """Every detector's scores of prompts, by layer."""

    def __init__(self, r: Direction, seed: int, features: _Features, harmful: np.ndarray):
        self.r = r.unit.double().numpy()
        random = r.random_control(seed).unit.double().numpy()
        means = [(layer[harmful].mean(0) - layer[~harmful].mean(0)) @ random for layer in features.x]
        self.random = np.where(np.asarray(means) < 0, -1.0, 1.0)[:, None] * random  # harmful prompts are higher
        self.probes = fit_probes(features.x, harmful)
        self.constant = [i for i, scorer in enumerate(self.probes["sparse probe"]) if scorer is None]

    def __call__(self, found: _Features, name: str, layer: int) -> np.ndarray:
        if name == "pooled projection":
            return found.pooled[layer]
        if layer in self.constant:
            return np.zeros(found.x.shape[1])
        if name in self.probes and (scorer := self.probes[name][layer]):
            return scorer(found.x[layer]).astype(float)
        return found.x[layer] @ (self.r if name == "projection" else self.random[layer])


def compare_detectors(
    model: HookedChatModel,
    data: PromptPair,
    direction: DirectionLike,
    borderline: Borderline | None = None,
    suffixes: str | Sequence[str] = (),
    *,
    false_alarms: float = 0.01,
    seed: int = 1,
    progress: Progress = silent,
) -> DetectorComparison:
    """Compare the projection on r̂ with detectors that are fitted, on plain, suffixed and borderline prompts.

    All read resid_pre at r̂'s position, but for the pooled projection, the largest over the tokens of the request (and
    its suffix). Probes are fitted on plain training prompts; each detector's layer is the one that separates validation
    prompts best, and its threshold is set on harmless validation prompts. Memory is one row per prompt and layer.

    Args:
        data: split into training, validation and test prompts; 500 harmless ones in the latter two are enough for a
            threshold at 1% false alarms.
        borderline: all its safe requests are tests of false alarms, its contrasts of detection.
        suffixes: appended to test prompts of both kinds, each beside random tokens of equal length.
        false_alarms: the share of harmless validation prompts that may lie above a threshold.
        seed: of the random direction and the random tokens.

    Raises:
        PromptError: a kind without prompts in a split, or training prompts that are all the same at r̂'s position.

    Example:
        >>> compared = rl.hijacking.compare_detectors(model, data, found)
        >>> print(compared.auroc("projection", "plain"))
        1 [1, 1] (n = 24)
    """
    check_pair(data)
    r, suffixes = as_direction(direction), [suffixes] if isinstance(suffixes, str) else suffixes
    model.check_direction(r)
    for kind in data:
        for split, texts in (("training", kind.train), ("validation", kind.val), ("test", kind.test)):
            if not texts:
                raise PromptError(f"there is no {kind.name} {split} prompt: detectors need both kinds in every split")
    with progress("compare detectors", 4 + 4 * len(suffixes)) as advance:

        def read(texts: Sequence[str], ends: Sequence[str] | None = None) -> _Features:
            found = _read(model, texts, r, ends)
            advance(1)
            return found

        flags = np.array([True] * len(data.harmful.train) + [False] * len(data.harmless.train))
        scores = _Scores(r, seed, read([*data.harmful.train, *data.harmless.train]), flags)
        val = [read(kind.val) for kind in data]
        if len(scores.constant) == model.n_layers:
            raise PromptError(f"all training prompts are the same at position {r.pos} at every layer: check them")
        areas = np.array([[_area(scores, val, n, i)[0] for i in range(model.n_layers)] for n in DETECTORS])
        layers = [max(range(model.n_layers), key=lambda i: _area(scores, val, n, i)) for n in DETECTORS]
        chosen = list(zip(DETECTORS, layers, strict=True))
        limits = [threshold_at(scores(val[1], n, i), false_alarms) for n, i in chosen]
        groups, columns, tests = _tests(model, data, borderline, suffixes, seed, read, scores, chosen)
    notes = [f"layer {i} is the same for all training prompts at position {r.pos}" for i in scores.constant]
    return DetectorComparison(
        direction=r,
        validation=torch.from_numpy(areas),
        layers=tuple(layers),
        thresholds=tuple(map(float, limits)),
        scores=torch.from_numpy(np.concatenate(columns, 1)),
        groups=tuple(groups),
        tests=tuple(tests),
        n_train=(len(data.harmful.train), len(data.harmless.train)),
        n_val=(len(data.harmful.val), len(data.harmless.val)),
        suffixes=tuple(suffixes),
        false_alarms=false_alarms,
        notes=tuple(notes),
    )


def _area(scores: _Scores, val: Sequence[_Features], name: str, layer: int) -> tuple[float, float]:
    """AUROC on validation prompts and, to choose where several layers separate all of them, the standardized gap."""
    harmful, harmless = (scores(some, name, layer) for some in val)
    spread = np.sqrt((harmful.var() + harmless.var()) / 2) or 1.0
    return auroc(harmful, harmless).mean, float((harmful.mean() - harmless.mean()) / spread)


def _tests(
    model: HookedChatModel,
    data: PromptPair,
    borderline: Borderline | None,
    suffixes: Sequence[str],
    seed: int,
    read: Callable[..., _Features],
    scores: _Scores,
    chosen: Sequence[tuple[str, int]],
) -> tuple[list[str], list[np.ndarray], list[tuple[str, str, str]]]:
    """Group of every test prompt, its scores, and the tests (name, harmful group, harmless group)."""
    harmful, harmless = data.harmful.test.texts, data.harmless.test.texts
    sets: dict[str, tuple[Sequence[str], Any]] = {"harmful": (harmful, None), "harmless": (harmless, None)}
    tests = [("plain", "harmful", "harmless")]
    for i, text in enumerate(suffixes, start=1):
        for name in (f"suffix {i}", f"random tokens {i}"):
            kinds = {f"harmful + {name}": harmful, f"harmless + {name}": harmless[: len(harmful)]}
            for group, some in kinds.items():
                drawn = random_controls(model.chat, some, text, seed).texts if name.startswith("random") else None
                sets[group] = some, drawn or [text] * len(some)
            tests.append((name, *kinds))  # type: ignore[arg-type]
    if borderline is not None:
        sets["borderline"] = [*borderline.train, *borderline.test], None
        tests.append(("borderline", "harmful", "borderline"))
        if borderline.contrasts:
            sets["contrasts"] = borderline.contrasts.texts, None
            tests.append(("contrasts", "contrasts", "borderline"))
    groups, columns = [], []
    for group, (texts, ends) in sets.items():
        found = read(texts, ends)
        groups += [group] * len(texts)
        columns.append(np.stack([scores(found, name, layer) for name, layer in chosen]))
    return groups, columns, tests
