"""Progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from medtransfer.text.names import show_text

# Seconds between two lines about the same work in a log.
_LINE_EVERY = 15.0


class Reporter:
    """Shows how far each piece of work is. Writes to standard error, so that results can be piped.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.bars = self.console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._begun = time.monotonic()

    def __enter__(self) -> Reporter:
        if self.bars:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._progress = Progress(*columns, console=self.console)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Work `what` has done `done` of `total`."""
        if self.quiet or total == 0:
            return
        if self._progress is not None:
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=total)
            self._progress.update(self._tasks[what], completed=done, total=total)
            if done >= total:
                self._progress.update(self._tasks[what], visible=False)
            return
        now = time.monotonic()
        if done == 0 or (done < total and now - self._last.get(what, self._begun) < _LINE_EVERY):
            return
        self._last[what] = now
        self.say(f"{what}: {done} of {total}")

    def say(self, text: str) -> None:
        """One line, above the bars."""
        if self.quiet:
            return
        text = show_text(text)
        if self.bars:
            self.console.print(text, markup=False)
        else:
            print(f"[{time.monotonic() - self._begun:6.0f} s] {text}", file=sys.stderr, flush=True)  # noqa: T201
