"""A training that was killed ends as one that was not."""

from __future__ import annotations

import json

import medtransfer as mt
import pytest
import torch
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import checkpoint, loop
from medtransfer.training.settings import TrainSettings

from networks import as_if_pretrained, fit_first_fold

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    path = mt.write_phantom(folder / "images", patients=24)
    return mt.Cohort.from_csv(path, path.parent, ["malignant"])


def run(cohort, folder, **fixed):
    net = as_if_pretrained()
    plan = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), net, **fixed)
    assert plan.frozen_stages > 0
    fold = mt.split_cohort(cohort, 2).fold(0)
    section = TrainSettings(epochs=3, batch_size=max(2, len(fold.train) // 2), precision="fp32")
    return fit_first_fold(cohort, net, plan, folder, section), net


GRADUAL = {"unfreeze": "gradual", "dropout": 0.3, "norm_policy": "train", "mix": True}


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("fixed", "kills"), [(GRADUAL, [0, 3, 5]), ({"l2_sp": 0.1, "views": 0}, [3])]
)
def test_resumed_at_any_step_equals_uninterrupted(cohort, tmp_path, monkeypatch, fixed, kills):
    monkeypatch.setattr(checkpoint.Checkpoints, "due", True)
    whole, expected = run(cohort, tmp_path / "whole", **fixed)
    assert whole.summary["epochs"] == 3
    real = loop.Trainer._step
    for killed_at in kills:
        count = 0

        def step(self, batch, at=killed_at):
            nonlocal count
            if count == at:
                raise Killed
            count += 1
            return real(self, batch)

        folder = tmp_path / str(killed_at)
        monkeypatch.setattr(loop.Trainer, "_step", step)
        with pytest.raises(Killed):
            run(cohort, folder, **fixed)
        assert (folder / "unfinished.pt").exists() == (killed_at >= 1)
        monkeypatch.setattr(loop.Trainer, "_step", real)
        again, net = run(cohort, folder, **fixed)
        assert not (folder / "unfinished.pt").exists()
        state = net.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
        assert again.predictions.equals(whole.predictions)
        losses = [
            [
                json.loads(line)["tune_loss"]
                for line in (f / "metrics.jsonl").read_text().splitlines()
            ]
            for f in (folder, whole.folder)
        ]
        assert losses[0] == losses[1]
        assert len(losses[0]) == 4


def test_what_belongs_to_another_training_is_not_taken_up(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoints, "due", True)
    monkeypatch.setattr(checkpoint.Checkpoints, "clear", lambda self: None)
    first, _ = run(cohort, tmp_path / "a")
    assert (tmp_path / "a" / "unfinished.pt").is_file()
    taken = []
    real = loop.Trainer.resume
    monkeypatch.setattr(
        loop.Trainer, "resume", lambda self, c: taken.append(real(self, c)) or taken[-1]
    )
    run(cohort, tmp_path / "a", frozen_stages=3)
    assert taken[-1] is None
    (tmp_path / "a" / "unfinished.pt").write_bytes(b"half a file")
    second, _ = run(cohort, tmp_path / "a")
    assert taken[-1] is None
    assert second.predictions.equals(first.predictions)


def test_frozen_is_frozen_after_a_resume_too(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoints, "due", True)
    real, count = loop.Trainer._step, 0

    def step(self, batch):
        nonlocal count
        count += 1
        if count == 4:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(loop.Trainer, "_step", step)
    monkeypatch.setattr(loop, "_ROUNDING", -10.0)  # the last epoch is kept, however good
    with pytest.raises(Killed):
        run(cohort, tmp_path / "r", norm_policy="train")
    resumed, net = run(cohort, tmp_path / "r", norm_policy="train")
    assert resumed.summary["best_epoch"] == 3
    before = as_if_pretrained()
    plan = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), before)
    for index in range(len(net.stages)):
        start, end = before.stage_state(index), net.stage_state(index)
        same = all(torch.equal(start[name], end[name]) for name in start)
        assert same == (index < plan.frozen_stages)
