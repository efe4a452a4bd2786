"""A study done in one piece, in pieces, by several processes, and killed on the way: always the same study."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import medtransfer as mt
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from medtransfer import jobs, scheduler
from medtransfer.cli import app
from medtransfer.errors import StudyError
from medtransfer.jobs import Job, complete
from medtransfer.progress import Reporter
from medtransfer.record import Run
from typer.testing import CliRunner

LITE = "tf_efficientnet_lite0"
KEYS = ["arm", "seed", "fold", "part", "image"]
QUIET = Reporter(quiet=True)


def write_config(folder: Path, **changes) -> Path:
    values = {
        "cohort": {"manifest": str(folder / "cohort" / "manifest.csv"), "root": str(folder / "cohort"), "labels": ["malignant"]},
        "arms": {"imagenet": {"backbone": LITE, "weights": "imagenet"}, "scratch": {"backbone": LITE, "weights": "none"}},
        "image": {"size": 32},
        "protocol": {"folds": 2, "seeds": [0]},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", "layout": "channels_last"},
        "learning_curve": [5],
        "evaluate": {"bootstrap": 100},
        **changes,
    }
    values["learning_curve"] = {"sizes": values["learning_curve"], "episodes": 1}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder, configuration and predictions of a study that nothing happened to."""
    folder = tmp_path_factory.mktemp("plain")
    mt.write_phantom(folder / "cohort", 30, seed=2)
    config = write_config(folder)
    done = invoke("compare", config, "--output", folder / "out")
    assert done.exit_code == 0, done.output
    return folder, config, table_of(folder / "out")


def arguments(config, output, *more):
    return [sys.executable, "-m", "medtransfer", "compare", str(config), "--output", str(output), *more]


def table_of(output) -> pd.DataFrame:
    return pd.read_csv(output / "predictions.csv").sort_values([*KEYS, "size"]).reset_index(drop=True)


def invoke(*parts):
    return CliRunner().invoke(app, [str(part) for part in parts])


def test_two_processes_do_what_one_does(plain, tmp_path):
    folder, config, expected = plain
    result = invoke("compare", config, "--output", tmp_path / "out", "--jobs", 2)
    assert result.exit_code == 0, result.output
    assert table_of(tmp_path / "out").equals(expected)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (folder / "out").iterdir()}


def test_tasks_of_an_array_add_up_to_the_study(plain, tmp_path):
    _, config, expected = plain
    out = tmp_path / "out"
    first = invoke("compare", config, "--output", out, "--task", 0, "--tasks", 2)
    assert (first.exit_code, (out / "report.json").exists()) == (0, False), first.output
    assert "the same command with --report-only" in first.output
    # Of a part there is a report too; it says so.
    part = invoke("compare", config, "--output", out, "--report-only")
    assert part.exit_code == 2
    assert "no fold has been trained by all 2 arms" in part.output
    assert invoke("compare", config, "--output", out, "--task", 1, "--tasks", 2).exit_code == 0
    assert invoke("compare", config, "--output", out, "--report-only").exit_code == 0
    assert table_of(out).equals(expected)
    assert "rests on" not in (out / "report.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", 2, "--tasks", 2], "tasks count from 0 to 1; with a Slurm array, use --array=0-1"),
        (["--report-only"], "holds no study to report"),
    ],
)
def test_wrong_options_are_told_and_leave_nothing(plain, tmp_path, options, message):
    result = invoke("compare", plain[1], "--output", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_tasks_that_cannot_begin_leave_nothing(plain, tmp_path):
    result = invoke("compare", plain[1], "learning_curve.sizes=[500]", "--output", tmp_path / "out", "--task", 0, "--tasks", 2)
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_is_listed_and_the_others_go_on(plain, tmp_path, monkeypatch):
    _, config, expected = plain
    real, out = jobs.run_fold, tmp_path / "out"

    def fail(images, fold, *rest, **more):
        if fold.index == 1 and rest[5] == "scratch" and more["whole"]:
            raise StudyError("the training loss is not finite.")
        return real(images, fold, *rest, **more)

    monkeypatch.setattr(jobs, "run_fold", fail)
    result = invoke("compare", config, "--output", out)
    assert result.exit_code == 3, result.output
    assert "Run failed: scratch, fold 1, seed 0: the training loss is not finite." in result.output
    table = table_of(out)
    assert set(table.loc[table["size"] == 0, "fold"]) == {0}
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    assert warnings[0].startswith("This report rests on 6 of 8 runs")
    assert warnings[1] == "Run failed: scratch, fold 1, seed 0: the training loss is not finite."
    assert "1 of 2 folds are untested" in warnings[0]
    page = (out / "report.html").read_text()
    assert "rests on 6 of 8 runs" in page
    assert "1 of them were tested once" in page
    # The same command tries it again.
    monkeypatch.setattr(jobs, "run_fold", real)
    assert invoke("compare", config, "--output", out).exit_code == 0
    assert table_of(out).equals(expected)
    assert not (out / "failures.json").exists()


def test_where_all_fail_there_is_nothing_to_report(plain, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(jobs, "run_fold", fail)
    result = invoke("compare", plain[1], "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "nothing to compare" in result.output
    assert "RuntimeError: no room" in result.output


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(plain, tmp_path):
    _, config, expected = plain
    out, rng, killed = tmp_path / "out", random.Random(0), 0
    while killed < 2:
        process = subprocess.Popen(arguments(config, out, "--quiet"), stdout=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(6, 14))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed
    assert subprocess.run(arguments(config, out), capture_output=True, check=False).returncode == 0
    assert table_of(out).equals(expected)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interrupted_study_keeps_its_state_and_says_so(plain, tmp_path, number, workers):
    config = write_config(
        tmp_path, train={"epochs": 400, "batch_size": 8, "precision": "fp32"}, plan={"strategy": "lp_ft"}, learning_curve=[]
    )
    values = yaml.safe_load(config.read_text())
    values["cohort"] = yaml.safe_load(plain[1].read_text())["cohort"]
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    process = subprocess.Popen(arguments(config, out, "--jobs", str(workers)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    begun = [out / "runs" / arm / "fold-0" / "seed-0" / "metrics.jsonl" for arm in ("scratch", "imagenet")[:workers]]
    for _ in range(600):
        time.sleep(0.1)
        if all(path.is_file() and len(path.read_text().splitlines()) > 3 for path in begun):
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "interrupted. Run the same command again" in error
    for path in begun:
        state = torch.load(path.with_name("unfinished.pt"), weights_only=True)
        assert state["progress"]["step"] >= 3
        assert state["optimizer"]["state"]


def test_what_another_process_is_at_is_left_to_it(plain, tmp_path, monkeypatch):
    _, config, expected = plain
    out, order = tmp_path / "out", []
    (out / ".locks").mkdir(parents=True)
    taken = Job("imagenet", 0, 0)
    lock = FileLock(next(iter(_locks(out, taken))))
    lock.acquire()
    real = jobs.run_fold

    def note(images, fold, *rest, **more):
        order.append((rest[5], fold.index, more["whole"]))
        if len(order) == 7:  # all the others are done
            lock.release()
        return real(images, fold, *rest, **more)

    monkeypatch.setattr(jobs, "run_fold", note)
    assert invoke("compare", config, "--output", out).exit_code == 0
    assert order[-1] == ("imagenet", 0, True)
    assert table_of(out).equals(expected)


def _locks(out, job):
    import hashlib

    yield out / ".locks" / f"{hashlib.sha256(str(job.folder(Path())).encode()).hexdigest()[:16]}.lock"


class Fragile:
    """A study whose first job kills its process, once or always."""

    def __init__(self, folder: Path, always: bool) -> None:
        self.folder, self.always = folder, always

    @property
    def note(self):
        return self.folder / "end"

    def do(self, job, reporter, wait):  # noqa: ARG002
        mark = self.folder / "killed"
        if job.fold == 0 and (self.always or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Run(self.folder, job.arm, job.fold, job.seed, pd.DataFrame())


@pytest.mark.parametrize("always", [False, True])
def test_a_killed_process_takes_only_its_run_with_it(tmp_path, always):
    listed = [Job("a", fold, 0) for fold in range(4)]
    outcomes = dict(scheduler._in_processes(Fragile(tmp_path, always), listed, 2, QUIET))
    assert set(outcomes) == set(listed)
    assert all(isinstance(outcomes[job], Run) for job in listed[1:])
    assert isinstance(outcomes[listed[0]], str if always else Run)
    if always:
        assert "was killed, most likely for want of memory" in outcomes[listed[0]]


def test_processes_at_the_same_time_take_different_gpus(plain, tmp_path, monkeypatch):
    from dataclasses import replace

    from medtransfer.config import load_config
    from medtransfer.jobs import Study, list_jobs
    from medtransfer.prepare import fixed_of, prepare
    from medtransfer.training.engine import Engine

    config = load_config(plain[1])
    prepared = prepare(config, None, None, QUIET, fixed_of(config))
    engine = Engine(torch.device("cuda", 0), "bf16")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    study = Study(prepared, dict.fromkeys(prepared.backbones, engine), tmp_path, tmp_path, workers=3)
    listed = list_jobs(prepared)
    held = []
    for number in range(5):  # the first of five processes that live at the same time, the second, ...
        jobs._take_gpu.cache_clear()
        assert {study.engine_of(job).device.index for job in listed} == {number % 3}, "a process keeps to one"
        held.append(jobs._take_gpu(study.output / ".locks", 3)[1])
    held[1].release()  # the second has ended
    jobs._take_gpu.cache_clear()
    assert {study.engine_of(job).device.index for job in listed} == {1}
    assert {study.engine_of(job).precision for job in listed} == {"bf16"}
    assert {replace(study, workers=1).engine_of(job).device.index for job in listed} == {0}
    together = Study(prepared, dict.fromkeys(prepared.backbones, replace(engine, share=(1, 2))), plain[0], plain[0])
    assert {together.engine_of(job).device.index for job in listed} == {0}


def test_the_largest_block_that_every_arm_has_is_reported():
    def runs(*cells):
        return dict.fromkeys([Job(arm, fold, seed) for arm, fold, seed in cells])

    def found(cells):
        return {(job.fold, job.seed) for job in complete(runs(*cells), ["a", "b"])}

    whole = [(arm, fold, seed) for arm in "ab" for fold in (0, 1, 2) for seed in (0, 1)]
    assert found(whole) == {(fold, seed) for fold in (0, 1, 2) for seed in (0, 1)}
    assert found([cell for cell in whole if cell != ("b", 2, 1)]) == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert found([cell for cell in whole if cell[2] == 0 or cell[1] == 0]) == {(0, 0), (1, 0), (2, 0)}
    assert found([("a", 0, 0)]) == set()
    curve = dict.fromkeys([Job("a", 0, 0, 5, 1), Job("b", 0, 0, 5, 1), Job("a", 0, 0, 5, 2)])
    assert set(complete(curve, ["a", "b"])) == {Job("a", 0, 0, 5, 1), Job("b", 0, 0, 5, 1)}
