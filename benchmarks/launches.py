"""Where launches dominate: the share of the time that the device works, and other ways to launch the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GenerationConfig

from refusal_lens import Ablate, HookedChatModel
from refusal_lens.models import packing
from refusal_lens.records.direction import Direction

from .measure import measure
from .models import named, plain_copy
from .rows import NEW_TOKENS

PASSES = (2560, 10240, 40960)  # tokens of one packed pass; the first is the package's
NO_LAUNCHES = "skipped: nothing is launched on a CPU"


def seconds(work: Callable[[], Any], times: int = 5) -> float:
    """Median, after one turn that warms up."""
    measure(work)
    return median(measure(work).seconds for _ in range(times))


class Trials:
    """One model's batch, and what is tried on it."""

    def __init__(self, source: str, n: int):
        self.model: HookedChatModel = named(source)
        self.gpu = self.model.device.type == "cuda"
        self.plain = plain_copy(self.model)
        self.prompts = [f"Describe the number {i} in a few words" for i in range(n)]
        self.batch = self.model.tokenize(self.prompts)
        self.ablate = Ablate(Direction(torch.eye(self.model.d_model)[0], 1.0, -1, 1))
        self.call: dict[str, Any] = {"input_ids": self.batch.ids, "attention_mask": self.batch.mask.long()}

    @torch.inference_mode()
    def forward(self, hf: Any = None) -> Any:
        """The plain model's forward of the padded batch."""
        return (hf or self.plain)(**self.call, logits_to_keep=1, use_cache=False).logits

    def ablated(self) -> Any:
        """Ours, under ablation at every write."""
        with self.model.hooks(self.ablate):
            return self.model.logits(self.batch)

    def pack(self, copies: int = 8) -> None:
        """Eight candidates through packed prompts, as selection runs them."""
        pack = packing.RestartedPack(self.model, packing.pack_tokens(self.batch, self.model.chat.pad_id))
        with torch.inference_mode(), self.model.hooks(self.ablate):
            for part in pack.pack.copies(copies):
                for _ in pack.logits(part.stop - part.start):
                    pass

    def generate(self, hf: Any = None, **more: Any) -> None:
        """Greedy replies of the plain model."""
        config = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=self.model.chat.pad_id,
            **more,
        )
        with torch.inference_mode():
            (hf or self.plain).generate(**self.call, generation_config=config)

    def generate_ablated(self) -> None:
        """Ours, under ablation."""
        with self.model.hooks(self.ablate):
            self.generate(self.model.backend.hf)

    def beside(self, ours: Callable[[], Any], other: Callable[[], Any], what: str) -> dict[str, Any]:
        """Two ways of the same work."""
        first, second = seconds(ours), seconds(other)
        return {"trial": f"{second * 1e3:.3g} ms for {first * 1e3:.3g}, x {first / second:.2f}", "note": what}

    # -- what is tried ------------------------------------------------------------------------------------------
    def busy(self, work: Callable[[], Any]) -> dict[str, Any]:
        """Share of the wall time in which kernels ran; the rest is launching."""
        if not self.gpu:
            return {"trial": "skipped", "note": NO_LAUNCHES}
        work()
        alone = seconds(work, 3)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            work()
            torch.cuda.synchronize()
        events = seen.key_averages()
        kernels = sum(event.self_device_time_total for event in events) / 1e6
        count = sum(event.count for event in events if event.self_device_time_total)
        return {"trial": f"{kernels / alone:.0%} of {alone * 1e3:.3g} ms", "note": f"{count} kernels"}

    def longer(self, tokens: int) -> dict[str, Any]:
        """Packed passes of more tokens."""
        own, packing.PASS_TOKENS = packing.PASS_TOKENS, tokens
        try:
            found = seconds(self.pack, 3)
        finally:
            packing.PASS_TOKENS = own
        return {"trial": f"{found * 1e3:.3g} ms", "note": "8 candidates, all prompts, packed, under ablation"}

    def sdpa(self) -> dict[str, Any]:
        """The plain model with torch's own attention."""
        config = self.plain.config.__class__(**self.plain.config.to_dict())
        with torch.device("meta"):
            other = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=self.model.dtype)
        other.load_state_dict(self.plain.state_dict(), assign=True)
        other.model.rotary_emb = self.plain.model.rotary_emb
        other.eval()
        return self.beside(self.forward, lambda: self.forward(other), "plain forward, SDPA for eager")

    def graph(self, work: Callable[[], Any], what: str) -> dict[str, Any]:
        """The same work recorded once as a CUDA graph and replayed."""
        if not self.gpu:
            return {"trial": "skipped", "note": NO_LAUNCHES}
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return self.beside(work, graph.replay, what)

    def compiled(self) -> dict[str, Any]:
        """Each block of the plain model compiled: all have one code, so it is compiled once."""
        if not self.gpu:
            return {"trial": "skipped", "note": NO_LAUNCHES}
        other = plain_copy(self.model)
        for block in other.model.layers:
            block.compile()
        return self.beside(self.forward, lambda: self.forward(other), "plain forward, its blocks compiled")

    def static(self) -> dict[str, Any]:
        """Generation with a static cache: transformers compiles and records its steps."""
        if not self.gpu:
            return {"trial": "skipped", "note": NO_LAUNCHES}
        return self.beside(self.generate, lambda: self.generate(cache_implementation="static"), "transformers.generate")


def trials(source: str, n: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is tried, the cheap ones first."""
    t = Trials(source, n)
    yield "device at work: forward, plain", lambda: t.busy(t.forward)
    yield "device at work: forward, ablation", lambda: t.busy(t.ablated)
    yield "device at work: packed pass, ablation", lambda: t.busy(t.pack)
    yield "device at work: generation, plain", lambda: t.busy(t.generate)
    yield "device at work: generation, ablation", lambda: t.busy(t.generate_ablated)
    for tokens in PASSES:
        yield f"passes of {tokens} tokens", lambda tokens=tokens: t.longer(tokens)
    yield "SDPA", t.sdpa
    yield "torch.compile", t.compiled
    yield "CUDA graph, plain", lambda: t.graph(t.forward, "plain forward, replayed")
    yield "static cache", t.static
    # The last one: what waits for the device cannot be recorded, and an error there may spoil what follows.
    yield "CUDA graph, ablation", lambda: t.graph(t.ablated, "ours under ablation, replayed")
