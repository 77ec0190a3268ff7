"""Which components wrote the scores of a few heads: the query's and the keys' part of a change, sender by sender."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..hooks.base import Model
from ..hooks.readout import through_norm
from ..hooks.scores import Scored, ScoreForm, ScoreRows, rotated
from ..records.labels import Head


class Edges(NamedTuple):
    """Means and standard deviations over prompts, and the largest gap of a sum."""

    mean: Float[Tensor, "side target receiver sender"]
    spread: Float[Tensor, "side target receiver sender"]
    error: float


@dataclass
class Written:
    """Sums over batches of what each sender makes of each receiver's change."""

    total: Tensor | None = None
    squares: Tensor | None = None
    n: int = 0
    error: float = 0.0

    def add(
        self, found: Float[Tensor, "side target receiver sender batch"], change: Float[Tensor, "target r batch"]
    ) -> None:
        """One batch, whose senders must add up to ``change``."""
        found = found.double().cpu()
        gap = (found.sum((0, 3)) - change.double().cpu()).abs()
        self.error = max(self.error, float(gap.max()) if gap.numel() else 0.0)
        total, squares = found.sum(-1), (found * found).sum(-1)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.n += found.shape[-1]

    def edges(self, receivers: int) -> Edges:
        """The result over all batches; without senders where none were split."""
        if self.total is None or self.squares is None:
            none = torch.zeros(2, 2, receivers, 0)
            return Edges(none, none, 0.0)
        mean = self.total / self.n
        variance = (self.squares / self.n - mean * mean).clamp_min(0) * self.n / max(1, self.n - 1)
        return Edges(mean.float(), variance.sqrt().float(), self.error)


class _Way(NamedTuple):
    """The way back from scores to the stream: a receiver's change is mean(A) Δx · u + Δ(A) mean(x) · u + Δ(B) constant.

    A is the inverse of both norms' scales, B that of the query's or key's own norm.
    """

    u: Float[Tensor, "batch pos target r d_model"]
    outer: list[Float[Tensor, "batch pos r"]]
    inner: list[Float[Tensor, "batch pos r"]]
    constant: Float[Tensor, "batch pos target r"]


@dataclass
class Writers:
    """The weights between the components and the receivers' scores.

    Attributes:
        heads: the receivers, layer by layer.
        pos: position of the query, counted from the end.
    """

    model: Model
    forms: Sequence[ScoreForm]
    heads: tuple[Head, ...]
    pos: int
    layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = tuple(sorted({layer for layer, _ in self.heads}))
        backend, top = self.model.backend, max(self.layers, default=0)
        self.before = range(top)
        self.post = {n: backend.post_norm(n, "attn") for n in self.before}
        self.norms = {n: backend.input_norm(n) for n in self.layers}
        self.weights = {(n, part): backend.input_weight(n, part.upper()) for n in self.layers for part in "qk"}
        self.gains = {
            (n, part): backend.head_norm(n, part)
            for n in self.layers
            for part in "qk"
            if f"{part}_normed" in self.forms[n].hooks
        }

    @property
    def names(self) -> list[str]:
        """The hook points that are read at the last positions."""
        found = [f"blocks.{n}.{site}" for n in self.before for site in ("attn.hook_z", "hook_mlp_out")]
        found += [f"{norm.site}.hook_scale" for norm in self.post.values() if norm]
        found += [f"{norm.site}.hook_scale" for norm in self.norms.values() if norm]
        sites = {0, *self.layers} if self.layers else set()
        return list(dict.fromkeys([*found, *(f"blocks.{n}.hook_resid_pre" for n in sorted(sites))]))

    def split(
        self,
        runs: tuple[ScoreRows, ScoreRows],
        pulls: dict[int, tuple[Float[Tensor, "t batch r d"], Float[Tensor, "t batch r last d"]]],
    ) -> Float[Tensor, "side t receiver sender batch"]:
        """What each sender makes of each receiver's change.

        Args:
            runs: before and after.
            pulls: by layer, what a change of the effective query, and of each key at the last positions, is worth to
                each of the layer's receivers.
        """
        model, (n_layers, n_heads) = self.model, (self.model.n_layers, self.model.n_heads)
        targets, batch, _, n_last, _ = next(iter(pulls.values()))[1].shape
        n_senders = 1 + n_layers * n_heads + n_layers + 2
        like = next(iter(pulls.values()))[0]
        found = like.new_zeros(2, targets, len(self.heads), n_senders, batch)
        ways: list[tuple[int, int, list[int], slice, _Way, Tensor]] = []
        for layer in self.layers:
            own = [i for i, (other, _) in enumerate(self.heads) if other == layer]
            here = slice(n_last + self.pos, n_last + self.pos + 1)
            for side, (pull, where) in enumerate(zip(pulls[layer], (here, slice(0, n_last)), strict=True)):
                pull = pull[:, :, :, None] if side == 0 else pull
                way = self._way("qk"[side], layer, own, runs, pull, where)
                mean = (way.outer[0] + way.outer[1])[:, :, None, :, None] / 2 * way.u
                ways.append((side, layer, own, where, way, mean))
        start = self._last(runs, "blocks.0.hook_resid_pre")
        for side, layer, own, where, way, mean in ways:
            found[side][:, own, 0] = torch.einsum("bme,bmtre->trb", (start[1] - start[0])[:, where], mean)
            x = self._last(runs, f"blocks.{layer}.hook_resid_pre")
            along = torch.einsum("bme,bmtre->bmtr", (x[0] + x[1])[:, where] / 2, way.u)
            outer, inner = ((end - begin)[:, :, None] for begin, end in (way.outer, way.inner))
            found[side][:, own, -1] = (outer * along + inner * way.constant).sum(1).permute(1, 2, 0)
        for sender in self.before:
            heads, bias, mlp = self._writes(sender, runs)
            norm, scale = self.post[sender], model.backend.write_scale
            for side, layer, own, where, _, mean in ways:
                if sender >= layer:
                    continue
                u = mean * scale if norm is None else through_norm(mean, norm)
                put, at = found[side], 1 + sender * n_heads
                put[:, own, at : at + n_heads] = torch.einsum("bmhe,bmtre->trhb", heads[:, where], u)
                put[:, own, 1 + n_layers * n_heads + sender] = torch.einsum("bme,bmtre->trb", mlp[:, where], mean)
                if bias is not None:
                    put[:, own, -2] += torch.einsum("bme,bmtre->trb", bias[:, where], u)
        return found

    def _last(self, runs: tuple[ScoreRows, ScoreRows], name: str) -> tuple[Tensor, Tensor]:
        before, after = (run.last[name].to(self.model.device) for run in runs)
        return before, after

    def _writes(self, layer: int, runs: tuple[ScoreRows, ScoreRows]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Change of each head's output, of the bias (through a post-norm's scale) and of the MLP's write."""
        model, norm = self.model, self.post[layer]
        z = [x.reshape(*x.shape[:2], model.n_heads, -1) for x in self._last(runs, f"blocks.{layer}.attn.hook_z")]
        scales = None if norm is None else self._last(runs, f"{norm.site}.hook_scale")
        if scales is not None:
            z = [x / scale[..., None] for x, scale in zip(z, scales, strict=True)]
        change = z[1] - z[0]
        heads = torch.einsum("bmhd,hde->bmhe", change, model.backend.output_weight(layer).detach().to(change))
        bias = model.backend.attn_bias(layer)
        constant = None if bias is None or scales is None else bias.to(change) * (1 / scales[1] - 1 / scales[0])
        mlp = self._last(runs, f"blocks.{layer}.hook_mlp_out")
        return heads, constant, mlp[1] - mlp[0]

    def _way(
        self, part: str, layer: int, own: list[int], runs: tuple[ScoreRows, ScoreRows], pull: Tensor, where: slice
    ) -> _Way:
        """From the effective queries or keys of a layer's receivers back to the stream."""
        model, form, norm = self.model, self.forms[layer], self.norms[layer]
        weight, bias = self.weights[layer, part]
        index = [self.heads[i][1] // (model.n_heads // len(weight)) for i in own]
        weight, bias = weight.to(pull)[index], None if bias is None else bias.to(pull)[index]
        n_last = next(iter(runs[0].last.values())).shape[1]
        rows = [run.layers[layer] for run in runs]
        turns = [None if t is None else t.to(pull)[:, -n_last:][:, where] for t in (rows[0].cos, rows[0].sin)]
        y = pull.permute(1, 3, 0, 2, 4)  # batch, position, target, receiver, entry
        inner = [torch.ones_like(y[:, :, 0, :, 0]) for _ in rows]
        normed = (layer, part) in self.gains
        gain, centred, offset = self._head_norm(part, layer, index, y) if normed else (None, False, None)

        def weighed(x: Tensor) -> Tensor:
            x = x if gain is None else x * gain
            return x - x.mean(-1, keepdim=True) if centred else x

        if normed:
            ends = [_taken(row, part, index, where, n_last, y) for row in rows]
            inner = [_inverse_scale(form, *end, gain, centred, offset, turns) for end in ends]
        y = _unturned(weighed(y), turns, form) if form.norm_last else weighed(_unturned(y, turns, form))
        u = torch.einsum("bmtrd,red->bmtre", y, weight)
        constant = torch.zeros_like(y[..., 0])
        if bias is not None:
            constant = constant + torch.einsum("bmtrd,rd->bmtr", y, bias)
        outer = inner
        if norm is not None:
            if norm.bias is not None:
                constant = constant + u @ norm.bias.to(u)
            u = through_norm(u, norm)
            outer = [a / s[:, where] for a, s in zip(inner, self._last(runs, f"{norm.site}.hook_scale"), strict=True)]
        return _Way(u, outer, inner, constant)

    def _head_norm(
        self, part: str, layer: int, index: list[int], like: Tensor
    ) -> tuple[Tensor | None, bool, Tensor | None]:
        """Weight by receiver and entry, whether it centres, and bias, of the norm of queries or keys."""
        norm, d = self.gains[layer, part], like.shape[-1]

        def by_head(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            rows = x.to(like).reshape(-1, d)
            return rows[index] if len(rows) > 1 else rows.expand(len(index), -1)

        return by_head(norm.weight), norm.centred, by_head(norm.bias)


def _taken(row: Scored, part: str, index: list[int], where: slice, n_last: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Queries or keys of some heads before and after their norm, [batch, pos, head, d]."""
    if part == "q":
        assert row.q_normed is not None
        return row.q[:, None, index].to(like), row.q_normed[:, None, index].to(like)
    assert row.k_normed is not None
    raw, normed = (x[:, -n_last:][:, where][:, :, index].to(like) for x in (row.k, row.k_normed))
    return raw, normed


def _inverse_scale(
    form: ScoreForm,
    raw: Tensor,
    normed: Tensor,
    gain: Tensor | None,
    centred: bool,
    offset: Tensor | None,
    turns: Sequence[Tensor | None],
) -> Float[Tensor, "batch pos r"]:
    """1 / scale of the norm of queries or keys: what its output is a multiple of is known, so the factor is."""
    cos, sin = turns
    if form.norm_last and cos is not None and sin is not None:
        raw = rotated(raw, cos, sin, form.form)
    raw = raw - raw.mean(-1, keepdim=True) if centred else raw
    shape = raw if gain is None else raw * gain
    normed = normed if offset is None else normed - offset
    return (shape * normed).sum(-1) / (shape * shape).sum(-1).clamp_min(1e-30)


def _unturned(y: Tensor, turns: Sequence[Tensor | None], form: ScoreForm) -> Tensor:
    """The transposed rotation, for [batch, pos, target, receiver, entry]."""
    cos, sin = turns
    return y if cos is None or sin is None else rotated(y.flatten(2, 3), cos, -sin, form.form).reshape(y.shape)
