"""The command line. Verbs import what they call when they are called, so that `--help` and the
refusal of a wrong input load neither torch nor pandas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import medtransfer
from medtransfer.cli.backbones import backbones, configs
from medtransfer.cli.check import check
from medtransfer.cli.compare import compare
from medtransfer.cli.demo import demo
from medtransfer.cli.evaluate import evaluate
from medtransfer.cli.guard import guarded
from medtransfer.cli.help import show_help
from medtransfer.cli.plan import plan
from medtransfer.cli.printing import say
from medtransfer.cli.validate import validate

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is twice as quick
    pretty_exceptions_enable=False,
    help="Does transfer learning help on my patients, by how much, and can I trust the "
    "probabilities?",
    epilog="Start with: medtransfer demo",
)

# By name: the verb, and what the list of verbs says of it.
_VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo, "Run the main job on an embedded phantom cohort."),
    "check": (check, "Look for what is wrong with a cohort."),
    "compare": (compare, "Train every arm on the same patients and compare."),
    "plan": (plan, "Show what would be frozen, and why."),
    "evaluate": (evaluate, "Evaluate the predictions of any model."),
    "validate": (validate, "Evaluate a study's models on a second cohort."),
    "backbones": (backbones, "List architectures, their costs and their weights."),
    "configs": (configs, "List or print the example configurations."),
    "help": (show_help, "Show the long pages, by topic."),
}
for _name, (_verb, _summary) in _VERBS.items():
    app.command(_name, short_help=_summary)(guarded(_verb))


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"medtransfer {medtransfer.__version__}")
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
