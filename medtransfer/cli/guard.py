"""One message in place of a traceback, the exit codes, and the signals while a verb runs.

Exit codes: 0 done; 1 the check found problems; 2 wrong configuration, input or usage; 3 done, with
inputs or runs that failed and are listed; 130 interrupted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import typer

from medtransfer.cli.printing import say
from medtransfer.errors import MedTransferError

FOUND, REFUSED, INCOMPLETE, INTERRUPTED = 1, 2, 3, 130


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, with the exit codes and signals of the command line."""

    @wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        with _signals(), _exit_codes():
            verb(*arguments, **options)

    return run


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except MedTransferError as error:
        say(f"medtransfer: {error}", err=True)
        raise typer.Exit(REFUSED) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(
            f"medtransfer: {where}{error.strerror or error}. Check the path, its permissions and "
            "the free space.",
            err=True,
        )
        raise typer.Exit(REFUSED) from None
    except KeyboardInterrupt:
        say(
            "medtransfer: interrupted. Run the same command again; what is finished is kept.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM, which batch systems send, is treated as Ctrl-C. What was set before, and what a verb
    sets, is put back, so that a script or notebook that called a verb can be ended as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets signals in its main thread alone
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001
    raise KeyboardInterrupt
