"""Wall time, peak memory, and the machine's matrix-multiply rate."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .live import LiveBytes


@dataclass(frozen=True)
class Measured:
    """One run of some work.

    Attributes:
        value: what it returned.
        seconds: wall time.
        cpu: processor time of this process, all threads; what other programs on the machine take is not in it.
        peak_mb: highest sum of the bytes of all tensors made and still there, in MB; 0 where it wasn't counted.
        gflop: of multiplications with weights (attention's own are left out), padding left out; counted with memory.
    """

    value: Any
    seconds: float
    cpu: float
    peak_mb: float
    gflop: float


def measure(work: Callable[[], Any], memory: bool = False, pad_id: int = -1) -> Measured:
    """Run ``work`` once. A GPU is waited for before the clock starts and before it stops.

    Args:
        memory: count memory and multiplications, which takes time of its own: then the seconds say nothing. A GPU's
            memory is what its allocator gave at most, above what was there before.
        pad_id: tokens that are this are padding, whose multiplications are not counted.
    """
    gc.collect()
    gpu = torch.cuda.is_available()
    live, flops = LiveBytes(), LinearFlops(pad_id)
    before = 0
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with live if memory and not gpu else nullcontext(), flops if memory else nullcontext():
        start, busy = time.perf_counter(), time.process_time()
        value = work()
        if gpu:
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    peak = torch.cuda.max_memory_allocated() - before if gpu else live.peak
    return Measured(value, seconds, cpu, peak / 1e6 if memory else 0.0, flops.total / 1e9)


class LinearFlops:
    """Operations of all ``nn.Linear`` calls inside for tokens that are not ``pad_id``; a microsecond a call.

    A pass's share of real tokens is that of the ids it embeds.
    """

    def __init__(self, pad_id: int = -1):
        self.pad_id, self.total, self._real = pad_id, 0.0, 1.0

    def __enter__(self) -> LinearFlops:
        self._handle = nn.modules.module.register_module_forward_hook(self._count)
        return self

    def _count(self, module: Any, args: tuple, output: Any) -> None:
        if isinstance(module, nn.Embedding):
            self._real = float((args[0] != self.pad_id).double().mean())
        elif isinstance(module, nn.Linear):
            self.total += 2 * output.numel() * module.in_features * self._real

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def gemm_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Matrix-multiply rate, GFLOP/s of wall time: the best of eight measurements of square products.

    A GPU gets larger matrices and several products per measurement, so that launching and waiting do not count.
    """
    n, products = (8192, 8) if device.type == "cuda" else (2048, 1)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        seconds = measure(lambda: [a @ b for _ in range(products)]).seconds
        best = max(best, products * 2 * n**3 / seconds / 1e9)
    return best


def machine() -> str:
    """Processor and number of threads, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
