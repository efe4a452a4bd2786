"""What verbs print."""

from __future__ import annotations

import json
from typing import Any

import typer

from medtransfer.text.names import show_text


def say(text: str, err: bool = False, nl: bool = True) -> None:
    """Prints a text; characters of names that would move the cursor, or turn text around, are shown
    as their codes.

    Args:
        text: to be printed.
        err: on standard error, so that results can be piped.
        nl: with a new line behind it.
    """
    typer.echo(show_text(text), err=err, nl=nl)


def say_json(answer: Any) -> None:
    """Prints an answer for other programs."""
    say(json.dumps(answer, indent=1))


def say_renamed(before: str, now: str) -> None:
    """Says in one line that a form of the command line goes with the next release.

    Args:
        before: the form that was used.
        now: what to write in its place.
    """
    say(f"medtransfer: {before} goes with the next release; write {now}.", err=True)
