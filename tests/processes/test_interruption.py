"""Studies that are killed, and studies that are asked to end: always the same study in the end,
with nothing lost.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.jobs import Job
from medtransfer.training import checkpoint

from forks import command, wait_for
from studies import SETTINGS, changed, invoke, read_table, write_config

pytestmark = pytest.mark.xdist_group("plain")


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(plain, tmp_path):
    out, log, rng = tmp_path / "out", tmp_path / "log", random.Random(0)
    study = StudyFolder(out)
    lock = FileLock(study.lock_of(Job("scratch", 1, 0, 5, 1).folder(study).path))
    (out / ".locks").mkdir(parents=True)
    with lock:  # so that the study cannot end before it is killed
        for finished in (0, 2, 5):
            with command(log, "compare", plain.config, "--output", out, "--quiet") as process:
                # A moment after so many runs were finished.
                assert wait_for(
                    lambda finished=finished: len(list(out.glob("**/run.json"))) >= finished,
                    process.is_alive,
                )
                time.sleep(rng.uniform(0, 0.8))
                assert process.is_alive(), log.read_text()
    assert not (out / "report.json").exists()
    with command(log, "compare", plain.config, "--output", out) as process:
        process.join()
    assert process.exitcode == 0, log.read_text()
    assert "runs are there already" in log.read_text()
    assert read_table(out).equals(read_table(plain.out))


def steps_kept(out, arms):
    """The steps that are kept of each arm's first run, which was not finished."""
    steps = {}
    for arm in arms:
        path = out / "runs" / arm / "fold-0" / "seed-0" / "unfinished.pt"
        state = checkpoint._unpack(path.read_bytes())
        assert state["optimizer"]["state"]
        steps[arm] = state["progress"]["step"]
    return steps


def test_asked_to_end_by_either_signal_it_keeps_its_state_and_says_so(plain, tmp_path):
    """SIGTERM to a study of two workers; then SIGINT to one process that goes on with it."""
    config = write_config(
        tmp_path,
        plain.manifest,
        plan={"strategy": "lp_ft"},
        **changed(SETTINGS, train={"epochs": 4000}),
    )
    out, log, arms = tmp_path / "out", tmp_path / "log", ("scratch", "imagenet")
    curves = {arm: out / "runs" / arm / "fold-0" / "seed-0" / "metrics.jsonl" for arm in arms}

    def epochs(arm):
        return len(curves[arm].read_text().splitlines()) if curves[arm].is_file() else 0

    arguments = [
        sys.executable,
        "-m",
        "medtransfer",
        "compare",
        str(config),
        "--output",
        str(out),
        "--jobs",
        "2",
    ]
    with log.open("w") as stream, subprocess.Popen(arguments, stdout=stream, stderr=stream) as tree:
        try:
            assert wait_for(
                lambda: all(epochs(arm) > 3 for arm in arms), lambda: tree.poll() is None
            ), log.read_text()
            tree.send_signal(signal.SIGTERM)
            tree.wait(300)
        finally:
            tree.kill()
    assert tree.returncode == 130, log.read_text()
    assert "ending: the steps under way are finished and kept" in log.read_text()
    assert "interrupted. Run the same command again" in log.read_text()
    first = steps_kept(out, arms)
    assert min(first.values()) >= 3
    lines = {arm: epochs(arm) for arm in arms}
    with command(log, "compare", config, "--output", out) as process:
        # The run that is first in the list goes on.
        assert wait_for(lambda: any(epochs(arm) > lines[arm] for arm in arms), process.is_alive), (
            log.read_text()
        )
        os.kill(process.pid, signal.SIGINT)
        process.join(300)
    assert process.exitcode == 130, log.read_text()
    assert "interrupted. Run the same command again" in log.read_text()
    second = steps_kept(out, arms)
    assert sum(second[arm] > first[arm] for arm in arms) == 1, (first, second)
    assert not list(out.glob("runs/*/*/*/run.json"))


@pytest.mark.parametrize(
    "arguments", [["configs"], ["configs", "nothing"], ["evaluate", "none.csv"]]
)
def test_a_verb_leaves_the_handler_of_sigterm_as_it_was(arguments):
    """A notebook or a test that has called one can still be ended by `kill`."""

    def handler(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        invoke(*arguments)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
