"""Training until level: cycles, what is kept at their ends, and that the first of them is a
training with the budget alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import medtransfer as mt
import pandas as pd
import pytest
import torch
from medtransfer.evaluation.tables.predictions import read_predictions
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.records.run import finished_run
from medtransfer.records.run_folder import RunFolder
from medtransfer.records.study_folder import StudyFolder
from medtransfer.report.notes import list_unfinished, measure_spent, note_training
from medtransfer.training import checkpoint, loop
from medtransfer.training.loop import _choose, _improving, has_levelled
from medtransfer.training.settings import TrainSettings
from medtransfer.training.trainer import Progress
from torch import nn

from networks import SMALL, as_if_pretrained, fit_first_fold

EPOCHS = 2


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    path = mt.write_phantom(tmp_path_factory.mktemp("phantom") / "images", patients=24)
    return mt.Cohort.from_csv(path, path.parent, ["malignant"])


def train(cohort, folder, level=True, net=None, patience=None, **fixed):
    net = net or mt.load_backbone(SMALL, seed=1)
    plan = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), net, **fixed)
    fold = mt.split_cohort(cohort, 2).fold(0)
    section = TrainSettings(
        epochs=EPOCHS, batch_size=max(2, len(fold.train) // 2), precision="fp32", patience=patience
    )
    return fit_first_fold(cohort, net, replace(plan, level=level), folder, section), net


def losses(run):
    return [
        json.loads(line)["tune_loss"]
        for line in (run.folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_the_first_cycle_is_the_training_with_the_budget(cohort, tmp_path):
    """To the bit: its losses, the epoch that is kept and what it predicts."""
    level, _ = train(cohort, tmp_path / "level")
    alone, _ = train(cohort, tmp_path / "alone", level=False)
    assert alone.summary["epochs"] == alone.summary["budget_epochs"] == EPOCHS
    assert level.summary["epochs"] in {2 * EPOCHS, 4 * EPOCHS}
    assert losses(level)[: EPOCHS + 1] == losses(alone)
    assert level.summary["budget_epoch"] == alone.summary["best_epoch"]
    pd.testing.assert_frame_equal(
        level.at_budget.drop(columns="typical", errors="ignore"),
        alone.predictions.drop(columns="typical"),
    )
    assert alone.at_budget is None
    assert not (alone.folder / "at-budget").exists()
    assert alone.summary["levelled"] is None
    assert "typical" in level.predictions.columns


def test_training_ends_with_the_cycle_that_gains_nothing(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "GAIN", 1.0)  # nothing is a gain
    short, _ = train(cohort, tmp_path / "short")
    assert (short.summary["epochs"], short.summary["levelled"]) == (2 * EPOCHS, True)
    monkeypatch.setattr(loop, "GAIN", -10.0)  # everything is
    long, net = train(cohort, tmp_path / "long")
    assert (long.summary["epochs"], long.summary["levelled"]) == (4 * EPOCHS, False)
    rates = [
        json.loads(line).get("lr")
        for line in (long.folder / "metrics.jsonl").read_text().splitlines()
    ][1:]
    ends = [rates[end - 1] for end in (EPOCHS, 2 * EPOCHS, 4 * EPOCHS)]
    assert max(ends) < min(
        rate for epoch, rate in enumerate(rates, 1) if epoch not in {EPOCHS, 2 * EPOCHS, 4 * EPOCHS}
    )
    # The weights on the disk are those of the end, not of the budget.
    again = mt.load_backbone(SMALL, f"study:{long.folder}")
    assert all(
        torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items()
    )


def test_patience_is_for_one_cycle(cohort, tmp_path, monkeypatch):
    """After a warm restart nothing can be better until the rate has fallen again."""
    monkeypatch.setattr(loop, "_ROUNDING", 10.0)  # nothing is lower
    run, _ = train(cohort, tmp_path / "r", net=as_if_pretrained(), patience=1)
    assert (run.summary["epochs"], run.summary["stopped_early"], run.summary["levelled"]) == (
        2 * EPOCHS,
        False,
        True,
    )
    once, _ = train(cohort, tmp_path / "once", level=False, net=as_if_pretrained(), patience=1)
    assert (once.summary["epochs"], once.summary["stopped_early"], once.summary["levelled"]) == (
        1,
        True,
        None,
    )


def test_a_training_that_diverges_after_its_budget_keeps_what_it_had(cohort, tmp_path, monkeypatch):
    whole, _ = train(cohort, tmp_path / "whole", level=False)
    real, steps = mt.Classification.loss, [0]

    def loss(self, logits, targets):
        steps[0] += 1
        found = real(self, logits, targets)
        return {"loss": found["loss"] * float("nan")} if steps[0] > 2 * EPOCHS else found

    monkeypatch.setattr("medtransfer.training.trainer._LOOK", 1)
    monkeypatch.setattr(mt.Classification, "loss", loss)
    run, _ = train(cohort, tmp_path / "r")
    assert run.summary["diverged"]
    assert run.summary["levelled"] is False
    assert run.predictions.drop(columns="typical").equals(whole.predictions.drop(columns="typical"))
    assert run.at_budget.equals(run.predictions.drop(columns="typical"))


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[1, 4, 7, 12]])
@pytest.mark.parametrize(
    ("net", "fixed"),
    [
        (SMALL, {}),
        (
            "pretrained",
            {"unfreeze": "gradual", "dropout": 0.3, "norm_policy": "train", "mix": True},
        ),
    ],
)
def test_killed_in_any_cycle_and_resumed_it_ends_as_if_it_had_not_been(
    cohort, tmp_path, monkeypatch, net, fixed, kills
):
    monkeypatch.setattr(checkpoint.Checkpoints, "due", True)
    monkeypatch.setattr(loop, "GAIN", -10.0)

    def make():
        return as_if_pretrained() if net == "pretrained" else mt.load_backbone(net, seed=1)

    whole, expected = train(cohort, tmp_path / "whole", net=make(), **fixed)
    assert whole.summary["epochs"] == 4 * EPOCHS
    real, count = loop.Trainer._step, 0

    def step(self, batch):
        nonlocal count
        count += 1
        if count in kills:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(loop.Trainer, "_step", step)
    for _ in kills:
        with pytest.raises(Killed):
            train(cohort, tmp_path / "killed", net=make(), **fixed)
    again, found = train(cohort, tmp_path / "killed", net=make(), **fixed)
    state = found.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
    assert again.predictions.equals(whole.predictions)
    assert again.at_budget.equals(whole.at_budget)
    assert losses(again) == losses(whole)


def progress_after(history, ends):
    """What is kept of epochs with these tune losses."""
    progress = Progress([{}], [], 0, math.inf, {})
    for loss in history:
        progress.history.append({"tune_loss": loss})
        _choose(progress, loss, (nn.Linear(1, 1), nn.Linear(1, 1)), ends)
    return progress


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        ([0.50, 0.40, 0.405], 3),  # the end is as good, within 2 %
        ([0.50, 0.40, 0.42], 2),  # it is not
        ([0.50, 0.40, 0.39], 3),
        ([0.50, 0.499, 0.498, 0.60, 0.51, 0.495], 6),
        ([0.50, 0.40, 0.42, 0.41, 0.39, 0.397], 6),
    ],
)
def test_the_end_of_a_cycle_is_kept_unless_an_earlier_epoch_was_better(history, kept):
    assert progress_after(history, [3, 6, 12]).best_epoch == kept


def test_what_is_kept_at_the_budget_stays():
    progress = progress_after([0.5, 0.45, 0.44, 0.4, 0.3, 0.2], [3, 6, 12])
    assert (progress.budget_epoch, progress.best_epoch) == (3, 6)
    assert progress.ends == [0.44, 0.2]
    assert progress.at_budget is not progress.best


def test_level_is_a_gain_of_two_percent_at_most():
    assert not has_levelled([])
    assert not has_levelled([0.5])
    assert not has_levelled([0.5, 0.48])
    assert has_levelled([0.5, 0.495])
    assert has_levelled([0.5, 0.48, 0.48])
    assert has_levelled([0.0, 0.0])  # of 1 - average precision that cannot be better


def test_still_improving_is_said_of_the_last_quarter():
    def entries(*values):
        return [{"tune_loss": value} for value in values]

    assert _improving(entries(0.7, 0.6, 0.5, 0.45, 0.40), 4)
    assert not _improving(entries(0.7, 0.6, 0.5, 0.45, 0.445), 4)
    assert not _improving(entries(0.3, 0.6, 0.5, 0.45, 0.40), 4)  # the convex head was better
    assert not _improving(entries(0.7), 0)  # a probe
    assert _improving(entries(0.7, 0.6, 0.5, 0.5, 0.5, 0.45, 0.45, 0.45, 0.42), 8)


def test_a_run_without_its_predictions_at_the_budget_is_not_finished(cohort, tmp_path):
    run, _ = train(cohort, tmp_path / "r")
    (run.folder / "at-budget" / "predictions.csv").unlink()
    damage = []
    assert finished_run(RunFolder(run.folder), say=damage.append) is None
    assert "at-budget/predictions.csv: cannot be read" in damage[0]
    assert read_predictions(run.folder / "predictions.csv").equals(run.predictions)


@pytest.mark.parametrize(
    ("levelled", "improving", "epochs", "words", "unfinished"),
    [
        (
            True,
            False,
            [8, 16],
            "until level, at most for four budgets of 4 epochs: for 2, 4 of them.",
            False,
        ),
        (
            False,
            False,
            [16, 16],
            "In 2 of 2 runs it had not levelled off when four times the budget were spent.",
            True,
        ),
        (
            None,
            True,
            [4, 4],
            "In 2 of 2 runs the last quarter still lowered the tune loss by more than 2 %",
            True,
        ),
        (
            None,
            False,
            [4, 4],
            "2 runs of 4 epochs, weights kept from epochs 4, 4; 2 s of training.",
            False,
        ),
    ],
)
def test_how_training_ended_is_told(tmp_path, levelled, improving, epochs, words, unfinished):
    for fold, spent in enumerate(epochs):
        folder = tmp_path / "runs" / "a" / f"fold-{fold}" / "seed-0"
        folder.mkdir(parents=True)
        run = {
            "epochs": spent,
            "best_epoch": 4,
            "budget_epochs": 4,
            "levelled": levelled,
            "improving": improving,
            "diverged": False,
            "seconds": 1.0,
        }
        (folder / "run.json").write_text(json.dumps(run))
    (note,) = note_training(StudyFolder(tmp_path), ["a"])
    assert words in note
    assert list_unfinished(StudyFolder(tmp_path), ["a"]) == (["a"] if unfinished else [])
    (tmp_path / "runs" / "a" / "fold-9" / "seed-0").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "fold-9" / "seed-0" / "run.json").write_text(
        '{"epochs": 4}'
    )  # of an earlier version
    assert measure_spent(StudyFolder(tmp_path), ["a"]) == (
        {} if levelled is None else {"a": [spent / 4 for spent in epochs]}
    )
