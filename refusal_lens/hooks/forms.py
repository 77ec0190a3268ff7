"""The forms of ablation: about which point, along which perpendicular, where, and at which tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DirectionError, InterventionError
from ..records.stream import StreamStatistics
from .base import Model

CHOICES = {"reference": ("zero", "mean"), "metric": ("plain", "scaled", "oblique"), "site": ("writes", "inputs")}


@dataclass(frozen=True)
class Form:
    """A form of ablation: x <- x - r wᵀ(x - μ) / wᵀr, of which the paper's has w = r and μ = 0, at every write.

    Afterwards wᵀ(x - μ) is 0, and x has moved along r only.

    Attributes:
        reference: μ: "zero", or the "mean" of the stream at that layer.
        metric: w: "plain" for r, "scaled" for r / σ² (by coordinate), "oblique" for Σ⁻¹r (LEACE's projection, Belrose
            et al. 2023, with a shrunk Σ).
        site: "writes" (the paper's) or "inputs", the stream at the input of every block. A mean or a deviation is that
            of the stream, so all but the paper's form act at "inputs".
        spare: leave massive tokens alone, by their norm.

    Raises:
        InterventionError: an unknown word, or statistics of the stream at writes.

    Example:
        >>> from refusal_lens.hooks import Form
        >>> Form("mean", "scaled", "inputs").needs_statistics, Form().needs_statistics
        (True, False)
    """

    reference: str = "zero"
    metric: str = "plain"
    site: str = "writes"
    spare: bool = False

    def __post_init__(self) -> None:
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise InterventionError(f"{name}={getattr(self, name)!r}: choose from {', '.join(words)}")
        if self.site == "writes" and self.needs_statistics:
            raise InterventionError(
                "means, deviations and norms are those of the stream, not of one write: use site='inputs'"
            )

    @property
    def needs_statistics(self) -> bool:
        """Whether it takes ``StreamStatistics``."""
        return (self.reference, self.metric, self.spare) != ("zero", "plain", False)


FORMS = {
    "paper": Form(),
    "stream": Form(site="inputs"),
    "affine": Form("mean", "plain", "inputs", True),
    "scaled": Form("mean", "scaled", "inputs", True),
    "oblique": Form("mean", "oblique", "inputs", True),
}


def as_form(value: Form | str) -> Form:
    """A form, or the one of ``FORMS`` that a name stands for; an ``InterventionError`` for an unknown name."""
    if isinstance(value, Form):
        return value
    if value not in FORMS:
        raise InterventionError(f"there is no form of ablation {value!r}; choose from {', '.join(FORMS)}, or a Form")
    return FORMS[value]


def form_name(form: Form) -> str:
    """The name of a form in ``FORMS``, or its settings."""
    own = ", ".join(filter(None, (form.reference, form.metric, form.site, "spare" if form.spare else "")))
    return next((name for name, known in FORMS.items() if known == form), own)


def check_statistics(form: Form, statistics: StreamStatistics | None, model: Model) -> None:
    """Refuse a form without its statistics (``InterventionError``), or with those of another model, basis or size
    (``DirectionError``)."""
    if not form.needs_statistics:
        return
    if statistics is None:
        raise InterventionError(
            f"the form {form_name(form)!r} takes statistics of the stream: give statistics=candidates.statistics, or "
            "stream_statistics(model, prompts)"
        )
    whose = (statistics.basis, statistics.model or model.fingerprint, tuple(statistics.mean.shape))
    if whose != (model.basis, model.fingerprint, (model.n_layers, model.d_model)):
        raise DirectionError(
            f"these statistics are of another model or basis than {model.name}: make them anew with "
            "stream_statistics(model, prompts)"
        )


def weighted(
    rows: Float[Tensor, "k d_model"], form: Form, statistics: StreamStatistics | None, layer: int
) -> Float[Tensor, "k d_model"]:
    """``M r`` for each row, M the inverse of what the form's metric takes as the stream's covariance (float64); an
    ``InterventionError`` for a row on a coordinate that is constant in the statistics."""
    if form.metric == "plain" or statistics is None:
        return rows
    std = statistics.std[layer].to(rows)
    constant = std == 0
    if bool((rows[:, constant].abs() > 1e-9).any()):
        where = int(constant.nonzero()[0])
        raise InterventionError(
            f"coordinate {where} of layer {layer} is constant over the {statistics.n_tokens[layer]} tokens of the "
            "statistics, so nothing can be scaled by its deviation of 0: make them from more prompts, or use the form "
            "'affine'"
        )
    scale = std.masked_fill(constant, 1)
    if form.metric == "scaled":
        return rows / scale.square()
    return rows / scale @ statistics.precision[layer].to(rows) / scale


@dataclass(frozen=True)
class LayerEdit:
    """What a form does at one layer: x - share * (x Wᵀ - offset) V.

    Attributes:
        along: V, the directions along which x moves.
        measure: W, with W Vᵀ = 1.
        offset: W μ; None where μ is 0.
        limit: norm above which a token is left alone; infinite where none is.
        note: told which tokens were left alone.
    """

    along: Float[Tensor, "k d_model"]
    measure: Float[Tensor, "k d_model"]
    offset: Float[Tensor, "k"] | None
    limit: float
    note: Callable[[Tensor], None] | None = None

    @classmethod
    def of(
        cls,
        rows: Float[Tensor, "k d_model"],
        form: Form,
        statistics: StreamStatistics | None,
        layer: int,
        apart: bool,
        device: torch.device,
        note: Callable[[Tensor], None] | None = None,
    ) -> LayerEdit:
        """Prepare a layer; with ``apart`` each row is an edit of its own (candidates), else it removes all of them."""
        measure = weighted(rows, form, statistics, layer)
        if form.metric == "plain":  # rows of length 1, at right angles where they act together
            pass
        elif apart:
            measure = measure / (measure * rows).sum(-1, keepdim=True)
        else:
            measure = torch.linalg.solve(measure @ rows.mT, measure)
        offset = None
        if form.reference == "mean" and statistics is not None:
            offset = (measure @ statistics.mean[layer].to(rows)).to(device)
        limit = float(statistics.limit[layer]) if form.spare and statistics is not None else float("inf")
        return cls(rows.to(device), measure.to(device), offset, limit, note)

    def __call__(self, x: Float[Tensor, "*batch d_model"], share: float) -> Float[Tensor, "*batch d_model"]:
        """Edit activations in float32 or better: all rows at once."""
        v, amount = self.along.to(x), x @ self.measure.to(x).mT
        if self.offset is not None:
            amount = amount - self.offset.to(x)
        # Products and one fused step: half the time of (x - (x * r).sum(-1, keepdim=True) * r) on a CPU.
        new = torch.addcmul(x, amount, v[0], value=-share) if len(v) == 1 else x - share * (amount @ v)
        return self.spared(x, new)

    def apart(self, x: Float[Tensor, "k tokens d_model"], share: float) -> Float[Tensor, "k tokens d_model"]:
        """Edit activations whose first axis is that of the rows."""
        v, amount = self.along[:, None].to(x), x @ self.measure[:, None].to(x).mT
        if self.offset is not None:
            amount = amount - self.offset[:, None, None].to(x)
        return self.spared(x, torch.addcmul(x, amount, v, value=-share))

    def spared(self, x: Tensor, new: Tensor) -> Tensor:
        """``new``, with massive tokens as they were."""
        if self.limit == float("inf"):
            return new
        massive = torch.linalg.vector_norm(x, dim=-1, keepdim=True) > self.limit
        if self.note is not None:
            self.note(massive)
        return torch.where(massive, x, new)
