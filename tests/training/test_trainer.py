"""What may go wrong in the middle of a training, and what it leaves."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from types import SimpleNamespace

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import ConfigError, StudyError
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.progress import Reporter
from medtransfer.training import (
    checkpoint,
    interruption,
    loop,
    predicting,
    telemetry,
    tracking,
    trainer,
)
from medtransfer.training.device import Engine, keep_freed_memory, threads_of, use_threads
from medtransfer.training.interruption import asked, finishing_steps
from medtransfer.training.settings import TrainSettings

from forks import PROCESSES
from networks import SMALL, as_if_pretrained


class Heard(Reporter):
    """Keeps what is said."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def cohort(manifest):
    path = manifest(patients=16, views=2)
    return mt.Cohort.from_csv(path, path.parent, ["malignant"])


def train(cohort, folder, scratch=False, epochs=3, **fixed):
    net, heard = mt.load_backbone(SMALL) if scratch else as_if_pretrained(), Heard()
    plan = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), net, **fixed)
    fold = mt.split_cohort(cohort, 2).fold(0)
    section = TrainSettings(epochs=epochs, batch_size=8, precision="fp32")
    run = mt.fit(
        cohort,
        fold,
        mt.Classification(cohort.labels),
        net,
        plan,
        folder,
        size=32,
        train=section,
        reporter=heard,
    )
    return run, net, heard.lines


def test_out_of_memory_halves_the_batch_and_keeps_the_step(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_ROUNDING", -10.0)  # the last epoch is kept, however good
    fixed = {"norm_policy": "eval", "l2_sp": 0.01, "views": 0}
    whole, _, quiet = train(cohort, tmp_path / "whole", **fixed)
    real = predicting.Network.forward

    def forward(self, features, present):
        if self.training and len(present) > 3:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 9 bytes."
            )
        return real(self, features, present)

    monkeypatch.setattr(predicting.Network, "forward", forward)
    halved, _, lines = train(cohort, tmp_path / "halved", **fixed)
    assert quiet == []
    assert [line.split(": ", 1)[1] for line in lines] == [
        (
            "out of memory with 8 images at once: from here on 4 at a time, 2 times for each "
            "step, so "
            "that the batch stays as it is"
        ),
        (
            "out of memory with 8 images at once: from here on 2 at a time, 4 times for each "
            "step, so "
            "that the batch stays as it is"
        ),
    ]
    assert np.allclose(halved.predictions["logit"], whole.predictions["logit"], atol=1e-3)
    assert not halved.predictions["logit"].equals(whole.predictions["logit"])

    def never(self, features, present):
        if self.training:
            raise torch.OutOfMemoryError("no memory")
        return real(self, features, present)

    monkeypatch.setattr(predicting.Network, "forward", never)
    with pytest.raises(
        StudyError,
        match=r"out of memory with a single image at a time \(no memory\). Lower image.size",
    ):
        train(cohort, tmp_path / "never", **fixed)


def test_other_errors_are_not_taken_for_want_of_memory(cohort, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(trainer.Trainer, "_backward", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(cohort, tmp_path / "r")


def diverge(monkeypatch, from_step):
    real, steps = mt.Classification.loss, [0]

    def loss(self, logits, targets):
        steps[0] += 1
        found = real(self, logits, targets)
        return {"loss": found["loss"] * float("nan")} if steps[0] > from_step else found

    monkeypatch.setattr(mt.Classification, "loss", loss)


def test_where_the_loss_is_not_finite_the_last_good_weights_stay(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_ROUNDING", -10.0)
    monkeypatch.setattr(trainer, "_LOOK", 1)
    diverge(monkeypatch, 1)  # one step is an epoch here
    run, _, lines = train(cohort, tmp_path / "r", epochs=4)
    assert run.summary["diverged"]
    assert (run.summary["best_epoch"], run.summary["epochs"], run.summary["stopped_early"]) == (
        1,
        1,
        False,
    )
    assert "the loss is not finite from epoch 2 on; the weights of epoch 1 are kept" in lines[0]
    assert np.isfinite(run.predictions["logit"]).all()


def test_without_good_weights_it_is_an_error(cohort, tmp_path, monkeypatch):
    diverge(monkeypatch, 0)
    with pytest.raises(StudyError, match="the training loss is not finite. Lower plan.backbone_lr"):
        train(cohort, tmp_path / "r", scratch=True)


def test_a_state_that_cannot_be_kept_is_told_and_does_not_stop_the_training(
    cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint.Checkpoints, "due", True)

    def full(path, _):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_aside", full)
    monkeypatch.setattr(
        "medtransfer.study.run.save_weights", lambda *_: None
    )  # written to the same full disk
    run, _, lines = train(cohort, tmp_path / "r")
    assert run.summary["epochs"] == 3
    assert (
        "the state of this training cannot be kept (No space left on device); interrupted, it "
        "would begin again" in lines[0]
    )


def test_checkpoints_wait_longer_where_they_take_longer(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    kept = checkpoint.Checkpoints(tmp_path / "state.pt", "key", every=30.0)
    now[0] = 29.0
    assert not kept.due
    now[0] = 30.0
    assert kept.due

    def slow(*_):
        now[0] += 3.0

    monkeypatch.setattr(checkpoint, "write_aside", slow)
    kept.save({"a": 1})
    now[0] = 33.0 + 59.0
    assert not kept.due
    now[0] = 33.0 + 60.0
    assert kept.due
    silent = checkpoint.Checkpoints(tmp_path / "none.pt", "key", writes=False)
    assert silent.save({"a": 1}) == ""
    assert not (tmp_path / "none.pt").exists()


def test_every_epoch_tells_what_it_took(cohort, tmp_path):
    run, _, _ = train(cohort, tmp_path / "r")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        assert row["images_per_second"] > 0
        assert 0 <= row["waiting"] < 1
        assert 0.05 < row["memory_gb"] < 100
    assert run.summary["engine"]["precision"] == "fp32"
    assert run.summary["wall_seconds"] > run.summary["seconds"] > 0
    assert run.summary["joules"] is None or run.summary["joules"] > 0


def test_energy_is_the_difference_of_the_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, "_COUNTERS", tmp_path)
    meter = telemetry.EnergyMeter(torch.device("cpu"))
    assert meter.joules() is None
    for number, value in ((0, 5_000_000), (1, 9_000_000)):
        (tmp_path / f"intel-rapl:{number}").mkdir()
        (tmp_path / f"intel-rapl:{number}" / "energy_uj").write_text(str(value))
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of a package, counted with it
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("1")
    meter = telemetry.EnergyMeter(torch.device("cpu"))
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7500000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("100")  # ran over
    assert meter.joules() == 2.5


@pytest.mark.parametrize("track", ["tensorboard", "mlflow"])
def test_curves_go_where_they_are_asked_for(tmp_path, monkeypatch, track):
    pytest.importorskip(track)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    with tracking.tracking(track, "arm, fold 0, seed 0", tmp_path) as log:
        log({"tune_loss": 0.7}, 0)
        log({"tune_loss": 0.4}, 1)
    if track == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [(e.step, round(e.value, 4)) for e in events.Scalars("tune_loss")] == [
            (0, 0.7),
            (1, 0.4),
        ]
    else:
        import mlflow

        runs = mlflow.search_runs(experiment_names=["medtransfer"])
        assert runs["metrics.tune_loss"].tolist() == [0.4]
        assert runs["tags.mlflow.runName"].tolist() == ["arm, fold 0, seed 0"]


def test_a_tracker_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    tracking.refuse_missing(None)
    with pytest.raises(
        ConfigError, match=r'mlflow is not installed: pip install "medtransfer\[track\]"'
    ):
        tracking.refuse_missing("mlflow")


def test_a_second_signal_acts_at_once(monkeypatch):
    monkeypatch.setattr(interruption, "_SAME", 0.05)
    called = []

    def work():
        with finishing_steps(lambda: called.append("told")):
            assert not asked()
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the same one, sent twice
            assert asked()
            called.append("finished the step")
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            called.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert called == ["told", "finished the step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_end_can_be_asked_for_by_a_note(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    try:
        monkeypatch.setattr(interruption, "_note", None)
        interruption.obey_note(tmp_path / "end")
        with finishing_steps():
            assert not asked()
            (tmp_path / "end").touch()
            assert asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_are_divided_and_the_environment_is_obeyed(monkeypatch):
    monkeypatch.setattr(
        "medtransfer.training.device.joblib.cpu_count", lambda only_physical_cores: 8
    )
    assert [threads_of(jobs) for jobs in (1, 3, 8, 20)] == [8, 2, 1, 1]
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    use_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    use_threads(2)
    assert chosen == [4]


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    keep = keep_freed_memory.__wrapped__  # what is called once
    told = []
    library = SimpleNamespace(mallopt=lambda name, value: told.append((name, value)))
    monkeypatch.setattr("medtransfer.training.device.sys.platform", "linux")
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.setattr("medtransfer.training.device.ctypes.CDLL", lambda _: library)
    keep()
    assert told == [(-4, 0), (-1, 2**31 - 1)]  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    monkeypatch.setattr("medtransfer.training.device.ctypes.CDLL", lambda _: SimpleNamespace())
    keep()  # another C library
    monkeypatch.setattr("medtransfer.training.device.ctypes.CDLL", lambda _: library)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    keep()
    monkeypatch.delenv("MALLOC_MMAP_MAX_")
    monkeypatch.setattr("medtransfer.training.device.sys.platform", "darwin")
    keep()
    assert len(told) == 2


def count_new_pages(answer):
    """Answers how many pages of memory the system has to give while tensors are made and freed
    again and again.
    """
    Engine(torch.device("cpu"), "fp32").place(torch.nn.Linear(1, 1))
    torch.ones(2**24).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24).sum()
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.process
@pytest.mark.xdist_group("plain")
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="of glibc"
)
def test_every_process_that_computes_keeps_freed_memory():
    """Large blocks come from the heap then, which grows, and not from pages mapped for each."""
    answer = PROCESSES.SimpleQueue()
    process = PROCESSES.Process(target=count_new_pages, args=(answer,))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert (
        answer.get() < 20_000
    )  # of 81,920 pages; one block more may be asked for, as the process was forked


def test_one_process_is_not_distributed():
    engine = Engine(torch.device("cpu"), "fp32")
    layer = torch.nn.Linear(1, 1)
    assert engine.distribute(layer) is layer
    assert engine.any(True)
    assert not engine.any(False)
    assert engine.first
