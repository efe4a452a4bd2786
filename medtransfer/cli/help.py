"""`medtransfer help`: the long pages."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer

from medtransfer.cli.printing import say
from medtransfer.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "help"


def show_help(
    topic: Annotated[str, typer.Argument(metavar="[TOPIC]", help="Show this page.")] = "",
) -> None:
    """List the pages about formats, weights, numbers and more, or show one."""
    pages = {path.stem: path for path in sorted(FOLDER.glob("*.md"))}
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
        raise ConfigError(f"no help on {topic!r}. {hint}")
    text = pages[name].read_text(encoding="utf-8")
    if sys.stdout.isatty():
        typer.echo_via_pager(text)
    else:
        say(text, nl=False)


def heading(path: Path) -> str:
    """The first heading of a Markdown page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("#").strip() for line in lines if line.startswith("#")), "")
