"""The paper's algorithm as it is written: what the benchmarks are measured against.

Loops over positions and layers, three passes over the validation prompts a candidate, all prompts padded to one
length, logits of every position, the whole network from the embedding each time. Plain transformers, no
TransformerLens and nothing of refusal_lens but its chat format, so that both sides see the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BATCH = 32


class Plain:
    """A Hugging Face causal model with the paper's hooks."""

    def __init__(self, hf: Any, tokenize: Callable[..., Any], refusal_ids: Sequence[int]):
        self.hf, self.tokenize, self.refusal_ids = hf.eval(), tokenize, list(refusal_ids)
        self.layers = hf.model.layers

    @contextmanager
    def hooked(self, pre: list[tuple[Any, Callable]], post: list[tuple[Any, Callable]], with_kwargs: bool = False):
        """Forward pre-hooks (which may take keywords too) and hooks, removed at the end."""
        handles = [module.register_forward_pre_hook(function, with_kwargs=with_kwargs) for module, function in pre]
        handles += [module.register_forward_hook(function) for module, function in post]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def last_logits(self, prompts: Sequence[str], suffixes: Sequence[str] | None = None, keep: int = 0) -> Tensor:
        """Logits of all positions (or of the last ``keep``), of which the last is kept."""
        tokens, out = self.tokenize(prompts, suffixes), []
        for start in range(0, len(prompts), BATCH):
            rows = slice(start, start + BATCH)
            ids, mask = tokens.ids[rows], tokens.mask[rows].long()
            call = {"attention_mask": mask, "position_ids": _positions(mask), "logits_to_keep": keep}
            out.append(self.hf(input_ids=ids, **call).logits[:, -1].clone())
        return torch.cat(out)

    @torch.inference_mode()
    def mean_diff(self, harmful: Sequence[str], harmless: Sequence[str], n_pos: int) -> Tensor:
        """[pos, layer, d_model] difference of means of the layers' inputs, float64."""
        means = []
        for prompts in (harmful, harmless):
            size = (n_pos, len(self.layers), self.hf.config.hidden_size)
            sums = torch.zeros(size, dtype=torch.float64, device=self.hf.device)

            def record(layer: int, sums: Tensor = sums) -> Callable:
                def hook(module: Any, args: tuple) -> None:
                    sums[:, layer] += args[0][:, -n_pos:].double().sum(0)

                return hook

            with self.hooked([(block, record(i)) for i, block in enumerate(self.layers)], []):
                self.last_logits(prompts)
            means.append(sums.cpu() / len(prompts))
        return means[0] - means[1]

    def metric(self, logits: Tensor) -> Tensor:
        """The refusal metric."""
        p = logits.double().softmax(-1)[:, self.refusal_ids].sum(-1)
        return torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)

    def ablated(self, r: Tensor, share: float = 1.0):
        """Directional ablation at every layer's input and every attention and MLP output.

        A share of it acts where the stream is written, the embedding included: at the inputs it would act anew on what
        is left.
        """
        unit = r / (r.norm() + 1e-8)

        def project(x: Tensor) -> Tensor:
            u = unit.to(x)
            return x - share * (x @ u)[..., None] * u

        def pre(module: Any, args: tuple) -> tuple:
            return (project(args[0]), *args[1:])

        def post(module: Any, args: tuple, output: Any) -> Any:
            return (project(output[0]), *output[1:]) if isinstance(output, tuple) else project(output)

        writes = [part for block in self.layers for part in (block.self_attn, block.mlp)]
        if share != 1:
            return self.hooked([], [(part, post) for part in (self.hf.model.embed_tokens, *writes)])
        return self.hooked([(block, pre) for block in self.layers], [(part, post) for part in writes])

    def added(self, r: Tensor, layer: int):
        """Activation addition at one layer's input."""

        def pre(module: Any, args: tuple) -> tuple:
            return (args[0] + r.to(args[0]), *args[1:])

        return self.hooked([(self.layers[layer], pre)], [])

    def scores(
        self, r: Tensor, layer: int, harmful: Sequence[str], harmless: Sequence[str], baseline: Tensor, coeff: float
    ) -> tuple[float, float, float]:
        """bypass, induce and KL of one candidate: three passes."""
        with self.ablated(r):
            bypass = float(self.metric(self.last_logits(harmful)).mean())
        with self.ablated(r):
            other = self.last_logits(harmless)
        with self.added(coeff * r, layer):
            induce = float(self.metric(self.last_logits(harmless)).mean())
        p, q = baseline.double().softmax(-1), other.double().softmax(-1)
        return bypass, induce, float((p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum(-1).mean())

    def grid(self, prompts: Sequence[str], suffixes: Sequence[str], clean: Sequence[str], n: int) -> Tensor:
        """[layer, position, prompt] metric with a layer's input at one of the last ``n`` positions taken from clean."""
        kept: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable:
            return lambda module, args: kept.__setitem__(layer, args[0].clone())

        with self.hooked([(block, keep(i)) for i, block in enumerate(self.layers)], []):
            self.last_logits(prompts, clean, keep=1)

        def put(layer: int, pos: int) -> Callable:
            def hook(module: Any, args: tuple) -> tuple:
                x = args[0].clone()
                x[:, pos] = kept[layer][:, pos]
                return (x, *args[1:])

            return hook

        found = torch.empty(len(self.layers), n, len(prompts), dtype=torch.float64)
        for layer, block in enumerate(self.layers):
            for pos in range(-n, 0):
                with self.hooked([(block, put(layer, pos))], []):
                    found[layer, pos] = self.metric(self.last_logits(prompts, suffixes, keep=1))
        return found

    def select(
        self,
        candidates: Tensor,
        harmful: Sequence[str],
        harmless: Sequence[str],
        coeff: float,
        some: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """All scores of the candidates ``some`` (all of ``nonzero`` if None), [3, pos, layer]: NaN elsewhere."""
        baseline = self.last_logits(harmless)
        grid = torch.full((3, *candidates.shape[:2]), float("nan"), dtype=torch.float64)
        for i, layer in nonzero(candidates) if some is None else some:
            r = candidates[i, layer].float()
            grid[:, i, layer] = torch.tensor(self.scores(r, layer, harmful, harmless, baseline, coeff))
        return grid


def nonzero(candidates: Tensor) -> list[tuple[int, int]]:
    """(index of the position, layer) of the candidates that are a direction: the template's embeddings differ by 0."""
    norms = candidates.norm(dim=-1)
    return [(i, layer) for i in range(norms.shape[0]) for layer in range(norms.shape[1]) if float(norms[i, layer]) > 0]


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)
