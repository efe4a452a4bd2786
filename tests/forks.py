"""Processes that begin with everything imported: forked from one that has loaded torch once, so
that they start within milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["medtransfer.study.study", "medtransfer.cli.app", "medtransfer.data.audit.inspection"]
)
# Seconds after which a test that waits for a fact is given up; a fact that comes takes a few at
# most.
_GIVE_UP = 300


@contextmanager
def command(log: Path, *arguments: object) -> Iterator[BaseProcess]:
    """`medtransfer ARGUMENTS` in a process of its own, which prints to `log` and is killed in the
    end, should it still run.

    Without `--jobs`: joblib ends its workers when the interpreter ends, which a forked one does in
    another way.
    """
    process = PROCESSES.Process(
        target=_run_command,
        args=(str(log), dict(os.environ), [str(argument) for argument in arguments]),
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _run_command(log: str, environment: dict[str, str], arguments: list[str]) -> None:
    from medtransfer.cli.app import main

    # The server has the environment of the test that started it.
    os.environ.clear()
    os.environ.update(environment)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.argv = ["medtransfer", *arguments]
    main()


def wait_for(fact: Callable[[], bool], alive: Callable[[], bool]) -> bool:
    """Waits until it holds; False where the process that brings it about has ended before."""
    begun = time.monotonic()
    while not fact():
        if not alive():
            return fact()
        assert time.monotonic() - begun < _GIVE_UP, "waited in vain"
        time.sleep(0.01)
    return True
