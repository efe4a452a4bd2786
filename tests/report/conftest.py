"""A page that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.result import EvaluationReport
from medtransfer.report.build import build_report


@pytest.fixture(scope="session")
def report_of_two(scores) -> EvaluationReport:
    return evaluate(scores({"imagenet": 1.5, "scratch": 0.3}), bootstrap=100)


@pytest.fixture(scope="session")
def two_arms(report_of_two, tmp_path_factory) -> Path:
    """The folder of a report of two arms, with figures of every kind."""
    folder = tmp_path_factory.mktemp("two_arms")
    report_of_two.save(folder / "report.json")
    build_report(folder, ["svg", "pdf", "png"])
    return folder
