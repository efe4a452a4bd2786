"""What the README and the notebooks say is run."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import nbformat
import pytest
import typer
from medtransfer.study import study
from nbclient import NotebookClient

from studies import LEAN, SETTINGS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.study
def test_the_python_of_the_readme_runs(manifest, tmp_path, monkeypatch, capsys):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S
    )
    assert len(blocks) == 2
    manifest(patients=20)
    (tmp_path / "images").mkdir()
    for path in tmp_path.glob("*.png"):
        shutil.move(path, tmp_path / "images" / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "compare", partial(study.compare, quiet=True, **SETTINGS))
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    shown = capsys.readouterr().out
    assert "AUC" in shown
    assert "rescaled by 1 and -1024" in shown
    assert (tmp_path / "study" / "report.html").is_file()


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", text, re.M))
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)
    from medtransfer.cli.app import app

    verbs = set(typer.main.get_command(app).commands)
    used = set(re.findall(r"^medtransfer (\w+)", text, re.M))
    assert used
    assert used <= verbs
    for path in re.findall(r"\((\.github/[^)]+)\)", text):
        assert (ROOT / path).is_file()


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
        '"folds": 3, "seeds": [0, 1]}': f'"folds": 2}}, **{LEAN}',
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
