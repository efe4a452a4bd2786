from __future__ import annotations

from medtransfer.report.checklist import AUTHORS, fill_checklists


def fill(report, gallery=False):
    lists = fill_checklists(report, {}, {}, {}, {}, gallery)
    return {name: {row["item"]: row["text"] for row in rows} for name, rows in lists.items()}


def test_what_was_measured_is_filled_in_and_the_rest_left_to_the_authors(report_of_two):
    lists = fill(report_of_two.data)
    assert list(lists) == ["TRIPOD+AI 2024", "CLAIM 2024"]
    tripod, claim = lists.values()
    auc = report_of_two.data["arms"]["imagenet"]["auc"]
    assert f"imagenet: AUC {auc['estimate']:.3f}" in tripod["23a"] == claim["37-38"]
    assert "platt" in tripod["12f"]
    for item in ("1", "14", "17", "23b", "16"):  # no subgroups, no second cohort
        assert tripod[item] == AUTHORS, item
    assert claim["33"] == AUTHORS


def test_of_foreign_predictions_nobody_says_that_they_are_internal(report_of_two):
    assert fill(report_of_two.data)["CLAIM 2024"]["32"] == AUTHORS


def test_failures_are_said_to_be_shown_where_they_are(report_of_two):
    assert fill(report_of_two.data)["CLAIM 2024"]["39"] == AUTHORS
    assert "section Failures" in fill(report_of_two.data, gallery=True)["CLAIM 2024"]["39"]


def test_both_lists_are_on_the_page(two_arms):
    page = (two_arms / "report.html").read_text(encoding="utf-8")
    for text in ("TRIPOD+AI 2024", "CLAIM 2024", AUTHORS):
        assert text in page
