"""Every result as a frozen dataclass of tensors and labels, saved without pickle.

A record with tensors is one ``.safetensors`` file whose header holds the rest as JSON; a record without
tensors is a ``.json`` file. Files are written beside their place and renamed, so a reader never meets half a
file. Reading trusts nothing: every field is compared with its annotation before a record is made.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import safetensors
import torch
from jaxtyping import Float
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .errors import DirectionError, ResultError
from .fields import misfit
from .linalg import cosine, random_unit
from .stats import Interval, Rate
from .storage import write_atomically

SCHEMA_VERSION = 1
MAX_GRID = 1 << 20  # positions x layers: far above any model
_REGISTRY: dict[str, type] = {"Rate": Rate, "Interval": Interval}
R = TypeVar("R", bound="Record")


class _Misfit(ValueError):
    """A value that its field does not take."""


class Record:
    """Base of all records: ``save``, ``load``, and a place in the registry by class name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls

    def save(self, path: str | Path) -> Path:
        """Write the record; the suffix (``.safetensors`` or ``.json``) is put on if missing, and returned."""
        tensors: dict[str, Tensor] = {}
        document = {"schema": SCHEMA_VERSION, "record": _encode(self, "", tensors)}
        target = _with_suffix(Path(path), ".safetensors" if tensors else ".json")
        if tensors:
            header = {"refusal_lens": json.dumps(document, allow_nan=False)}
            write_atomically(target, to_safetensors(tensors, metadata=header))
        else:
            write_atomically(target, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode())
        return target

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read what ``save`` wrote.

        Raises:
            ResultError: if the file is missing, broken, or holds another kind of record.
        """
        return load_record(path, cls)


def load_record(path: str | Path, kind: type[R]) -> R:
    """Read a record of one kind from its file (the suffix may be left out).

    Raises:
        ResultError: if the file is missing, broken, or holds another kind of record.
    """
    target, document, tensors = _read(Path(path))
    try:
        if not 1 <= document["schema"] <= SCHEMA_VERSION:
            raise ResultError(
                f"{target} has schema {document['schema']}, and this version reads 1 to {SCHEMA_VERSION}: a newer "
                "refusal_lens wrote it, or the file is damaged"
            )
        record = _decode(document["record"], tensors)
    except ResultError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, _Misfit) else repr(error)
        raise ResultError(f"{target} is not a refusal_lens record ({what[:200]}); run the study again") from error
    if not isinstance(record, kind):
        raise ResultError(f"{target} holds a {type(record).__name__}, not a {kind.__name__}")
    return record


def _with_suffix(path: Path, suffix: str) -> Path:
    return path if path.suffix == suffix else path.with_name(path.name + suffix)


def _read(path: Path) -> tuple[Path, Any, dict[str, Tensor]]:
    names = [path] if path.suffix in (".safetensors", ".json") else []
    names += [_with_suffix(path, ".safetensors"), _with_suffix(path, ".json")]
    target = next((name for name in names if name.is_file()), None)
    if target is None:
        raise ResultError(f"there is no record at {path}")
    try:
        if target.suffix == ".json":
            return target, json.loads(target.read_text("utf-8")), {}
        with safetensors.safe_open(target, "pt") as file:
            document = json.loads((file.metadata() or {}).get("refusal_lens", "null"))
            return target, document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ResultError(f"{target} can't be read: {(str(error).splitlines() or ['?'])[0][:200]}") from error


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "value"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _encode(getattr(value, f.name), f"{path}.{f.name}".lstrip("."), tensors)
            for f in dataclasses.fields(value)
        }
        return {"$record": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(k): _encode(v, f"{path}.{k}".lstrip("."), tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(v, f"{path}.{i}".lstrip("."), tensors) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a record can't hold a {type(value).__name__} at {path!r}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, tensors) for v in value)
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$float" in value:
        return float(value["$float"])
    if "$record" in value:
        cls = _REGISTRY[value["$record"]]
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: _decode(v, tensors) for k, v in value.items() if k in known}
        if wrong := misfit(cls, values):
            raise _Misfit(wrong)
        return cls(**values)
    return {k: _decode(v, tensors) for k, v in value.items()}


# --- the central records -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction(Record):
    """A direction of the residual stream (paper section 2.3).

    Ablation uses ``unit``; addition adds ``coeff * norm * unit`` at ``layer``'s resid_pre.

    Attributes:
        unit: r̂, shape [d_model], float32, length 1.
        norm: length of the mean difference r, in residual-stream units.
        pos: the post-instruction position it came from (-1 is the last token of the prompt).
        layer: the layer whose resid_pre it came from.
        basis: basis of the residual stream it lives in (see ``HookedChatModel.basis``).
        model: fingerprint of the model it belongs to; "" for none (then no check is made).
        coeff: how many times r an addition adds by default.
        relaxed: what of the paper's rule was relaxed to choose it, "" if nothing.
    """

    unit: Float[Tensor, "d_model"]
    norm: float
    pos: int
    layer: int
    basis: str = "raw"
    model: str = ""
    coeff: float = 1.0
    relaxed: str = ""

    @property
    def vector(self) -> Float[Tensor, "d_model"]:
        """r itself, ``norm * unit``."""
        return self.norm * self.unit

    def random_control(self, seed: int) -> Direction:
        """A random direction of the same norm, layer and basis: this direction's placebo."""
        return dataclasses.replace(self, unit=random_unit(len(self.unit), seed))

    def cosine(self, other: Direction) -> float:
        """Cosine with another direction of the same model and basis.

        Raises:
            DirectionError: if model, basis or size differ.
        """
        if (self.basis, self.model, len(self.unit)) != (other.basis, other.model, len(other.unit)):
            raise DirectionError(
                f"directions of different spaces can't be compared: model {self.model!r} basis {self.basis!r} "
                f"against model {other.model!r} basis {other.basis!r}"
            )
        return float(cosine(self.unit, other.unit))

    @property
    def label(self) -> str:
        """E.g. ``(-1, 12)``: position and layer."""
        return f"({self.pos}, {self.layer})"


@dataclass(frozen=True)
class CandidateDirections(Record):
    """Mean differences at all post-instruction positions and layers (paper section 2.3).

    Attributes:
        mean_diff: r[pos, layer], float64, harmful minus harmless mean of resid_pre; pos runs from -n_pos to -1.
        harmful_mean: mean of resid_pre over harmful prompts, same shape.
        harmless_mean: the same over harmless ones.
        pos_labels: the template tokens at these positions, for plots.
        n_harmful: number of harmful prompts.
        n_harmless: number of harmless prompts.
        basis, model: as in ``Direction``.
    """

    mean_diff: Float[Tensor, "pos layer d_model"]
    harmful_mean: Float[Tensor, "pos layer d_model"]
    harmless_mean: Float[Tensor, "pos layer d_model"]
    pos_labels: tuple[str, ...]
    n_harmful: int
    n_harmless: int
    basis: str
    model: str

    @property
    def positions(self) -> range:
        """Positions of axis 0: -n_pos .. -1."""
        return range(-self.mean_diff.shape[0], 0)

    @property
    def n_layers(self) -> int:
        """Number of layers on axis 1."""
        return self.mean_diff.shape[1]

    def direction(self, pos: int, layer: int, coeff: float = 1.0, relaxed: str = "") -> Direction:
        """The candidate at (pos, layer) as a ``Direction``.

        Raises:
            DirectionError: if its mean difference is zero or not finite (e.g. identical tokens at layer 0).
        """
        r = self.mean_diff[self.positions.index(pos), layer]
        norm = float(r.norm())
        if not 0 < norm < float("inf"):
            raise DirectionError(f"candidate ({pos}, {layer}) has norm {norm}: it has no direction")
        return Direction((r / norm).float(), norm, pos, layer, self.basis, self.model, coeff, relaxed)


@dataclass(frozen=True)
class SelectionScores(Record):
    """The paper's three scores of every candidate (section 2.3); NaN where not computed or not a number.

    Attributes:
        bypass: mean refusal metric on harmful prompts under ablation, [pos, layer]; lower is better.
        induce: mean refusal metric on harmless prompts under addition.
        kl: mean KL(baseline || ablated) of the next token on harmless prompts, nats.
    """

    bypass: Float[Tensor, "pos layer"]
    induce: Float[Tensor, "pos layer"]
    kl: Float[Tensor, "pos layer"]

    @property
    def positions(self) -> range:
        """Positions of axis 0: -n_pos .. -1."""
        return range(-self.bypass.shape[0], 0)

    @classmethod
    def from_records(cls, rows: list[dict], n_layers: int | None = None) -> SelectionScores:
        """Take the official code's ``direction_evaluations.json`` rows as they are.

        Args:
            rows: each with position, layer, refusal_score (bypass), steering_score (induce), kl_div_score.
            n_layers: number of layers of the model; the highest layer in the rows plus one if not given.

        Raises:
            ResultError: if a row lacks a field or lies outside the grid.
        """
        try:
            n_pos = -min(int(row["position"]) for row in rows)
            depth = n_layers or 1 + max(int(row["layer"]) for row in rows)
            if not (n_pos > 0 and depth > 0 and n_pos * depth <= MAX_GRID):  # before memory is asked for
                raise ValueError(f"a grid of {n_pos} positions and {depth} layers")
            grids = torch.full((3, n_pos, depth), float("nan"), dtype=torch.float64)
            for row in rows:
                values = [row["refusal_score"], row["steering_score"], row["kl_div_score"]]
                grids[:, row["position"] + n_pos, row["layer"]] = torch.tensor(
                    [float("nan") if v is None else v for v in values], dtype=torch.float64
                )
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ResultError(f"these are not rows of direction_evaluations.json: {error!r}") from error
        return cls(*grids)

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate: pos, layer, bypass, induce, kl."""
        rows = [
            {
                "pos": pos,
                "layer": layer,
                "bypass": float(self.bypass[i, layer]),
                "induce": float(self.induce[i, layer]),
                "kl": float(self.kl[i, layer]),
            }
            for i, pos in enumerate(self.positions)
            for layer in range(self.bypass.shape[1])
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class NearMiss(Record):
    """A candidate that the rule dropped, and the change that would have kept it."""

    pos: int
    layer: int
    bypass: float
    induce: float
    kl: float
    needs: tuple[str, ...]
    coeff: float = 1.0

    def __str__(self) -> str:
        return (
            f"({self.pos}, {self.layer}): bypass {self.bypass:.2f}, induce {self.induce:.2f}, "
            f"KL {self.kl:.3f}; needs {' and '.join(self.needs)}"
        )


@dataclass(frozen=True)
class Selection(Record):
    """The chosen direction, and for every candidate why it was or was not kept.

    Attributes:
        chosen: the winner.
        scores: the three grids.
        reasons: reason by [pos][layer]; "" for a kept candidate.
        kept: (pos, layer) of the kept candidates, best first.
        baseline_harmful: mean refusal metric on the harmful validation prompts without intervention.
        baseline_harmless: the same on the harmless ones.
        thresholds: the rule's thresholds as used.
        near_misses: nearest dropped candidates (filled when nothing passed).
        n_harmful, n_harmless: number of validation prompts after filtering.
    """

    chosen: Direction
    scores: SelectionScores
    reasons: tuple[tuple[str, ...], ...]
    kept: tuple[tuple[int, int], ...]
    baseline_harmful: float
    baseline_harmless: float
    thresholds: dict[str, float]
    near_misses: tuple[NearMiss, ...] = ()
    n_harmful: int = 0
    n_harmless: int = 0

    def score(self, name: str) -> float:
        """``bypass``, ``induce`` or ``kl`` of the chosen candidate."""
        grid = getattr(self.scores, name)
        return float(grid[self.scores.positions.index(self.chosen.pos), self.chosen.layer])


@dataclass(frozen=True)
class RefusalTokens(Record):
    """First tokens of refusals, whose summed probability the refusal metric reads.

    Attributes:
        ids: token ids.
        texts: the same as text, whitespace visible.
        shares: share of refused replies that began with each; empty when given by hand.
        source: "given" or how they were found.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    shares: tuple[float, ...] = ()
    source: str = "given"


@dataclass(frozen=True)
class Completion(Record):
    """One reply: prompt, reply, condition, the substring judge's verdict."""

    prompt: str
    response: str
    condition: str
    refused: bool


@dataclass(frozen=True)
class Completions(Record):
    """Replies under one or more conditions, and the rates they give.

    Attributes:
        items: the completions.
        prompt_set: name of the prompts ("harmful", "harmless").
        max_new_tokens: how far each reply went at most.
    """

    items: tuple[Completion, ...]
    prompt_set: str
    max_new_tokens: int

    @property
    def conditions(self) -> tuple[str, ...]:
        """Conditions in order of first appearance."""
        return tuple(dict.fromkeys(item.condition for item in self.items))

    def of(self, condition: str) -> tuple[Completion, ...]:
        """The completions of one condition, in prompt order."""
        return tuple(item for item in self.items if item.condition == condition)

    def __iter__(self) -> Iterator[Completion]:
        return iter(self.items)

    def to_frame(self) -> pd.DataFrame:
        """One row a completion."""
        return pd.DataFrame([dataclasses.asdict(item) for item in self.items])


@dataclass(frozen=True)
class DirectionTrace(Record):
    """Cosine and projection of the last position's residual stream on r̂, by layer (paper Fig. 5).

    Attributes:
        cosine: [condition, layer, prompt]; layer l is resid_pre of l, and the last entry the final resid_post.
        projection: r̂ᵀx, same shape, residual-stream units.
        conditions: labels of axis 0.
    """

    cosine: Float[Tensor, "condition layer prompt"]
    projection: Float[Tensor, "condition layer prompt"]
    conditions: tuple[str, ...]
    direction: Direction | None = field(default=None)
