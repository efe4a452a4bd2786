"""How shares, former options and failures reach the study and the exit code; nothing is trained."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from medtransfer.config.study_config import load_config
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study import failures, study
from medtransfer.study.share import WHOLE, Share

from studies import invoke, write_config


@pytest.fixture
def config(manifest, tmp_path):
    return write_config(tmp_path, manifest(patients=12, views=1))


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What `run_study` is called with; it gives a report and trains nothing."""
    received = []
    out = tmp_path / "out"

    def run_study(*arguments):
        share = arguments[5]
        received.append(arguments[3:])
        out.mkdir(exist_ok=True)
        folder = StudyFolder(out)
        folder.write(folder.audit, {"flow": {"images": 12, "used": calls.used}})
        page = out / "report.html"
        return SimpleNamespace(sentences=["As good."], page=page) if share.of == 1 else None

    calls = SimpleNamespace(received=received, out=out, used=12, failures=[])
    monkeypatch.setattr(study, "run_study", run_study)
    monkeypatch.setattr(failures, "failed_runs", lambda _: calls.failures)
    return calls


def test_the_report_is_printed_with_its_page(config, calls):
    result = invoke("compare", config, "-o", calls.out, "--jobs", 3, "--quiet")
    assert result.exit_code == 0, result.output
    assert calls.received == [(True, 3, WHOLE, False)]
    said, report, models = result.stdout.rsplit("\n", 3)[:3]
    assert (said, report) == ("As good.\n", f"Report: {calls.out / 'report.html'}")
    assert f'mt.load_model("{calls.out}")' in models


def test_a_share_is_done_and_says_what_comes_after_the_last(config, calls):
    result = invoke("compare", config, "-o", calls.out, "--share", "3/8")
    assert result.exit_code == 0, result.output
    assert calls.received == [(False, 1, Share(3, 8), False)]
    assert "Share 3/8 is done" in result.output
    assert "--report-only" in result.output


def test_task_and_tasks_still_work_and_say_what_to_write(config, calls):
    result = invoke("compare", config, "-o", calls.out, "--task", 2, "--tasks", 8)
    assert result.exit_code == 0, result.output
    assert calls.received == [(False, 1, Share(3, 8), False)]
    assert (
        "--task 2 --tasks 8 goes with the next release; write --share 3/8, which counts from 1."
    ) in result.stderr
    assert "--task" not in invoke("compare", "--help").output


@pytest.mark.parametrize(
    ("used", "failures", "message"),
    [
        (11, [], "1 unreadable image(s) were left out"),
        (
            12,
            ["scratch, fold 1, seed 0: diverged"],
            "Run failed: scratch, fold 1, seed 0: diverged",
        ),
    ],
)
def test_what_failed_is_listed_with_exit_code_3(config, calls, used, failures, message):
    calls.used, calls.failures = used, failures
    result = invoke("compare", config, "-o", calls.out)
    assert (result.exit_code, message in result.stderr) == (3, True), result.output
    assert "As good." in result.stdout


def test_the_report_is_of_all_shares(config, calls):
    calls.out.mkdir()
    StudyFolder(calls.out).write_config(load_config(config))
    result = invoke("compare", config, "-o", calls.out, "--share", "1/8", "--report-only")
    assert (result.exit_code, "leave --share out" in result.output) == (2, True), result.output
    assert calls.received == []


def test_a_report_alone_reads_no_images(config, calls, tmp_path):
    calls.out.mkdir()
    StudyFolder(calls.out).write_config(load_config(config))
    for path in (*tmp_path.glob("*.png"), tmp_path / "manifest.csv"):
        path.unlink()
    result = invoke("compare", config, "-o", calls.out, "--report-only")
    assert result.exit_code == 0, result.output
    assert calls.received == [(False, 1, WHOLE, True)]
