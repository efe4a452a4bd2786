from __future__ import annotations

import pytest
from medtransfer.errors import PredictionsError
from medtransfer.evaluation.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"bootstrap": 50}, "at least 100 draws"),
        ({"unit": "lesion"}, "use auto, image, patient"),
        ({"subgroups": ["image"]}, "image is a column of the table itself"),
        ({"aggregate": "sum"}, "use auto, max, mean, noisy_or"),
        ({"recalibration": "magic"}, "use auto, temperature"),
        ({"margin": 2}, "margin is 2; it lies between 0 and 1"),
        ({"prevalences": [0.1, 1.5]}, r"prevalences\[1\] is 1.5"),
    ],
)
def test_settings_that_are_wrong_are_told(scores, choice, message):
    with pytest.raises(PredictionsError, match=message):
        evaluate(scores({"a": 1.0}), **choice)
