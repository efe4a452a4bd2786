from __future__ import annotations

import re

from medtransfer.report.methods import write_methods


def cited_numbers(text):
    groups = re.findall(r"\[(\d+(?:, \d+)*)\]", text)
    return {int(number) for group in groups for number in group.split(", ")}


def test_every_reference_is_cited_and_every_citation_listed(report_of_two):
    paragraphs, references = write_methods(report_of_two.data, {}, {}, {}, {})
    assert cited_numbers(" ".join(paragraphs)) == set(range(1, len(references) + 1))
    assert any(reference.startswith("DeLong ER") for reference in references)


def test_the_methods_can_be_pasted_from_the_page(two_arms):
    page = (two_arms / "report.html").read_text(encoding="utf-8")
    methods = page.split("Methods, to paste")[1].split("<details>")[0]
    listed = page.split("<summary>References</summary>")[1].split("</ol>")[0].count("<li>")
    assert cited_numbers(methods) == set(range(1, listed + 1))
    assert "DeLong ER" in page


def test_nothing_is_said_of_the_training_of_foreign_predictions(report_of_two):
    paragraphs, _ = write_methods(report_of_two.data, {}, {}, {}, {})
    assert "Models were trained with medtransfer" not in " ".join(paragraphs)
