"""The folder of a training is believed only with its digests."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from medtransfer.errors import FileError
from medtransfer.records.run import finished_run, read_run
from medtransfer.records.run_folder import RunFolder

from damage import damage

pytestmark = pytest.mark.xdist_group("models")
COPIES = 600


@pytest.fixture(scope="module")
def finished(studies):
    return studies.finished(studies.cohort()).out / "runs" / "scratch" / "fold-0" / "seed-0"


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_a_run_is_read_as_it_was_written(folder):
    run = read_run(folder)
    assert (run.arm, run.fold, run.seed) == ("scratch", 0, 0)
    assert json.loads(folder.summary.read_text())["format"] == 1
    assert "key" not in run.summary
    assert finished_run(folder) is not None


def test_a_run_of_another_key_or_without_an_end_is_not_finished(folder):
    key = json.loads(folder.summary.read_text())["key"]
    assert finished_run(folder, key) is not None
    assert finished_run(folder, "0" * 64) is None
    folder.summary.unlink()
    messages = []
    assert finished_run(folder, key, messages.append) is None
    assert messages == []


@pytest.mark.parametrize("name", ["run.json", "predictions.csv", "metrics.jsonl"])
def test_no_damaged_file_is_taken_and_each_is_named(folder, name):
    path = folder.path / name
    content, rng, messages = path.read_bytes(), np.random.default_rng(1), []
    for number in range(COPIES):
        path.write_bytes(damage(content, rng))
        assert finished_run(folder, say=messages.append) is None
        assert len(messages) == number + 1
        assert name in messages[-1]
    path.write_bytes(content)
    assert finished_run(folder) is not None


def test_a_summary_without_a_format_is_read_and_one_of_a_later_format_is_refused(folder):
    """Studies of the version before had neither format nor digests."""
    summary = json.loads(folder.summary.read_text())
    later = {**summary, "format": 2}
    before = {k: v for k, v in summary.items() if k not in {"format", "digest", "files"}}
    folder.summary.write_text(json.dumps(before))
    assert read_run(folder).arm == "scratch"
    folder.summary.write_text(json.dumps(later))
    with pytest.raises(FileError, match="is of format 2"):
        read_run(folder)
    for content in ("[]", "null", "3", "{", '{"key": "x"}'):
        folder.summary.write_text(content)
        messages = []
        assert finished_run(folder, say=messages.append) is None
        assert "run.json" in messages[0]
