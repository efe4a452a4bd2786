from __future__ import annotations

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import CohortError
from scipy.special import expit
from sklearn.linear_model import LogisticRegression


def test_weights_are_the_ratio_of_classes_within_bounds():
    targets = np.array([[1, 1]] + [[0, 1]] * 3 + [[0, 0]] * 0, float)
    targets = np.vstack([targets, [[0, 0]]])
    task = mt.Classification(("a", "b")).fitted(targets)
    assert task.positive_weights == (4.0, 0.25)
    rare = np.zeros((100, 1))
    rare[0] = 1
    assert mt.Classification(("a",)).fitted(rare).positive_weights == (10.0,)
    with pytest.raises(
        CohortError, match="label a: the training part has 0 positive and 5 negative"
    ):
        mt.Classification(("a",)).fitted(np.zeros((5, 1)))


def test_loss_of_a_hand_worked_case():
    task = mt.Classification(("a",), (3.0,), (2.0,))
    logits = torch.zeros(2, 1, requires_grad=True)
    loss = task.loss(logits, torch.tensor([[1.0], [0.0]]))["loss"]
    assert loss.item() == pytest.approx(
        np.log(2)
    )  # both cost log 2, and the weights average to their mean
    loss.backward()
    assert logits.grad.flatten().tolist() == pytest.approx([-0.5 * 3 / 4, 0.5 * 1 / 4])


def test_correction_gives_back_the_probabilities_of_the_cohort():
    """A weighted fit is calibrated for another prevalence; less log w it equals the unweighted
    fit.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40_000, 1))
    y = (rng.random(40_000) < expit(1.5 * x[:, 0] - 2)).astype(int)
    task = mt.Classification(("a",)).fitted(y[:, None])
    weight = task.positive_weights[0]
    assert weight > 3
    fitted = LogisticRegression(C=np.inf, class_weight={0: 1, 1: weight}).fit(x, y)
    logits = fitted.decision_function(x)[:, None]
    assert expit(logits).mean() > 1.8 * y.mean()
    assert expit(task.correct(logits)).mean() == pytest.approx(y.mean(), rel=0.03)


def test_small_batches_do_not_bias_the_fit():
    """Minibatches of a rare class: the corrected intercept is that of the cohort."""
    rng = np.random.default_rng(1)
    y = (rng.random(20_000) < 0.09).astype(np.float32)[:, None]
    task = mt.Classification(("a",)).fitted(y)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([bias], lr=0.05)
    trace = []
    for step in range(3000):
        batch = torch.from_numpy(y[rng.integers(0, len(y), 16)])
        optimiser.zero_grad()
        task.loss(bias.expand(16, 1), batch)["loss"].backward()
        optimiser.step()
        if step > 1000:
            trace.append(bias.item())
    probability = expit(task.correct(np.array([[np.mean(trace)]])))
    assert probability[0, 0] == pytest.approx(0.09, abs=0.012)


def test_rows_are_one_per_image_and_label():
    task = mt.Classification(("a", "b"))
    rows = task.decode(
        np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([[0, 1], [1, 0]]), ["i", "j"], ["p", "q"]
    )
    assert rows["image"].tolist() == ["i", "i", "j", "j"]
    assert rows["label"].tolist() == ["a", "b", "a", "b"]
    assert rows["target"].tolist() == [0, 1, 1, 0]
    assert np.allclose(rows["probability"], expit(rows["logit"]))
