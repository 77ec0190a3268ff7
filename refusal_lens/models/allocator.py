"""Tell glibc to keep freed memory, so that large tensors do not page-fault on every pass."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt's names in glibc's malloc.h, and its defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 * 1024, 65536

_kept = False  # whether this process asked for it


def keep_freed_memory(keep: bool = True) -> bool:
    """Let glibc keep the memory that tensors free, instead of returning it to the system and requesting it again.

    Worth it on a CPU: a pass allocates and frees tensors of tens of MB, and the system clears new pages for each, which
    took a fifth of the time of a pass of a 0.5B model on two cores. The setting holds for the whole process, which then
    keeps the memory of its peak. The command line sets it for its own process; loading a model never does.

    Args:
        keep: False for glibc's defaults.

    Returns:
        Whether it was set; False with another C library or system.

    Example:
        >>> from refusal_lens.models import keep_freed_memory
        >>> keep_freed_memory(False) in (True, False)
        True
    """
    global _kept
    if platform.libc_ver()[0] != "glibc":
        return False
    _kept = keep
    return _set(keep)


@contextmanager
def loading() -> Iterator[None]:
    """The defaults while weights are loaded, where ``keep_freed_memory`` is on: what loading takes is given back."""
    if not _kept:
        yield
        return
    _set(False)
    try:
        yield
    finally:
        _set(True)


def _set(keep: bool) -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    maps, trim = (0, 2**31 - 1) if keep else (_DEFAULT_MMAPS, _DEFAULT_TRIM)
    return bool(mallopt(_MMAP_MAX, maps)) and bool(mallopt(_TRIM_THRESHOLD, trim))
