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
# Seconds within which a second signal is the first one again, sent to a group of processes and then
# to each of them.
_SAME = 2.0
# Signals are a matter of the whole process, and so is what they ask for: when the first one came,
# and a note in their place.
_first: float | None = None
_note: Path | None = None


class EndAskedError(KeyboardInterrupt):
    """Raised between two steps, where all that a training needs to go on can be kept."""

    def __init__(self) -> None:
        super().__init__("interrupted. Run the same again: what was finished or begun is kept.")


def asked() -> bool:
    """Whether an end was asked for, within `finishing_steps` or by a note."""
    return _first is not None or (_note is not None and _note.exists())


def obey_note(path: Path) -> None:
    """From here on an end is asked for by this file, and no more by Ctrl-C, which is for the
    process that began this one.
    """
    global _note  # noqa: PLW0603
    _note = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def finishing_steps(at_once: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Signals within only ask for an end; a second one acts at once.

    They reach the main thread alone; in another one nothing is changed.

    Args:
        at_once: called when the first signal arrives.
    """
    global _first  # noqa: PLW0603
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            # None: a handler that was not set from Python cannot be set back.
            if handler is not None:
                signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        global _first  # noqa: PLW0603
        now = time.monotonic()
        if _first is not None and now - _first > _SAME:
            restore()
            signal.raise_signal(number)
        elif _first is None:
            _first = now
            at_once()

    _first = None
    for number in _SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield
    finally:
        restore()
        _first = None
