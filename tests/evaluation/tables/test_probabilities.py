from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.evaluate import evaluate
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from predicted import (
    clustered_table,
    exclusive_classes,
)

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_log_loss_of_one_label_is_scikit_learns():
    table, truth, p = exclusive_classes()
    entry = evaluate(table, bootstrap=100).to_dict()["labels"]["benign"]["arms"]["a"]
    assert entry["log_loss"]["estimate"] == pytest.approx(log_loss(truth == 0, p[:, 0]), abs=1e-9)


def test_probabilities_near_zero_are_ranked_as_given():
    """As scikit-learn ranks them, down to the smallest double; the log-loss is that of the values
    as given.
    """
    rng = np.random.default_rng(0)
    target = np.r_[np.zeros(40), np.ones(20)].astype(int)
    for low in (-19.0, -300.0, -700.0):
        p = np.exp(np.where(target == 1, low + 3, low) + rng.normal(0, 1.0, 60))
        frame = pd.DataFrame(
            {"patient": [f"p{i}" for i in range(60)], "target": target, "probability": p}
        )
        arm = evaluate(frame, bootstrap=100).to_dict()["arms"]["model"]
        assert arm["auc"]["estimate"] == pytest.approx(roc_auc_score(target, p), abs=1e-12)
        assert arm["average_precision"]["estimate"] == pytest.approx(
            average_precision_score(target, p), abs=1e-12
        )
        loss = -np.mean(np.where(target == 1, np.log(p), np.log1p(-p)))
        assert arm["log_loss"]["estimate"] == pytest.approx(loss, rel=1e-9)


def test_certain_probabilities_stay_beyond_all_others_and_are_counted():
    frame = pd.DataFrame(
        {
            "patient": list("abcdef"),
            "target": [0, 0, 0, 1, 1, 1],
            "probability": [0.0, 1e-300, 0.3, 0.2, 1 - 1e-16, 1.0],
        }
    )
    report = evaluate(frame, bootstrap=100)
    assert report.to_dict()["arms"]["model"]["auc"]["estimate"] == pytest.approx(8 / 9)
    assert any(
        text.startswith("2 probabilities are exactly 0 or 1")
        for text in report.to_dict()["warnings"]
    )


@pytest.mark.parametrize("odd", [1 + 5e-7, -5e-7, np.float32(1.0000001)])
def test_rounding_to_single_precision_is_tolerated_and_counted(odd):
    frame = pd.DataFrame(
        {
            "patient": list("abcd"),
            "target": [0, 1, 0, 1],
            "probability": [0.2, 0.9, 0.4, float(odd)],
        }
    )
    assert any(
        "by no more than single precision" in text
        for text in evaluate(frame, bootstrap=100).to_dict()["warnings"]
    )
    with pytest.raises(PredictionsError, match="outside 0 to 1"):
        evaluate(frame.assign(probability=[0.2, 0.9, 0.4, 1.001]), bootstrap=100)


def test_a_logit_may_be_as_far_from_its_probability_as_the_digits_written_explain(tmp_path):
    z = np.array([-2.0, -0.3, 0.4, 1.7])
    p = 1 / (1 + np.exp(-z))
    rows = "".join(
        f"{n},{t},{q:.2f},{w:.6f}\n" for n, t, q, w in zip("abcd", [0, 1, 0, 1], p, z, strict=True)
    )
    (tmp_path / "p.csv").write_text("patient,target,probability,logit\n" + rows)
    report = evaluate(tmp_path / "p.csv", bootstrap=100).to_dict()
    assert report["arms"]["model"]["log_loss"]["estimate"] == pytest.approx(
        np.mean(np.logaddexp(0, np.where([0, 1, 0, 1], -z, z))), abs=1e-5
    )
    (tmp_path / "q.csv").write_text(
        "patient,target,probability,logit\n" + rows.replace("0.12", "0.22")
    )
    with pytest.raises(PredictionsError, match="disagree"):
        evaluate(tmp_path / "q.csv", bootstrap=100)


def test_scores_of_any_scale_are_ranked_and_nothing_else_is_said():
    """Readers on 1 to 5 beside a model with probabilities: AUC as scikit-learn's, and no
    calibration of what is no probability.
    """
    rng = np.random.default_rng(0)
    target = (rng.uniform(size=80) < 0.4).astype(int)
    base = np.clip(0.5 + 0.3 * (target - 0.5) + rng.normal(0, 0.2, 80), 0.01, 0.99)
    reader = np.clip(np.round(1 + 4 * base), 1, 5)
    people = [f"p{i}" for i in range(80)]
    frame = pd.concat(
        [
            pd.DataFrame({"arm": "Reader", "patient": people, "target": target, "score": reader}),
            pd.DataFrame(
                {"arm": "model", "patient": people, "target": target, "probability": base}
            ),
        ]
    )
    report = evaluate(frame, bootstrap=100)
    arms = report.to_dict()["arms"]
    assert arms["Reader"]["auc"]["estimate"] == pytest.approx(roc_auc_score(target, reader))
    assert arms["Reader"]["average_precision"]["estimate"] == pytest.approx(
        average_precision_score(target, reader)
    )
    for metric in ("brier", "log_loss", "ece"):
        assert arms["Reader"][metric]["estimate"] is None
        assert "no probability" in arms["Reader"][metric]["reason"]
        assert arms["model"][metric]["estimate"] is not None
    assert arms["Reader"]["calibration"]["slope"]["estimate"] is None
    assert arms["Reader"]["operating_points"] == []
    delta = report.to_dict()["comparisons"][0]
    assert delta["delta_auc"]["low"] is not None
    assert delta["delta_brier"]["estimate"] is None
    assert "Reader gives scores, not probabilities" in str(report)
    assert "brier" not in set(report.to_frame().query("arm == 'Reader'")["metric"])
    percent = frame.assign(probability=100 * frame["probability"])
    with pytest.raises(PredictionsError, match="are they per cent"):
        evaluate(percent, bootstrap=100)


def test_scores_of_patients_with_several_images_and_several_labels():
    frame = clustered_table(3, images=2, column="score")
    assert (
        evaluate(frame, bootstrap=100, unit="patient").to_dict()["arms"]["a"]["auc"]["estimate"]
        is not None
    )
    several = pd.concat([frame.assign(label="x"), frame.assign(label="y", score=-frame["score"])])
    arm = evaluate(several, bootstrap=100).to_dict()["arms"]["a"]
    assert arm["auc"]["estimate"] is not None
    assert arm["brier"]["estimate"] is None
