"""Wall time, peak memory, and the machine's matrix-multiply rate."""

from __future__ import annotations

import gc
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

PAGE = 4096


@dataclass(frozen=True)
class Measured:
    """One run of some work.

    Attributes:
        value: what it returned.
        seconds: wall time.
        cpu: processor time of this process, all threads; what other programs on the machine take is not in it.
        peak_mb: highest memory above that at the start, in MB (resident set, or the GPU's allocator).
        gflop: of multiplications with weights (attention's own are left out).
    """

    value: Any
    seconds: float
    cpu: float
    peak_mb: float
    gflop: float


def measure(work: Callable[[], Any]) -> Measured:
    """Run ``work`` once, with its memory watched and its multiplications counted."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    with Resident() as resident, LinearFlops() as flops:
        start, busy = time.perf_counter(), time.process_time()
        value = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    peak = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else resident.peak
    return Measured(value, seconds, cpu, peak / 1e6, flops.total / 1e9)


class LinearFlops:
    """Operations of all ``nn.Linear`` calls inside; counting takes a microsecond a call."""

    def __enter__(self) -> LinearFlops:
        self.total = 0
        self._handle = nn.modules.module.register_module_forward_hook(self._count)
        return self

    def _count(self, module: Any, args: tuple, output: Any) -> None:
        if isinstance(module, nn.Linear):
            self.total += 2 * output.numel() * module.in_features

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


class Resident:
    """The highest resident set above that at the start, in bytes, sampled every 5 ms (Linux)."""

    def __enter__(self) -> Resident:
        self.start, self.peak, self._end = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _now(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            self.peak = max(self.peak, self._now() - self.start)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def gemm_peak(dtype: torch.dtype, device: torch.device, n: int = 2048) -> float:
    """Matrix-multiply rate, GFLOP/s of wall time: the best of eight products of n x n matrices."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(8):
        best = max(best, 2 * n**3 / measure(lambda: a @ b).seconds / 1e9)
    return best


def machine() -> str:
    """Processor and number of threads, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
