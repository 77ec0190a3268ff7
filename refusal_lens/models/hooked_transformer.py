"""TODO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ModelError
from .backend import _LEVELS, Backend, HookFn


class HookedTransformerBackend(Backend):
    """``HookedTransformer`` (transformer-lens 3.x and older)."""

    kind = "HookedTransformer"

    @contextmanager
    def hooks(self, hooks: Sequence[tuple[str, HookFn]]) -> Iterator[None]:
        """A context that removes its own hooks, whatever the order in which contexts are left.

        TransformerLens's own removes those of the context entered last, as of the count at the time of leaving.
        """
        level = next(_LEVELS)
        try:
            for name, function in hooks:
                self.tl.add_hook(name, function, level=level)
            yield
        finally:
            for name, _ in hooks:
                self.tl.hook_dict[name].remove_hooks("fwd", level=level)

    def logits(self, ids, mask, last_only=True, prefix=None, start=None, prefix_mask=None):
        if prefix is not None:
            raise ModelError("HookedTransformer runs without a prefix cache here")
        kwargs: dict[str, Any] = {"return_type": "logits", "prepend_bos": False}
        if not bool(mask.all()):
            kwargs["attention_mask"] = mask.long()
            kwargs["padding_side"] = "left"
        if start is None:
            logits = self.tl(ids, **kwargs)
        else:
            logits = self.tl(start[1], start_at_layer=start[0], tokens=ids, **kwargs)
        return logits[:, -1:] if last_only else logits

    def generate(self, ids, mask, max_new_tokens, eos_ids, pad_id, temperature=0.0):
        # Its generate() guesses padding from the pad token, so rows of one length go together, unpadded.
        lengths = mask.sum(-1)
        out = torch.full((len(ids), max_new_tokens), pad_id, dtype=torch.long, device=ids.device)
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
            out[rows, : new.shape[1]] = new
        return out
