"""`medtransfer help`: the long pages."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from medtransfer.cli.printing import say
from medtransfer.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "help"
# Columns of a page on a wide terminal: longer lines are hard to read.
_WIDTH = 100


def _complete(incomplete: str) -> list[tuple[str, str]]:
    """Topics and their headings, for the shell."""
    return [(name, heading(path)) for name, path in _pages().items() if name.startswith(incomplete)]


def show_help(
    topic: Annotated[
        str,
        typer.Argument(metavar="TOPIC", help="Page to show.", autocompletion=_complete),
    ] = "",
) -> None:
    """List the pages about formats, weights, numbers and more, or show one.

    On a terminal a page is laid out; into a file or another program it goes as
    Markdown.
    """
    pages = _pages()
    if not topic:
        width = max((len(name) for name in pages), default=0)
        say("\n".join(f"{name:<{width}}  {heading(path)}" for name, path in pages.items()))
        say("\nShow a page: medtransfer help TOPIC. The options of a verb: medtransfer VERB --help")
        return
    name = topic.lower().removesuffix(".md")
    if name not in pages:
        near = difflib.get_close_matches(name, pages, n=4)
        near = near or [page for page in pages if name in page]
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are: {', '.join(pages)}."
        raise ConfigError(
            f"no help on {topic!r}. {hint} The options of a verb: medtransfer VERB --help"
        )
    text = pages[name].read_text(encoding="utf-8")
    if sys.stdout.isatty():
        _lay_out(text)
    else:
        say(text, nl=False)


def _pages() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.md"))}


def heading(path: Path) -> str:
    """The first heading of a Markdown page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("#").strip() for line in lines if line.startswith("#")), "")


def _lay_out(text: str) -> None:
    """Shows Markdown on this terminal, page by page."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.width = min(console.width, _WIDTH)
    # As git sets it: colours are shown, and a page that fits the terminal is not waited for.
    os.environ.setdefault("LESS", "FRX")
    # Links name another topic (cohort.md), which a terminal could not open.
    with console.pager(styles=True):
        console.print(Markdown(text, hyperlinks=False))
