from __future__ import annotations

import pytest
from medtransfer.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_controls_in_a_name_do_not_turn_the_numbers_around(scores):
    report = evaluate(scores({"a\u202etxt": 1.5, "نموذج": 0.3}), bootstrap=100).to_dict()
    assert list(report["arms"]) == ["a[U+202E]txt", "نموذج"]
    verdict = report["comparisons"][0]["verdict"]
    assert "\u202e" not in verdict
    assert "\u2068نموذج\u2069" in verdict
