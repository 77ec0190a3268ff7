"""Ctrl-C: one line and exit code 130, within a second, and nothing that the next run could trip over."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

CODE = 128 + signal.SIGINT
GRACE = 0.6  # seconds for contexts to be left in order: the lock, an unfinished file, the terminal's cursor
MESSAGE = "refusal-lens: stopped; the same command goes on from where it was"


class Stopped(SystemExit):
    """Ctrl-C; not an Exception, so that nobody's error handling takes it for one."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside ends the process with one line and code 130.

    Python sees a signal between two of its own steps only. A long step of a library would keep it waiting, so a thread
    that the signal wakes directly ends the process after a short grace. That is safe: results are whole or not there.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Stopped(CODE)

    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield  # no such wake-up there; or another thread decides about signals
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGINT, stop)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_grace, args=(reader,), daemon=True).start()
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        _leave()
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGINT, before)
        os.close(writer)  # ends the thread


def _end_after_grace(reader: int) -> None:
    while byte := os.read(reader, 1):
        if byte[0] == signal.SIGINT:
            time.sleep(GRACE)
            _leave()
    os.close(reader)


_LEAVING = threading.Lock()


def _leave() -> None:
    if _LEAVING.acquire(blocking=False):
        with contextlib.suppress(OSError, ValueError):
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
            os.write(2, f"{cursor}{MESSAGE}\n".encode())
            sys.stdout.flush()
        os._exit(CODE)  # without waiting for the libraries' own shutdown
