"""One owner of the names of a study's files, who knows whether a folder is this study."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import medtransfer
import pytest
import yaml
from medtransfer.errors import StudyError
from medtransfer.records.run_folder import RunFolder
from medtransfer.records.study_folder import StudyFolder

from studies import invoke

PACKAGE = Path(medtransfer.__file__).parent


def names_of(kind):
    """Names of the files that a folder has a property for."""
    here = kind(Path("x"))
    properties = [name for name, value in vars(kind).items() if isinstance(value, property)]
    values = [getattr(here, name) for name in properties]
    return {value.name for value in values if isinstance(value, Path) and "." in value.name[1:]}


def test_no_other_module_spells_the_name_of_a_file_of_a_study():
    names = names_of(StudyFolder) | names_of(RunFolder)
    assert {"run.json", "study.yaml", "predictions.csv", "model.json"} <= names
    spelt = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "records":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            # In a sentence or a docstring a file may be named; as a path it is its owner's.
            text = node.value if isinstance(node, ast.Constant) else None
            if (
                isinstance(text, str)
                and re.fullmatch(r"[\w./-]+", text)
                and Path(text).name in names
            ):
                spelt.append(f"{path.relative_to(PACKAGE)}, line {node.lineno}: {text}")
    # The phantom's own files, and the template of the page.
    others = ("cli/demo.py", "data/phantom", "report/build.py")
    assert not [line for line in spelt if not line.startswith(others)]


@pytest.mark.xdist_group("classification")
def test_every_json_and_yaml_of_a_study_says_its_format(studies):
    study = studies.classification()
    for path in study.out.rglob("*.json"):
        assert json.loads(path.read_text())["format"] == 1, path
    assert yaml.safe_load((study.out / "study.yaml").read_text())["format"] == 1


@pytest.mark.xdist_group("classification")
def test_the_report_needs_neither_images_nor_weights(studies, tmp_path, monkeypatch):
    """In another place, with an empty cache, without the files of the cohort."""
    study = studies.classification()
    copied = study.copy(tmp_path / "s")
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(tmp_path / "cache"))
    config = yaml.safe_load((copied.out / "study.yaml").read_text())
    before = json.loads((copied.out / "report.json").read_text())
    for name in ("report.json", "report.html", "predictions.csv"):
        (copied.out / name).unlink()
    from medtransfer.study import settle

    def forbidden(*_, **__):
        raise AssertionError("a backbone was loaded")

    monkeypatch.setattr(settle, "load_backbone", forbidden)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(config))
    result = invoke("compare", tmp_path / "study.yaml", "-o", copied.out, "--report-only")
    assert result.exit_code == 0, result.output
    assert "are not in the cache any more" in result.output
    assert json.loads((copied.out / "report.json").read_text()) == before


def test_a_study_of_another_format_is_refused_with_what_to_do(studies, tmp_path):
    study = studies.finished(studies.cohort()).copy(tmp_path / "s")
    folder = StudyFolder(study.out)
    config = folder.read_config()
    text = folder.settings.read_text()
    folder.settings.write_text(text.replace("format: 1", "format: 2"))
    for ask in (folder.read_config, lambda: folder.refuse_other(config)):
        with pytest.raises(StudyError, match=r"format: is 2, .* reads format 1; use the version"):
            ask()
    folder.settings.write_text(text.replace("format: 1\n", ""))
    folder.refuse_other(config)


@pytest.mark.parametrize("content", ["", "[]", "{", "\0\0", '{"format": 7}'])
def test_a_damaged_record_is_named(studies, tmp_path, content):
    study = studies.finished(studies.cohort()).copy(tmp_path / "s")
    for name in ("report", "plan", "environment", "audit"):
        path = getattr(StudyFolder(study.out), name)
        path.write_text(content)
        with pytest.raises(StudyError, match=path.name):
            StudyFolder(study.out).read(path)
