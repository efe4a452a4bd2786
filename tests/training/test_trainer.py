"""What may go wrong in the middle of a training, and what it leaves."""

from __future__ import annotations

import json

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import StudyError
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.progress import Reporter
from medtransfer.training import (
    checkpoint,
    loop,
    predicting,
    trainer,
)
from medtransfer.training.settings import TrainSettings

from networks import SMALL, as_if_pretrained, fit_first_fold


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
    section = TrainSettings(epochs=epochs, batch_size=8, precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medtransfer.study.run.Reporter", lambda _quiet: heard)
        run = fit_first_fold(cohort, net, plan, folder, section)
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
