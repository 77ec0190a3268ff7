"""The engine of a Ray cluster: one loaded model per worker (extra ``ray``)."""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import EngineError, RefusalLensError
from ..models.counting import FORWARDS
from ..models.model import HookedChatModel
from .base import Engine, Value, Work

RETRIES = 3  # times that one item may lose its worker
PATIENCE = 300.0  # seconds without any worker before giving up
PASSED_ON = ["HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS"]
PASSED_ON += ["REFUSAL_LENS_CACHE", "XDG_CACHE_HOME"]


class Worker:
    """One process on a node: a model and the state of the current work. Ray restarts one that dies.

    Args:
        load: arguments of ``load_model``.
        threads: of torch, as many as the driver's.
        fingerprint: of the driver's model.
    """

    def __init__(self, load: dict[str, Any], threads: int, fingerprint: str):
        torch.set_num_threads(threads)  # the number decides how sums round
        self.load, self.fingerprint = load, fingerprint
        self.model: HookedChatModel | None = None
        self.prepared: tuple[str, Any] = ("", None)

    def ready(self) -> None:
        """Load the model; not in ``__init__``, whose errors Ray would wrap.

        Raises:
            EngineError: its weights differ from the driver's.
        """
        from ..models.load import load_model

        if self.model is None:
            self.model = load_model(**self.load)
        if self.model.fingerprint != self.fingerprint:
            raise EngineError(
                f"a worker loaded {self.load['source']} with the fingerprint {self.model.fingerprint}, the driver has "
                f"{self.fingerprint}: give a model that is the same on every node"
            )

    def run(self, name: str, work: Work, item: Any) -> tuple[Value, Counter[str]]:
        """Run one item, and count its passes; the work's state is made when its name is new."""
        assert self.model is not None
        before = FORWARDS.copy()
        if self.prepared[0] != name:
            self.prepared = ("", None)
            self.prepared = (name, work.prepare(self.model))
        return work.run(self.model, self.prepared[1], item), FORWARDS - before


def _reach(address: str | None) -> None:
    """Raise OSError at once if nothing listens on HOST:PORT: Ray itself waits for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


class RayEngine(Engine):
    """Runs items on the workers of a cluster; an item whose worker dies goes to another one.

    Args:
        model: the driver's model.
        load: arguments of ``load_model`` that give the same model on every node.
        address: of a running cluster ("auto", "host:6379"); None starts Ray on this machine.
        workers: number of workers; None for as many as the cluster's CPUs (or GPUs) have room for.

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
        threads, gpus = torch.get_num_threads(), 1 if model.device.type == "cuda" else 0
        room = ray.cluster_resources().get("GPU" if gpus else "CPU", 0) / (gpus or threads)
        count = workers or int(room)
        if count < 1:
            what = "GPU" if gpus else f"worker of {threads} threads"
            raise EngineError(f"the Ray cluster has no room for one {what}: add nodes, or set OMP_NUM_THREADS lower")
        env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        make: Any = ray.remote(Worker)
        make = make.options(num_cpus=threads, num_gpus=gpus, max_restarts=-1, runtime_env={"env_vars": env})
        self._workers = [make.remote(load, threads, model.fingerprint) for _ in range(count)]

        self._sent: tuple[Work, Any] | None = None

    @property
    def width(self) -> int:
        return len(self._workers)

    def _ready(self, worker: Any) -> Any:
        """Answer of a worker once it has loaded; after a restart, too."""
        return worker.ready.options(max_task_retries=-1).remote()

    def _run(self, work: Work, items: dict[int, Any]) -> Iterator[tuple[int, Value]]:
        ray, errors = self.ray, self.ray.exceptions
        if self._sent is None or self._sent[0] is not work:  # workers keep the last work's state
            self._sent = work, ray.put(work)
        shared, waiting, lost = self._sent[1], deque(items), Counter[int]()
        # Answer to come -> (index, or None for a worker that is loading; worker).
        busy: dict[Any, tuple[int | None, Any]] = {self._ready(w): (None, w) for w in self._workers}
        idle: list[Any] = []
        left = len(items)
        try:
            while left:
                while waiting and idle:
                    following, worker = waiting.popleft(), idle.pop()
                    busy[worker.run.remote(shared.hex(), shared, items[following])] = (following, worker)
                done, _ = ray.wait([*busy], num_returns=1, timeout=PATIENCE) if busy else ([], [])
                if not done and all(index is None for index, _ in busy.values()):
                    raise EngineError(f"no worker of the Ray cluster is left for {left} items: add nodes")
                for answer in done:
                    index, worker = busy.pop(answer)
                    try:
                        value = ray.get(answer)
                    except errors.RayTaskError as error:  # its own: of the model, or of the item
                        raise error.cause if isinstance(error.cause, RefusalLensError) else error from None
                    except (errors.RayActorError, errors.ObjectLostError) as error:
                        if index is None:
                            continue  # not to be restarted
                        lost[index] += 1
                        if lost[index] > RETRIES:
                            raise EngineError(
                                f"item {index} lost its worker {lost[index]} times (out of memory?): use "
                                "larger nodes or fewer workers"
                            ) from error
                        waiting.appendleft(index)
                        busy[self._ready(worker)] = (None, worker)
                        continue
                    idle.append(worker)
                    if index is not None:
                        left -= 1
                        found, ran = value
                        FORWARDS.update(ran)
                        yield index, found
        finally:
            for index, worker in busy.values():
                if index is not None:  # the caller stopped early: this work is not wanted any more
                    ray.kill(worker, no_restart=False)

    def close(self) -> None:
        """End the workers, and Ray where this engine started it."""
        for worker in self._workers:
            self.ray.kill(worker)
        self._workers = []
        if self._started and self.ray.is_initialized():
            self.ray.shutdown()
