"""INT, TERM and HUP as one exception: the first raises Interrupted in the main thread, a second ends the process at once.

A signal often comes twice within milliseconds (a terminal and a supervisor both send it, `timeout` sends it to the process and to
its group), so a second one counts only a second after the first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mlinterp.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
APART = 1.0
"""Seconds between a first signal and another one that is meant as such."""


class _Listener:
    def __init__(self) -> None:
        self.depth = 0
        self.deferring = 0
        self.first_at: float | None = None
        self.received: int | None = None
        self.pending: int | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def handle(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.first_at is None:
            self.first_at, self.received = now, signum
            if self.deferring:
                self.pending = signum
            else:
                raise Interrupted(signum)
        elif now - self.first_at >= APART:
            os._exit(128 + signum)


_listener = _Listener()


@contextmanager
def listening() -> Iterator[None]:
    """Raise Interrupted in the main thread on a stopping signal. Nested uses share one listener; the outermost restores."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _listener.depth += 1
    if _listener.depth == 1:
        _listener.first_at = _listener.received = _listener.pending = None
        heeded = [signum for signum in STOPPING if signal.getsignal(signum) is not signal.SIG_IGN]  # `nohup` ignores HUP on purpose
        _listener.previous = {signum: signal.signal(signum, _listener.handle) for signum in heeded}
    try:
        yield
    finally:
        _listener.depth -= 1
        if _listener.depth == 0:
            for signum, handler in _listener.previous.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold a stopping signal back until the block is over, then raise Interrupted (unless the block itself raised)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _listener.deferring += 1
    try:
        yield
    finally:
        _listener.deferring -= 1
    if not _listener.deferring and _listener.pending is not None:
        signum, _listener.pending = _listener.pending, None
        raise Interrupted(signum)


def check() -> None:
    """Raise Interrupted again where it was raised and lost: Python drops an exception that a signal raises inside a finalizer."""
    if (signum := _received()) is not None:
        raise Interrupted(signum)


def behind(error: BaseException | None) -> Interrupted | None:
    """Return the stop that another error took the place of: C code that is left by an exception may raise one of its own instead."""
    signum = _received()
    return None if error is None or isinstance(error, Interrupted) or signum is None else Interrupted(signum)


def _received() -> int | None:
    heard = _listener.depth and threading.current_thread() is threading.main_thread()
    return _listener.received if heard else None
