"""Running a model: the one place where readers are attached, passes are made and results are put in order."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import PromptsLike, as_prompts, as_suffixes
from ..errors import ModelError, PromptError
from ..hooks.base import HookFn, Hooks, Model
from ..hooks.readers import Reader, Rows
from ..progress import Progress, silent
from .batching import plan
from .chat import Tokens

SHARD = 64  # prompts per item of an engine


class _Stop(Exception):
    """Ends a forward pass whose remaining layers nobody reads."""


def one_pass(model: Model, hooks: Hooks, run: Callable[[], Tensor], logits: bool = True) -> Tensor | None:
    """Run once with functions that read; without ``logits`` the pass ends after the last of them. A hook point that did
    not fire is a ``ModelError``."""
    left = set(range(len(hooks)))
    # Others may fire more than once in a pass, or after the logits.
    stops = not logits and bool(hooks) and all(name.startswith("blocks.") for name, _ in hooks)

    def watched(index: int, read: HookFn) -> HookFn:
        def hook_fn(x: Tensor, hook: Any) -> None:
            read(x, hook)
            left.discard(index)
            if stops and not left:
                raise _Stop

        return hook_fn

    found = None
    try:
        with model.hooks(*[(name, watched(i, read)) for i, (name, read) in enumerate(hooks)]):
            found = run()
    except _Stop:
        pass
    if left:
        name = hooks[min(left)][0]
        hint = "; load it with eager attention (load_model does)" if "hook_pattern" in name else ""
        raise ModelError(f"the hook point {name!r} exists but did not fire in {model.name}{hint}")
    return found


@contextmanager
def running(model: Model, batch: Any) -> Iterator[None]:
    """Inside, ``model.running`` is the batch under way, for interventions that act at some positions only."""
    before, model.running = model.running, batch if isinstance(batch, Tokens) else None
    try:
        yield
    finally:
        model.running = before


def read(
    model: Model,
    tokens: Tokens,
    readers: Sequence[Reader],
    under: Sequence[Any] = (),
    pack: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Make the passes that ``tokens`` need, for readers that keep what they read (no copies are made)."""
    # Where positions matter to an intervention, it must find them in padded rows.
    pack = pack and all(reader.can_pack for reader in readers)
    pack = pack and not any(getattr(item, "counts_positions", False) for item in under)
    passes = plan(model, tokens, pack)
    if pack:
        passes = iter(list(passes))  # the plan is made without the hooks that come now
    logits = any(reader.needs_logits for reader in readers)
    with model.hooks(*under):
        for reader in readers:
            reader.begin(model, tokens)
        for batch, run in passes:
            with running(model, batch):
                hooks = [pair for reader in readers for pair in reader.hooks(model, batch)]
                last = one_pass(model, hooks, run, logits)
                for reader in readers:
                    values = reader.values(model, batch, last if reader.needs_logits else None)
                    reader.put(batch.indices, values)
            advance(len(batch.indices))


def _read(
    model: Model, item: tuple[list[str], list[str] | None], wanted: Sequence[Reader], under: Sequence[Any], pack: bool
) -> dict[str, Tensor]:
    """What each reader kept of the prompts of ``item``, as work for an engine."""
    readers = [copy.copy(reader) for reader in wanted]
    with torch.inference_mode():
        read(model, model.tokenize(*item), readers, under, pack)
    return {f"{i} {name}": x for i, reader in enumerate(readers) for name, x in reader.rows.items()}


def run_readers(
    model: Model,
    prompts: PromptsLike | Tokens,
    suffixes: str | Sequence[str] | None,
    wanted: Reader | Sequence[Reader],
    under: Any,
    pack: bool,
    engine: Any,
    progress: Progress = silent,
    on_batch: Callable[[int], None] | None = None,
) -> Rows:
    """``HookedChatModel.run``."""
    readers = [wanted] if isinstance(wanted, Reader) or not isinstance(wanted, Sequence) else list(wanted)
    if odd := [reader for reader in readers if not isinstance(reader, Reader)]:
        raise ModelError(f"read={odd[0]!r}: give readers, as rl.hooks.Residual(direction) or rl.hooks.Cache(names)")
    under = list(under) if isinstance(under, (list, tuple)) else [under]
    tokens = prompts if isinstance(prompts, Tokens) else model.tokenize(prompts, suffixes)
    tokens = replace(tokens, indices=tuple(range(len(tokens))))  # a batch of other prompts is a list of its own
    copies = [copy.copy(reader) for reader in readers]
    with progress("read", len(tokens)) as step:

        def advance(n: int) -> None:
            step(n)
            if on_batch:
                on_batch(n)

        if engine is None:
            read(model, tokens, copies, under, pack, advance)
            return Rows(readers, [reader.result() for reader in copies])
        if isinstance(prompts, Tokens):
            raise PromptError("an engine takes prompts as text, not tokens")
        texts = as_prompts(prompts)
        after = None if suffixes is None else as_suffixes(suffixes, len(texts))
        for reader in copies:
            reader.begin(model, tokens)
        starts = range(0, len(texts), SHARD)
        items = [(texts[i : i + SHARD], None if after is None else after[i : i + SHARD]) for i in starts]
        work = partial(_read, wanted=readers, under=under, pack=pack)
        found = engine.each("read", work, items, lambda index: advance(len(items[index][0])))
        for start, (some, _), values in zip(starts, items, found, strict=True):
            for i, reader in enumerate(copies):
                own = {k.partition(" ")[2]: x for k, x in values.items() if k.partition(" ")[0] == str(i)}
                reader.put(range(start, start + len(some)), own)
        return Rows(readers, [reader.result() for reader in copies])
