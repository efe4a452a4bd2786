"""A report from the folder alone: what has changed since is left out and named, never mixed in."""

from __future__ import annotations

import json

import pytest
from medtransfer.files import read_json, write_json
from medtransfer.inference.description import read_description
from medtransfer.records.run import read_run
from medtransfer.records.run_folder import RunFolder
from medtransfer.records.study_folder import StudyFolder

from studies import invoke


@pytest.fixture
def study(studies, tmp_path):
    """Two probes on formulas, to be changed."""
    arms = {"formulas": {"kind": "features"}, "again": {"kind": "features"}}
    return studies.finished(studies.cohort(), arms=arms).copy(tmp_path / "s")


def report(study, *more):
    return invoke("compare", study.config, "--output", study.out, *more)


def test_runs_of_other_images_or_code_are_left_out_and_named(study):
    run = StudyFolder(study.out).run("again", 1, 0)
    summary = read_json(run.summary, sealed=True)
    assert summary["conditions"] == read_run(run).conditions
    write_json(run.summary, {**summary, "conditions": "0" * 64}, sealed=True)
    result = report(study, "--report-only")
    assert result.exit_code == 0, result.output
    assert "comes from other code, libraries, images or parts" in result.output.replace("\n", " ")
    assert "rests on 2 of 4 runs" in (study.out / "report.json").read_text()
    # Nor is a run of an earlier version mixed in, which says nothing of it.
    older = {key: value for key, value in summary.items() if key not in {"conditions", "files"}}
    run.summary.write_text(json.dumps(older))
    assert report(study, "--report-only").exit_code == 0
    assert "rests on 2 of 4 runs" in (study.out / "report.json").read_text()


@pytest.mark.parametrize("content", [None, b"", b'{"format": 1}'])
def test_a_model_that_is_missing_or_damaged_is_made_anew(study, content):
    run = StudyFolder(study.out).run("again", 0, 0)
    before = read_description(run)[0]
    run.model.unlink() if content is None else run.model.write_bytes(content)
    assert report(study, "--report-only").exit_code == 0
    result = report(study)
    assert result.exit_code == 0, result.output
    assert "The run is done again" in result.output.replace("\n", " ")
    assert read_description(run)[0] == before


def test_a_report_gives_damaged_weights_no_new_digest(study):
    run = StudyFolder(study.out).run("again", 0, 0)
    description, digests = read_description(run)
    run.weights.write_bytes(b"other")
    description.write(run, digests)
    assert read_description(run)[1] == digests


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions.csv"])
def test_a_damaged_file_of_a_run_costs_that_run_alone(study, name):
    run = RunFolder(study.out / "runs" / "again" / "fold-1" / "seed-0")
    (run.path / name).write_bytes(b'{"epoch": \0')
    result = report(study, "--report-only")
    assert result.exit_code == 0, result.output
    assert name in result.output.replace("\n", "")


def test_a_record_that_is_missing_is_no_traceback(study):
    for name in ("plan", "audit", "environment"):
        getattr(StudyFolder(study.out), name).unlink()
    result = report(study, "--report-only", "report.gallery=true", "report.reuse=true")
    assert result.exit_code in {0, 2}, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_locks_of_an_array_are_cleared_by_its_report(study):
    folder = StudyFolder(study.out)
    folder.locks.mkdir()
    assert report(study, "--report-only").exit_code == 0
    assert not folder.locks.exists()


def test_a_column_that_is_named_like_a_fold_is_none(study):
    path = StudyFolder(study.out).cohort
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([f"{first},fold_thickness", *(f"{row},3" for row in others)]) + "\n")
    assert report(study, "--report-only").exit_code == 0
    assert "folds are untested" not in (study.out / "report.json").read_text()
