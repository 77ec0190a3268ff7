"""Files that are whole or absent, and folders that one run writes at a time.

A process may be killed at any moment: what it leaves is either an old file, a whole new file, or a file whose name
says that it is unfinished (``.NAME.xxxxxxxx.part``), which the next run removes.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ResultError

LOCK = ".lock"
UNFINISHED = ".part"


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk and rename: readers see the old file or the whole new one.

    Raises:
        OSError: no space or no permission; it names the file. The old file, if any, is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files that only their owner can read; results are shared like any other file.
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(UNFINISHED)):
            error.filename = str(path)  # a write that fails names no file, and a temporary name helps nobody
        raise
    with contextlib.suppress(OSError):  # the rename itself, where the system lets folders be flushed
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, document: Any) -> None:
    """Write plain JSON the same way, in UTF-8."""
    write_atomically(path, json.dumps(document, indent=1, ensure_ascii=False).encode())


def plain_json(value: Any) -> Any:
    """A plain-JSON view of dataclasses, mappings and sequences; a number that is not finite is None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path, parts: Iterable[str] = ()) -> Iterator[None]:
    """Let only this process write in ``folder``; the system frees the lock of a process that died.

    Unfinished files of a killed run are removed first. A folder that is made here and stays empty is removed
    again on leaving.

    Args:
        folder: made if missing.
        parts: names of folders inside it that belong to the same writer.

    Raises:
        ResultError: another process is writing there.
        OSError: the folder can't be made or written.
    """
    from filelock import FileLock, Timeout  # here: the command line's help needs none

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        holder = ""
        with contextlib.suppress(OSError, ValueError):
            holder = f" (process {int(file.read_text())})"
        raise ResultError(
            f"another run{holder} is writing in {folder}: wait until it is done, or choose another folder"
        ) from None
    try:
        with contextlib.suppress(OSError):  # for the message above only
            file.write_text(str(os.getpid()))
        for place in (folder, *(folder / part for part in parts)):
            if place.is_symlink() and place != folder:
                raise ResultError(f"{place} is a link to another place; remove it, results are written inside {folder}")
            for unfinished in place.glob(f".*{UNFINISHED}"):
                unfinished.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows a file in use can't be removed: it stays, empty
            file.unlink()
        lock.release()
        for path in made:
            try:
                path.rmdir()
            except OSError:
                break
