from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from medtransfer.cli import help as pages
from typer.testing import CliRunner

from studies import invoke

PAGE = (
    "# Weights: where they come from\n\nThey are `published`.\n\n## Which?\n\n- [all](cohort.md)\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "weights.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "cohort.md").write_text("\n# Your images: ids — and labels\n", encoding="utf-8")
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_topics_are_listed_with_their_headings():
    lines = invoke("help").output.splitlines()
    assert lines[:2] == [
        "cohort   Your images: ids — and labels",
        "weights  Weights: where they come from",
    ]


@pytest.mark.usefixtures("folder")
def test_a_page_goes_as_markdown_into_a_file():
    assert invoke("help", "weights").output == PAGE
    assert invoke("help", "Weights.md").output == PAGE


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("wieghts", "Did you mean weights?"),
        ("ohor", "Did you mean cohort?"),
        ("compare", "There are: cohort, weights."),
    ],
)
def test_an_unknown_topic_is_answered_with_the_nearest(topic, message):
    result = invoke("help", topic)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert "medtransfer VERB --help" in result.output


def test_the_pages_there_are_can_be_shown():
    names = [path.stem for path in pages.FOLDER.glob("*.md")]
    listed = [line.split()[0] for line in invoke("help").output.split("\n\n")[0].splitlines()]
    assert listed == sorted(names)
    for name in names:
        assert pages.heading(pages.FOLDER / f"{name}.md")
        assert invoke("help", name).exit_code == 0


@pytest.mark.usefixtures("folder")
def test_topics_are_completed(monkeypatch):
    from medtransfer.cli.app import app

    monkeypatch.setenv("_MEDTRANSFER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "medtransfer help we")
    monkeypatch.setenv("COMP_CWORD", "2")
    result = CliRunner().invoke(app, [], prog_name="medtransfer")
    assert result.output.split() == ["weights"]


@pytest.mark.process
def test_a_page_is_laid_out_on_a_terminal(folder):
    code = (
        "import pathlib, sys; from medtransfer.cli import help; from medtransfer.cli.app import "
        f"main; help.FOLDER = pathlib.Path({str(folder)!r}); "
        "sys.argv = ['medtransfer', 'help', 'weights']; main()"
    )
    terminal, end = pty.openpty()
    environment = os.environ | {"PAGER": "cat", "TERM": "xterm", "COLUMNS": "80"}
    run = subprocess.run(
        [sys.executable, "-c", code], stdin=end, stdout=end, stderr=end, env=environment, check=True
    )
    shown = os.read(terminal, 100_000).decode()
    os.close(end)
    os.close(terminal)
    assert run.returncode == 0
    assert "Weights: where they come from" in shown
    assert "\x1b[" in shown
    assert "#" not in shown
    assert "`" not in shown
    assert "all (cohort.md)" in shown.replace("\x1b[0m", "").replace("\x1b[4;34m", "")
