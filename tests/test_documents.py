"""What the README, the help pages and the notebooks say is run, or at least taken by the parser."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import medtransfer as mt
import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from medtransfer.cli.app import app
from medtransfer.config.study_config import load_config, make_choices
from medtransfer.evaluation.tables.candidates import read_lesions
from nbclient import NotebookClient
from PIL import Image

from studies import ARMS, LEAN, SETTINGS, invoke

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HELP = sorted((ROOT / "medtransfer" / "help").glob("*.md"))
README = ROOT / "README.md"
PAGES = [README, *HELP]
VERBS = typer.main.get_command(app)
# What typer raises for arguments that a verb does not take; it names the classes below in part.
USAGE_ERROR = typer.BadParameter.__mro__[1]
# What is raised where an argument, or the value of an option, was left out.
INCOMPLETE = {"MissingParameter", "BadOptionUsage"}
# Shell variables of the pages, and what a job scheduler may put in their place.
VARIABLES = {"$SLURM_ARRAY_TASK_ID": "1", "$SLURM_ARRAY_TASK_COUNT": "8"}


def of_page(path):
    return path.stem


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text and the number of its first line."""

    language: str
    text: str
    line: int


def blocks_of(page, language=None):
    text = page.read_text(encoding="utf-8")
    blocks = [
        Block(fence[1], fence[2], text.count("\n", 0, fence.start(2)) + 1)
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    ]
    return [block for block in blocks if language in (None, block.language)]


def pages_with(language):
    return [page for page in PAGES if blocks_of(page, language)]


def write_images(folder, patients, views, seed):
    """Images of `patients` patients, every other one with a bright square; their manifest and
    boxes.
    """
    rng = np.random.default_rng(seed)
    rows, boxes = [], []
    folder.mkdir(parents=True)
    for patient in range(patients):
        for view in range(views):
            name, malignant = f"{patient}-{view}.png", patient % 2
            pixels = rng.integers(0, 120, (40, 48)).astype(np.uint8)
            if malignant:
                pixels[10:30, 10:30] += 100
                boxes.append({"image": name, "x0": 10, "y0": 10, "x1": 30, "y1": 30})
            Image.fromarray(pixels).save(folder / name)
            row = {"image": name, "patient": f"P{patient}", "malignant": malignant}
            rows.append({**row, "site": "north" if patient < patients / 2 else "south"})
    pd.DataFrame(boxes).to_csv(folder / "boxes.csv", index=False)
    return pd.DataFrame(rows)


@pytest.fixture
def workplace(tmp_path, studies, monkeypatch):
    """The current folder of somebody who follows the pages, with what these call by name."""
    write_images(tmp_path / "images", 20, 2, seed=0).to_csv(tmp_path / "manifest.csv", index=False)
    second = write_images(tmp_path / "second", 16, 1, seed=1)
    second.to_csv(tmp_path / "second" / "manifest.csv", index=False)
    (tmp_path / "tomorrow").mkdir()
    for name, image in zip("ab", ("0-0.png", "1-0.png"), strict=True):
        shutil.copy(tmp_path / "second" / image, tmp_path / "tomorrow" / f"{name}.png")
    volume = np.random.default_rng(2).normal(size=(24, 24, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "volume.nii.gz")
    shutil.copytree(studies.finished(studies.cohort()).out, tmp_path / "studies" / "breast")
    shutil.copy(tmp_path / "studies" / "breast" / "predictions.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    small = partial(mt.compare, quiet=True, **SETTINGS)
    monkeypatch.setattr(mt, "compare", small, raising=False)
    return tmp_path


@pytest.mark.xdist_group("documents")
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # one of MONAI's own readers
@pytest.mark.parametrize("page", pages_with("python"), ids=of_page)
def test_the_python_of_a_page_runs(page, workplace, capsys):
    if page == README:  # trains it
        shutil.rmtree(workplace / "studies" / "breast")
    names = {}
    for block in blocks_of(page, "python"):
        # The lines of a traceback are those of the page.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
    if page == README:
        assert "AUC" in capsys.readouterr().out
        assert (workplace / "studies" / "breast" / "report.html").is_file()


def words_of(line):
    """The words of a line as a shell gives them to `medtransfer`, without what stands before it."""
    for variable, value in VARIABLES.items():
        line = line.replace(variable, value)
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    if words[:1] == ["torchrun"]:
        words = words[words.index("-m") + 1 :]
    return words


def parse_command(words, folder, whole=True):
    """The words of a command line, without the program, through the parser of the program.

    Args:
        words: the verb and what follows it.
        folder: for a configuration.
        whole: whether every argument must be there.

    Raises:
        USAGE_ERROR: there is no such verb, option or choice.
        ConfigError: there is no such setting, or not of this value.
    """
    verb = VERBS.get_command(typer.Context(VERBS), words[0])
    if verb is None:
        raise USAGE_ERROR(f"no verb {words[0]}")
    try:
        given = verb.make_context(words[0], list(words[1:])).params
    except USAGE_ERROR as error:
        if whole or type(error).__name__ not in INCOMPLETE:
            raise
        return
    settings = given.get("overrides") or given.get("choices") or ()
    if words[0] in {"evaluate", "validate"}:
        make_choices({}, settings)
    else:
        load_part("", folder, settings)


def load_part(text, folder, overrides=()):
    """A part of a configuration, with the cohort and the arms of another where it has none."""
    sections = yaml.safe_load(text) or {}
    others = {"cohort": {"manifest": "manifest.csv", "labels": ["malignant"]}, "arms": ARMS}
    missing = {name: others[name] for name in others if name not in sections}
    path = folder / "part.yaml"
    path.write_text(text + (yaml.safe_dump(missing) if missing else ""), encoding="utf-8")
    return load_config(path, overrides)


def refused_commands(commands, folder, whole=True):
    """The commands that the parser does not take, each with its reason."""
    refused = []
    for command in commands:
        words = words_of(command)
        try:
            parse_command(words[1:], folder, whole)
        except (USAGE_ERROR, mt.MedTransferError) as error:
            reason = getattr(error, "message", None) or str(error)
            refused.append(f"{command}: {reason}")
    return refused


@pytest.mark.parametrize("page", pages_with("bash"), ids=of_page)
def test_the_commands_of_a_page_exist(page, tmp_path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [
        line
        for block in blocks_of(page, "bash")
        for line in block.text.splitlines()
        if words_of(line)
    ]
    targets = {words_of(line)[1] for line in lines if words_of(line)[0] == "make"}
    assert all(f"\n{target}:" in makefile for target in targets)
    commands = [line for line in lines if words_of(line)[0] == "medtransfer"]
    assert len(commands) + len(targets) == len(lines)
    assert refused_commands(commands, tmp_path) == []
    for command in commands:
        if words_of(command)[1] == "configs":
            assert invoke(*words_of(command)[1:]).exit_code == 0


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_what_the_prose_of_a_page_names_exists(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    commands = [code for code in re.findall(r"`([^`\n]+)`", prose) if "medtransfer " in code]
    whole = [code for code in commands if re.fullmatch(r"medtransfer [a-z].*", code)]
    assert refused_commands(whole, tmp_path, False) == []
    for path in re.findall(r"(?:tests/benchmarks|notebooks|configs)/\w+\.\w+", text):
        assert (ROOT / path).is_file(), path
    for target in re.findall(r"`make ([\w-]+)`", prose):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", prose):
        assert (page.parent / link).is_file(), link
    for name in re.findall(r"`mt\.(\w+)", prose):
        assert name in mt.__all__, name


@pytest.mark.parametrize("page", pages_with("yaml"), ids=of_page)
def test_the_settings_of_a_page_are_a_configuration_or_a_part_of_one(page, tmp_path):
    for block in blocks_of(page, "yaml"):
        config = load_part(block.text, tmp_path)
        assert set(yaml.safe_load(block.text)) <= set(type(config).model_fields)


@pytest.mark.parametrize("page", pages_with("csv"), ids=of_page)
def test_the_tables_of_a_page_are_read(page, tmp_path):
    for block in blocks_of(page, "csv"):
        path = tmp_path / "table.csv"
        path.write_text(block.text, encoding="utf-8")
        table = pd.read_csv(path)
        if "probability" in table:
            assert len(mt.read_predictions(path)) == len(table)
        elif "x0" in table:
            assert len(read_lesions(path)) == len(table)
        else:
            for image in table["image"]:
                (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / image, "PNG")
            cohort = mt.Cohort.from_csv(path, root=tmp_path, labels=["malignant"])
            assert len(cohort) == len(table)


def test_every_language_of_a_block_is_tried():
    languages = {block.language for page in PAGES for block in blocks_of(page)}
    assert languages == {"python", "bash", "yaml", "csv", "text"}


def test_the_readme_is_a_screen_and_a_half_and_names_every_topic():
    text = README.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines) <= 120
    assert len(re.findall(r"\w[\w'-]*", re.sub(r"\(medtransfer/\S+\)|[|`*#]", " ", text))) <= 1000
    topics = re.findall(r"\[(\w+)\]\(medtransfer/help/(\w+)\.md\)", text)
    assert {topic for topic, _ in topics} == {page.stem for page in HELP}
    assert all(topic == file for topic, file in topics)
    assert (ROOT / ".github" / "report.png").is_file()


@pytest.mark.parametrize("page", HELP, ids=of_page)
def test_a_help_page_fits_its_topic(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \w", lines[0])
    assert len(lines[0]) <= 90
    assert 60 <= len(lines) <= 200
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_executed_and_short(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any(cell.outputs for cell in code)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert sum(bool(line.strip()) for cell in code for line in cell.source.splitlines()) < 15


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.process
def test_the_first_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "01_first_study.ipynb", as_version=4)
    smaller = {
        "patients=150": "patients=30",
        '"size": 96': '"size": 32',
        '"epochs": 10': '"epochs": 1',
        '"folds": 3, "seeds": [0, 1]}': '"folds": 2}',
        '"protocol": protocol}': f'"protocol": protocol, **{LEAN}}}',
    }
    for large, small in smaller.items():
        cells = [cell for cell in notebook.cells if large in cell.source]
        assert cells, large
        for cell in cells:
            cell.source = cell.source.replace(large, small)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(str(output) for output in notebook.cells[-1].outputs)
    assert "text/html" in shown
    assert "<table" in shown
