"""What all verbs have in common: help, usage, wrong inputs and what they load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import medtransfer
import pytest
import typer
from medtransfer.cli.app import app
from medtransfer.config.study_config import configs_folder

from studies import invoke

VERBS = (
    "demo",
    "check",
    "compare",
    "plan",
    "evaluate",
    "validate",
    "backbones",
    "configs",
    "help",
)
DEMO = str(configs_folder() / "demo.yaml")
# Words in braces are made by `places`.
COHORT = ["cohort.manifest={manifest}", "cohort.root={folder}"]
COMPARE = ["compare", DEMO, *COHORT]
# What the command line is given, and what its message must name: each ends with 2.
WRONG = {
    "unknown verb": (["comparse", DEMO], ["comparse", "compare"]),
    "unknown option": (["compare", "--outptu", "x"], ["--outptu", "--output"]),
    "no argument": (["compare"], ["CONFIG"]),
    "no number": ([*COMPARE, "--jobs", "two"], ["--jobs", "integer"]),
    "number too small": ([*COMPARE, "--jobs", "0"], ["--jobs", "1"]),
    "no such choice": (["demo", "--task", "grading"], ["classification", "detection"]),
    "fewer patients than a demo needs": (["demo", "--patients", "3"], ["--patients", "30"]),
    "config missing": (["compare", "none.yaml"], ["none.yaml", "medtransfer configs"]),
    "config is a folder": (["compare", "{folder}"], ["{folder}", "directory"]),
    "config is a table": (["compare", "{manifest}"], ["{manifest}", "cohort:"]),
    "config is no text": (["compare", "{image}"], ["{image}"]),
    "unknown key": ([*COMPARE, "image.sise=3"], ["image.sise", "size"]),
    "wrong type": ([*COMPARE, "image.size=large"], ["image.size"]),
    "override without a value": ([*COMPARE, "image.size"], ["image.size", "section.key=value"]),
    "override that is no YAML": ([*COMPARE, "image.size=["], ["image.size=["]),
    "manifest missing": (["compare", DEMO, "cohort.manifest=none.csv"], ["none.csv"]),
    "manifest missing, planned": (["plan", DEMO, "cohort.manifest=none.csv"], ["none.csv"]),
    "no such column": ([*COMPARE, "cohort.labels=[grade]"], ["{manifest}", "grade"]),
    "backbone misspelt": ([*COMPARE, "arms.imagenet.backbone=resnet19"], ["resnet19", "resnet18"]),
    "backbone misspelt, planned": (
        ["plan", "--backbone", "resnet19", "--counts", "5,5"],
        ["resnet19", "resnet18"],
    ),
    "no backbone matches": (["backbones", "no such*"], ["no such*"]),
    "weights misspelt": (
        [*COMPARE, "arms.imagenet.weights=imagenot"],
        ["arms.imagenet", "imagenot", "radimagenet"],
    ),
    "weights tag misspelt": (
        [*COMPARE, "arms.imagenet.weights=timm:in1m"],
        ["arms.imagenet", "in1m", "in1k"],
    ),
    "weights of another network": (
        [*COMPARE, "arms.imagenet.weights=radimagenet"],
        ["arms.imagenet", "resnet50"],
    ),
    "weights file missing": (
        [*COMPARE, "arms.imagenet.weights=file:none.pth"],
        ["arms.imagenet", "none.pth"],
    ),
    "weights are a folder": (
        [*COMPARE, "arms.imagenet.weights=file:{folder}"],
        ["arms.imagenet", "{folder}", "is a folder"],
    ),
    "weights of no run": (
        [*COMPARE, "arms.imagenet.weights=study:none"],
        ["arms.imagenet", "none", "study:FOLDER"],
    ),
    "output of others": ([*COMPARE, "-o", "{folder}"], ["{folder}", "--output"]),
    "output of others, demo": (["demo", "-o", "{folder}"], ["{folder}", "--output"]),
    "output is a file": ([*COMPARE, "-o", "{file}"], ["{file}", "--output"]),
    "output in a file": ([*COMPARE, "-o", "{file}/study"], ["{file}", "--output"]),
    "output in a file, demo": (["demo", "-o", "{file}/study"], ["{file}", "--output"]),
    "output in a file, check": (["check", "{manifest}", "-o", "{file}/x"], ["{file}", "--output"]),
    "output in a file, plan": (["plan", DEMO, *COHORT, "-o", "{file}/x"], ["{file}", "--output"]),
    "output in a file, evaluate": (
        ["evaluate", "{scores}", "-o", "{file}/x"],
        ["{file}", "--output"],
    ),
    "output in a file, validate": (
        ["validate", "{folder}", "{manifest}", "-o", "{file}/x"],
        ["{file}", "--output"],
    ),
    "no study to report": ([*COMPARE, "--report-only", "-o", "{new}"], ["{new}", "--output"]),
    "share of nothing": ([*COMPARE, "--share", "3"], ["'3'", "3/8"]),
    "no such share": ([*COMPARE, "--share", "9/8"], ["9/8", "1 to 8", "--array=1-8"]),
    "no such task": ([*COMPARE, "--task", "8", "--tasks", "8"], ["task 8", "--array=0-7"]),
    "nothing to check": (["check", "none.csv"], ["none.csv"]),
    "nothing to evaluate": (["evaluate", "none.csv"], ["none.csv"]),
    "no column of probabilities": (["evaluate", "{manifest}"], ["{manifest}", "probability"]),
    "no study to validate": (
        ["validate", "{folder}", "{manifest}", "-o", "{new}"],
        ["{folder}", "study.yaml"],
    ),
    "no folder for the validation": (["validate", "{folder}", "{manifest}"], ["--output"]),
    "no such example": (["configs", "nothing"], ["nothing", "demo"]),
    "no such page": (["help", "nothing"], ["nothing"]),
}


@pytest.fixture
def places(manifest, tmp_path):
    """What the braces in `WRONG` stand for."""
    inside = tmp_path / "inside"
    inside.mkdir()
    table = manifest(patients=12, views=1)
    (inside / "file").write_text("")
    (inside / "scores.csv").write_text("patient,target,probability\n1,0,0.2\n2,1,0.9\n")
    return {
        "manifest": table,
        "image": tmp_path / "0-0.png",
        "folder": tmp_path,
        "file": inside / "file",
        "scores": inside / "scores.csv",
        "new": tmp_path / "new",
    }


def content(folder):
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_named_with_what_to_do(case, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    words, named = WRONG[case]
    result = invoke(*(word.format(**places) for word in words))
    # Usage is laid out in lines of 80 columns.
    told = " ".join(result.output.split())
    assert result.exit_code == 2, told
    assert [part for part in named if part.format(**places) not in told] == [], told
    assert "Traceback" not in told
    assert content(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_refused(places, monkeypatch):
    # The tests may run as root, who can write anywhere.
    monkeypatch.setattr("os.access", lambda _, mode: not mode & os.W_OK)
    for words in (
        [*COMPARE, "-o", "{new}"],
        ["demo", "-o", "{new}"],
        ["check", "{manifest}", "-o", "{new}"],
        ["plan", DEMO, *COHORT, "-o", "{new}"],
        ["evaluate", "{scores}", "-o", "{new}"],
        ["validate", "{folder}", "{manifest}", "-o", "{new}"],
    ):
        result = invoke(*(word.format(**places) for word in words))
        assert result.exit_code == 2, words
        assert f"{places['folder']}: cannot be written" in result.output, words
        assert not places["new"].exists(), words


@pytest.mark.process
def test_wrong_inputs_load_neither_torch_nor_what_stands_on_it(places, tmp_path):
    cases = {case: [word.format(**places) for word in words] for case, (words, _) in WRONG.items()}
    # One process for all of them; what the first one loads is there for the next.
    code = """
import json, sys
from medtransfer.cli.app import app
from typer.testing import CliRunner

heavy = ("torch", "timm", "torchvision", "monai", "accelerate", "matplotlib")
for case, words in json.load(sys.stdin).items():
    code = CliRunner().invoke(app, words).exit_code
    print(json.dumps([case, code, [name for name in heavy if name in sys.modules]]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(outcomes) == len(WRONG)
    assert [outcome for outcome in outcomes if outcome[1:] != [2, []]] == []


@pytest.mark.process
def test_a_verb_is_imported_when_it_runs():
    code = (
        "import sys; from medtransfer.cli.app import app; from typer.testing import CliRunner; "
        "run = CliRunner().invoke; modules = lambda: [name.rpartition('.')[2] for name in "
        "sys.modules if name.startswith('medtransfer.cli.')]; run(app, ['--help']); "
        "print(modules()); run(app, ['configs', '--help']); print(modules(), 'pandas' in "
        "sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "['printing', 'guard', 'app']",
        "['printing', 'guard', 'app', 'configs'] False",
    ]


def test_help_names_the_verbs_and_how_to_complete_them():
    result = invoke("--help")
    assert result.exit_code == 0
    listed = re.findall(r"^  (\w+)  +\S", result.output.split("Commands:")[1], re.M)
    assert listed == list(VERBS)
    told = " ".join(result.output.split())
    assert "medtransfer demo" in told
    assert "medtransfer --install-completion" in told


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns_and_leaves_nothing_unsaid(verb):
    result = invoke(*([verb] if verb else []), "--help")
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if len(line) > 80] == []
    command = typer.main.get_command(app)
    for parameter in (command.commands[verb] if verb else command).params:
        assert parameter.help or parameter.hidden, parameter.name


def test_every_verb_has_a_module():
    folder = Path(medtransfer.__file__).parent / "cli"
    assert [verb for verb in VERBS if not (folder / f"{verb}.py").is_file()] == []


def test_the_version_is_shown():
    result = invoke("--version")
    assert (result.exit_code, result.output.strip()) == (
        0,
        f"medtransfer {medtransfer.__version__}",
    )


def test_verbs_are_completed(monkeypatch):
    monkeypatch.setenv("_MEDTRANSFER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "medtransfer c")
    monkeypatch.setenv("COMP_CWORD", "1")
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [], prog_name="medtransfer")
    assert result.output.split() == ["check", "compare", "configs"]
