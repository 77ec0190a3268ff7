"""``HookedTransformer`` (transformer-lens 3.x and older) as a backend."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..hooks.readout import NormWeights
from .backend import Backend, HookFn, optional_weight
from .counting import FORWARDS
from .writing_weights import WritingWeight, linear, named


class HookedTransformerBackend(Backend):
    """``HookedTransformer`` (transformer-lens 3.x and older)."""

    kind = "HookedTransformer"

    @contextmanager
    def _hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> Iterator[None]:
        # TransformerLens's own context removes the hooks of the one entered last, counted at the time of leaving.
        mine = object()
        level = id(mine)  # no other open context's, and far above the depths that TransformerLens counts
        try:
            for name, function in hooks:
                self.tl.add_hook(name, function, level=level)
            yield
        finally:
            for name, _ in hooks:
                self.tl.hook_dict[name].remove_hooks("fwd", level=level)

    def logits(self, ids, mask, last_only=True, prefix=None, start=None, prefix_mask=None):
        if prefix is not None:
            raise ModelError(
                "HookedTransformer runs without a prefix cache here; load a TransformerBridge (transformer-lens 4.3)"
            )
        kwargs: dict[str, Any] = {"return_type": "logits", "prepend_bos": False}
        if not bool(mask.all()):
            kwargs["attention_mask"] = mask.long()
            kwargs["padding_side"] = "left"
        with self._passing():
            if start is None:
                logits = self.tl(ids, **kwargs)
            else:
                logits = self.tl(start[1], start_at_layer=start[0], tokens=ids, **kwargs)
        return logits[:, -int(last_only) :] if last_only else logits

    def generate(self, ids, mask, max_new_tokens, eos_ids, pad_id, temperature=0.0, prefix=None):
        # Its generate() guesses padding from the pad token, so rows of one length go together, unpadded.
        lengths = mask.sum(-1)
        out = torch.full((len(ids), max_new_tokens), pad_id, dtype=torch.long, device=ids.device)
        with self._passing():
            for length in lengths.unique().tolist():
                rows = (lengths == length).nonzero()[:, 0]
                new = self.tl.generate(
                    ids[rows, ids.shape[1] - length :],
                    max_new_tokens=max_new_tokens,
                    do_sample=temperature > 0,
                    temperature=temperature or 1.0,
                    eos_token_id=eos_ids or None,
                    stop_at_eos=bool(eos_ids),
                    use_past_kv_cache=True,
                    prepend_bos=False,
                    return_type="tokens",
                    verbose=False,
                )[:, length:]
                # It does not call its module, where passes are counted.
                FORWARDS.update(passes=new.shape[1], tokens=new.numel() + len(rows) * (length - 1))
                out[rows, : new.shape[1]] = new
        return out

    def _norm(self, module: Any, site: str) -> NormWeights:
        centred = type(module).__name__.startswith("LayerNorm")
        return NormWeights(site, optional_weight(module, "w"), optional_weight(module, "b"), centred)

    def _embedding_weights(self) -> list[WritingWeight]:
        found = named("embed", self.tl.embed, ("W_E",), -1)
        if "pos_embed" in dict(self.tl.named_children()):
            found += named("pos_embed", self.tl.pos_embed, ("W_pos",), -1)
        return found

    def _output_weights(self, where: str, part: str, module: Any) -> list[WritingWeight]:
        if part == "attn":
            return named(where, module, ("W_O", "b_O"), -1)
        return named(where, module, ("W_out", "b_out"), -1) + _expert_outputs(where, module)


def _expert_outputs(where: str, module: nn.Module) -> list[WritingWeight]:
    found: list[WritingWeight] = []
    for index, expert in enumerate(getattr(module, "experts", ())):
        label = f"{where}.experts.{index}.W_out"
        output = getattr(expert, "W_out", None)
        one = isinstance(output, nn.Linear)
        found += linear(label, output) if one else named(label, expert, ("W_out", "b_out"), -1)
    return found
