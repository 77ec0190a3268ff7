"""The engine of a Ray cluster: one loaded model a worker (extra ``ray``)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import EngineError, RefusalLensError
from ..models.model import HookedChatModel
from .base import Engine, Value, Work

RETRIES = 3  # times that one item may lose its worker
PATIENCE = 300.0  # seconds without any worker before giving up
PASSED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS")


class Worker:
    """What runs on a node: a model and the state of the work at hand.

    Args:
        load: arguments of ``load_model``.
        threads: of torch; as many as the driver's, or sums would be split otherwise and round otherwise.
        fingerprint: of the driver's model.
    """

    def __init__(self, load: dict[str, Any], threads: int, fingerprint: str):
        from ..models.load import load_model

        torch.set_num_threads(threads)
        self.model = load_model(**load)
        if self.model.fingerprint != fingerprint:
            raise EngineError(
                f"a worker loaded {load['source']} with the fingerprint {self.model.fingerprint}, the driver has "
                f"{fingerprint}: give a model that is the same on every node"
            )
        self.prepared: tuple[str, Any] = ("", None)

    def ready(self) -> bool:
        """Answers when the model is loaded."""
        return True

    def run(self, name: str, work: Work, item: Any) -> Value:
        """One item; the work's state is made when its name is new."""
        if self.prepared[0] != name:
            self.prepared = ("", None)
            self.prepared = (name, work.prepare(self.model))
        return work.run(self.model, self.prepared[1], item)


def _reach(address: str | None) -> None:
    """Knock at HOST:PORT: Ray itself waits there for minutes.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


class RayEngine(Engine):
    """Items over the workers of a cluster; an item whose worker dies is given to another one.

    Args:
        model: the driver's model.
        load: arguments of ``load_model`` that give the same model on every node.
        address: of a running cluster ("auto", "host:6379"); None starts Ray on this machine.
        workers: how many; None for as many as the cluster's CPUs (or GPUs) have room for.

    Raises:
        EngineError: Ray is not installed, the cluster can't be reached, or it has no room for a worker.
    """

    def __init__(
        self, model: HookedChatModel, load: dict[str, Any], address: str | None = None, workers: int | None = None
    ):
        super().__init__(model)
        try:
            import ray
        except ImportError as error:
            raise EngineError("the engine 'ray' needs Ray: pip install 'refusal-lens[ray]'") from error
        self.ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            local: dict[str, Any] = {} if address else {"include_dashboard": False}
            try:
                _reach(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
            except (OSError, RuntimeError, ValueError) as error:
                raise EngineError(f"no Ray cluster answers at {address or 'this machine'}: {error}") from error
        threads = torch.get_num_threads()
        self._gpus = 1 if model.device.type == "cuda" else 0
        room = ray.cluster_resources().get("GPU" if self._gpus else "CPU", 0) / (self._gpus or threads)
        self._workers = workers or int(room)
        if self._workers < 1:
            what = "GPU" if self._gpus else f"worker of {threads} threads"
            raise EngineError(f"the Ray cluster has no room for one {what}: add nodes, or set OMP_NUM_THREADS lower")
        env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        remote: Any = ray.remote(Worker)
        self._make = remote.options(
            num_cpus=threads,
            num_gpus=self._gpus,
            max_restarts=0,
            runtime_env={"env_vars": env} if env else None,
        )
        self._arguments = (load, threads, model.fingerprint)
        self._idle: list[Any] = []
        self._loading: dict[Any, Any] = {}  # a worker's first answer -> worker
        self._spawn(self._workers)

    @property
    def width(self) -> int:
        return self._workers

    def _spawn(self, count: int) -> None:
        for _ in range(count):
            worker: Any = self._make.remote(*self._arguments)
            self._loading[worker.ready.remote()] = worker

    def _run(self, work: Work, items: dict[int, Any]) -> Iterator[tuple[int, Value]]:
        ray = self.ray
        shared = ray.put(work)
        waiting = deque(items)
        attempts = dict.fromkeys(items, 0)
        busy: dict[Any, tuple[int, Any]] = {}  # answer to come -> (index, worker)
        alone_since: float | None = None
        try:
            while waiting or busy:
                while waiting and self._idle:
                    following, worker = waiting.popleft(), self._idle.pop()
                    busy[worker.run.remote(shared.hex(), shared, items[following])] = (following, worker)
                done, _ = ray.wait([*busy, *self._loading], num_returns=1, timeout=1.0)
                for answer in done:
                    index: int | None = None  # none: a worker that has loaded
                    if answer in busy:
                        index, worker = busy.pop(answer)
                    else:
                        worker = self._loading.pop(answer)
                    try:
                        value = ray.get(answer)
                    except ray.exceptions.RayActorError as error:
                        self._lost(error)
                        if index is not None:
                            attempts[index] += 1
                            if attempts[index] > RETRIES:
                                raise EngineError(
                                    f"item {index} lost its worker {attempts[index]} times (out of memory?): use "
                                    "larger nodes or fewer workers"
                                ) from error
                            waiting.appendleft(index)
                        continue
                    except ray.exceptions.RayTaskError as error:
                        self._idle.append(worker)  # the item failed, not its worker
                        cause = error.cause
                        raise cause if isinstance(cause, RefusalLensError) else error from None
                    self._idle.append(worker)
                    if index is not None:
                        yield index, value
                alone_since = None if busy or self._idle else alone_since or time.monotonic()
                if alone_since is not None and time.monotonic() - alone_since > PATIENCE:
                    raise EngineError(f"no worker of the Ray cluster is left for {len(waiting)} items: add nodes")
        finally:
            for _, worker in busy.values():  # the caller stopped early: what they do is not wanted
                ray.kill(worker)
            self._spawn(len(busy))

    def _lost(self, error: Exception) -> None:
        """Another worker for a dead one: it starts when the cluster has room for it."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, RefusalLensError):  # its model could not be loaded: so on every other node
            raise cause
        self._spawn(1)

    def close(self) -> None:
        """End the workers, and Ray where this engine started it."""
        for worker in [*self._idle, *self._loading.values()]:
            self.ray.kill(worker)
        self._idle, self._loading = [], {}
        if self._started and self.ray.is_initialized():
            self.ray.shutdown()
