"""Ctrl-C and SIGTERM while networks train: the step is finished and kept, then the program ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds within which a second signal is the first one again, sent to a group of processes and then to each of them.
_SAME = 2.0
_note: Path | None = None


def obey_note(path: Path) -> None:
    """From here on an end is asked for by this file, and no more by Ctrl-C, which is for the process that began this one."""
    global _note  # noqa: PLW0603  signals are a matter of the whole process too
    _note = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def finishing_steps(at_once: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether an end was asked for; a second signal acts at once.

    Signals reach the main thread alone; in another one nothing is changed.

    Args:
        at_once: called when the first signal arrives.
    """
    first: float | None = None

    def asked() -> bool:
        return first is not None or (_note is not None and _note.exists())

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            # None: a handler that was not set from Python cannot be set back.
            if handler is not None:
                signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first > _SAME:
            restore()
            signal.raise_signal(number)
        elif first is None:
            first = now
            at_once()

    for number in _SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
