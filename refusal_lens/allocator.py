"""Memory that the C library keeps between uses, so that large tensors don't cost new pages each time."""

from __future__ import annotations

import ctypes
import platform

# mallopt's names in glibc's malloc.h, and its defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM, _DEFAULT_MMAPS = 128 * 1024, 65536


def keep_freed_memory(keep: bool = True) -> bool:
    """Let glibc keep what tensors free, instead of giving it back to the system and asking anew.

    A pass makes and frees tensors of tens of MB; by default each then lies in pages that the system must clear first,
    which took a fifth of the time of a pass of the 0.5B model on two cores. The process holds the memory of its peak
    from then on, but for what was allocated while ``keep`` was off.

    Args:
        keep: False for glibc's defaults, for weights, which are better given back.

    Returns:
        Whether it was set; False with another C library or system.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    maps, trim = (0, 2**31 - 1) if keep else (_DEFAULT_MMAPS, _DEFAULT_TRIM)
    return bool(mallopt(_MMAP_MAX, maps)) and bool(mallopt(_TRIM_THRESHOLD, trim))
