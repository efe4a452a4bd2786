"""The command line. A verb's module is imported when the verb runs, and a verb imports what it
calls when it calls it, so that `--help` and the refusal of a wrong input load neither torch nor
pandas.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from medtransfer.cli.guard import guarded
from medtransfer.cli.printing import say

# By name: the function in the module of that name, and what the list of verbs says of it.
_VERBS = {
    "demo": ("demo", "Run the main job on an embedded phantom cohort."),
    "check": ("check", "Look for what is wrong with a cohort."),
    "compare": ("compare", "Train every arm on the same patients and compare."),
    "plan": ("plan", "Show what would be frozen, and why."),
    "evaluate": ("evaluate", "Evaluate the predictions of any model."),
    "validate": ("validate", "Evaluate a study's models on a second cohort."),
    "backbones": ("backbones", "List architectures, their costs and their weights."),
    "configs": ("configs", "List or print the example configurations."),
    "help": ("show_help", "Show the long pages, by topic."),
}


class _Commands(MutableMapping[str, Any]):
    """The commands by name; each is made from its module when it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            function, summary = _VERBS[name]
            verb = getattr(import_module(f"medtransfer.cli.{name}"), function)
            alone = _make_typer(add_completion=False)
            alone.command(name, short_help=summary)(guarded(verb))
            self._made[name] = typer.main.get_command(alone)
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_VERBS)

    def __len__(self) -> int:
        return len(_VERBS)


class _Verbs(TyperGroup):
    """The group of all verbs, which lists them without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Writes the list of verbs."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _VERBS.items()])


def _make_typer(**settings: Any) -> typer.Typer:
    # Plain help is twice as quick as that of rich.
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


app = _make_typer(
    cls=_Verbs,
    no_args_is_help=True,
    help="Does transfer learning help on my patients, by how much, and can I trust the "
    "probabilities?",
    epilog="Start with: medtransfer demo. To complete verbs and options with the Tab key: "
    "medtransfer --install-completion, then open a new terminal.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"medtransfer {metadata.version('medtransfer')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the command `medtransfer`."""
    app(prog_name="medtransfer")
