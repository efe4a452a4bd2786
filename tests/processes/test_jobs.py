"""A study done in one piece, in pieces and by several processes; and what becomes of runs that
fail: always the same study.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from medtransfer.config.study_config import load_config
from medtransfer.errors import ConfigError, StudyError
from medtransfer.progress import Reporter
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study import pool as scheduler
from medtransfer.study import worker as workers
from medtransfer.study.jobs import Job, complete, list_jobs
from medtransfer.study.refusals import refuse_settings
from medtransfer.study.share import WHOLE
from medtransfer.study.worker import Worker
from medtransfer.training.device import Engine

import fragile
from studies import invoke, prepare_study, read_table

pytestmark = pytest.mark.xdist_group("plain")


REAL = workers.run_fold


def test_two_processes_do_what_one_does(plain, tmp_path):
    result = invoke("compare", plain.config, "--output", tmp_path / "out", "--jobs", 2)
    assert result.exit_code == 0, result.output
    assert read_table(tmp_path / "out").equals(read_table(plain.out))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in plain.out.iterdir()
    }


def test_shares_of_an_array_add_up_to_the_study(plain, tmp_path):
    out = tmp_path / "out"
    first = invoke("compare", plain.config, "--output", out, "--share", "1/2")
    assert (first.exit_code, (out / "report.json").exists()) == (0, False), first.output
    assert "the same command with --report-only" in first.output
    # Of a part there is a report too; it says so.
    part = invoke("compare", plain.config, "--output", out, "--report-only")
    assert part.exit_code == 2
    assert "no fold has been trained by all 2 arms" in part.output
    # As it was written before; it goes with the next release.
    second = invoke("compare", plain.config, "--output", out, "--task", 1, "--tasks", 2)
    assert (second.exit_code, "write --share 2/2" in second.output) == (0, True), second.output
    assert invoke("compare", plain.config, "--output", out, "--report-only").exit_code == 0
    assert read_table(out).equals(read_table(plain.out))
    assert "rests on" not in (out / "report.json").read_text()


def test_wrong_options_are_refused_and_leave_nothing(plain, tmp_path):
    for options, message in (
        (
            ["--task", 2, "--tasks", 2],
            "tasks count from 0 to 1; with a Slurm array, use --array=0-1",
        ),
        (["--report-only"], "holds no study to report"),
        (
            ["learning_curve.sizes=[500]", "--share", "1/2"],
            "500 patients per class are asked for",
        ),
    ):
        result = invoke("compare", plain.config, "--output", tmp_path / "out", *options)
        assert (result.exit_code, message in result.output) == (2, True), result.output
        assert not (tmp_path / "out").exists()


def test_jobs_within_a_training_of_several_processes_are_refused(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="run them without --jobs"):
        refuse_settings(load_config(plain.config), tmp_path / "out", 2, WHOLE, report_only=False)


def test_a_run_that_fails_is_listed_and_the_others_go_on(plain, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def fail(training, reporter):
        if (training.fold.index, training.arm, training.whole) == (1, "scratch", True):
            raise StudyError("the training loss is not finite.")
        return REAL(training, reporter)

    monkeypatch.setattr(workers, "run_fold", fail)
    result = invoke("compare", plain.config, "--output", out)
    assert result.exit_code == 3, result.output
    assert "Run failed: scratch, fold 1, seed 0: the training loss is not finite." in result.output
    table = read_table(out)
    assert set(table.loc[table["size"] == 0, "fold"]) == {0}
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    assert warnings[0].startswith("This report rests on 6 of 8 runs")
    assert warnings[1] == "Run failed: scratch, fold 1, seed 0: the training loss is not finite."
    assert "1 of 2 folds are untested" in warnings[0]
    page = (out / "report.html").read_text()
    assert "rests on 6 of 8 runs" in page
    assert "1 of them were tested once" in page
    # The same command tries it again.
    monkeypatch.setattr(workers, "run_fold", REAL)
    assert invoke("compare", plain.config, "--output", out).exit_code == 0
    assert read_table(out).equals(read_table(plain.out))
    assert not (out / "failures.json").exists()


def test_where_all_fail_there_is_nothing_to_report(plain, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr(workers, "run_fold", fail)
    result = invoke("compare", plain.config, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "nothing to compare" in result.output
    assert "RuntimeError: no room" in result.output


def test_what_another_process_is_at_is_left_to_it(plain, tmp_path, monkeypatch):
    out, order = tmp_path / "out", []
    study = StudyFolder(out)
    lock = FileLock(study.lock_of(Job("imagenet", 0, 0).folder(study).path))
    (out / ".locks").mkdir(parents=True)
    lock.acquire()

    def note(training, reporter):
        order.append((training.arm, training.fold.index, training.whole))
        if len(order) == 7:  # all the others are done
            lock.release()
        return REAL(training, reporter)

    monkeypatch.setattr(workers, "run_fold", note)
    assert invoke("compare", plain.config, "--output", out).exit_code == 0
    assert order[-1] == ("imagenet", 0, True)
    assert read_table(out).equals(read_table(plain.out))


@pytest.mark.parametrize("always", [False, True])
def test_a_killed_process_takes_only_its_run_with_it(tmp_path, monkeypatch, always):
    """The jobs here are numbers, and those who do them load no torch: of the pool alone is it asked
    what it does.
    """
    monkeypatch.setattr(scheduler, "_in_worker", fragile.do)
    listed = [0, 1, 2, 3]
    outcomes = dict(
        scheduler._in_processes(
            fragile.Fragile(str(tmp_path), always), listed, 2, Reporter(quiet=True)
        )
    )
    assert set(outcomes) == set(listed)
    assert [outcomes[job] for job in listed[1:]] == ["done"] * 3
    assert (outcomes[0] == "done") is not always
    if always:
        assert "was killed, most likely for want of memory" in outcomes[0]


def test_processes_at_the_same_time_take_different_gpus(plain, tmp_path, monkeypatch):
    prepared = prepare_study(plain.config)
    engine = Engine(torch.device("cuda", 0), "bf16")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    folder, engines = StudyFolder(tmp_path), dict.fromkeys(prepared.backbones, engine)
    worker = Worker(prepared, engines, folder, tmp_path, workers=3)
    listed = list_jobs(prepared)
    held = []
    for number in range(
        5
    ):  # the first of five processes that live at the same time, the second, ...
        workers._take_gpu.cache_clear()
        assert {worker.engine_of(job).device.index for job in listed} == {number % 3}, (
            "a process keeps to one"
        )
        held.append(workers._take_gpu(folder.locks, 3)[1])
    held[1].release()  # the second has ended
    workers._take_gpu.cache_clear()
    assert {worker.engine_of(job).device.index for job in listed} == {1}
    assert {worker.engine_of(job).precision for job in listed} == {"bf16"}
    assert {replace(worker, workers=1).engine_of(job).device.index for job in listed} == {0}
    engines = dict.fromkeys(prepared.backbones, replace(engine, share=(1, 2)))
    together = Worker(prepared, engines, StudyFolder(plain.folder), plain.folder)
    assert {together.engine_of(job).device.index for job in listed} == {0}


def test_the_largest_block_that_every_arm_has_is_reported():
    def runs(*cells):
        return dict.fromkeys([Job(arm, fold, seed) for arm, fold, seed in cells])

    def found(cells):
        return {(job.fold, job.seed) for job in complete(runs(*cells), ["a", "b"])}

    whole = [(arm, fold, seed) for arm in "ab" for fold in (0, 1, 2) for seed in (0, 1)]
    assert found(whole) == {(fold, seed) for fold in (0, 1, 2) for seed in (0, 1)}
    assert found([cell for cell in whole if cell != ("b", 2, 1)]) == {
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    }
    assert found([cell for cell in whole if cell[2] == 0 or cell[1] == 0]) == {
        (0, 0),
        (1, 0),
        (2, 0),
    }
    assert found([("a", 0, 0)]) == set()
    curve = dict.fromkeys([Job("a", 0, 0, 5, 1), Job("b", 0, 0, 5, 1), Job("a", 0, 0, 5, 2)])
    assert set(complete(curve, ["a", "b"])) == {Job("a", 0, 0, 5, 1), Job("b", 0, 0, 5, 1)}
