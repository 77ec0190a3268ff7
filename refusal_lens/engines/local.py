"""The engine that runs in this process, and the choice of engine by name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..models.model import HookedChatModel
from .base import Engine, Value, Work

MakeEngine = Callable[[HookedChatModel], Engine]


class LocalEngine(Engine):
    """Items one after another on the loaded model."""

    def _run(self, work: Work, items: dict[int, Any]) -> Iterator[tuple[int, Value]]:
        for index, item in items.items():
            yield index, work.run(self.model, self.state(work), item)


def named_engine(name: str, config: Any, address: str | None = None, workers: int | None = None) -> MakeEngine:
    """Choose an engine; returns the function that makes it from the loaded model.

    Args:
        name: "local" or "ray".
        config: settings of the study; every worker loads its ``model``.
        address: of a running Ray cluster; None starts Ray on this machine.
        workers: number of Ray workers; None for as many as fit.

    Raises:
        EngineError: an unknown name, or options of Ray without it.
    """
    if name == "ray":
        from .ray import RayEngine

        path = Path(config.model).expanduser()
        source = str(path.resolve()) if path.exists() and config.model != "organism" else config.model
        load = {"source": source, "device": config.device, "device_map": config.device_map}
        return lambda model: RayEngine(model, {**load, "dtype": model.dtype, **model.chat.settings}, address, workers)
    if name != "local":
        raise EngineError(f"there is no engine {name!r}: choose local or ray")
    if address is not None or workers is not None:
        raise EngineError("an address and a number of workers belong to --engine ray")
    return LocalEngine
