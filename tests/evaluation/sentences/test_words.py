from __future__ import annotations

import pytest
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.sentences.words import (
    capitalise,
    explain_interval,
    format_bounds,
    format_interval,
    format_p,
    format_share,
)

pytestmark = pytest.mark.usefixtures("coarse_smooth_ece")


def test_controls_in_a_name_do_not_turn_the_numbers_around(scores):
    report = evaluate(scores({"a\u202etxt": 1.5, "نموذج": 0.3}), bootstrap=100).to_dict()
    assert list(report["arms"]) == ["a[U+202E]txt", "نموذج"]
    verdict = report["comparisons"][0]["verdict"]
    assert "\u202e" not in verdict
    assert "\u2068نموذج\u2069" in verdict


def test_what_cannot_be_estimated_is_said():
    assert (
        explain_interval({"estimate": None, "low": None, "high": None, "reason": "separated"})
        == "separated"
    )
    assert (
        explain_interval({"estimate": 0.5, "low": None, "high": None})
        == "0.500 (no interval: not estimable)"
    )
    assert explain_interval({"estimate": 0.5, "low": 0.4, "high": 0.6}) == "0.500 (0.400 to 0.600)"


def test_numbers_stand_in_a_sentence_in_one_way():
    interval = {"estimate": 0.912, "low": 0.88, "high": 0.94}
    assert format_interval(interval) == "0.912 (0.880 to 0.940)"
    assert format_bounds(interval, "+.2f") == "+0.88 to +0.94"
    assert format_share(interval) == "91 % (88 to 94)"
    assert format_interval({**interval, "low": None}) == "0.912"
    assert format_share({"estimate": None, "low": None, "reason": "no lesion"}) == "no lesion"
    assert [format_p(p) for p in (None, 0.0004, 0.0126)] == [
        "p not estimable",
        "p < 0.001",
        "p = 0.013",
    ]
    assert capitalise("aUC of b") == "AUC of b"
