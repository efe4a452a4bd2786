from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.report.build import build_report

HOSTILE = "<script>alert('x')</script>\"&$x^2$"


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value or "" for key, value in attrs if key in {"src", "href", "data", "action"}
        ]


def build(table, folder, figures=("svg",)):
    evaluate(table, bootstrap=100).save(folder / "report.json")
    return build_report(folder, figures).read_text(encoding="utf-8")


def test_the_page_is_self_contained(two_arms):
    page = (two_arms / "report.html").read_text(encoding="utf-8")
    found = Collector()
    found.feed(page)
    assert found.tags.count("img") == 4  # ROC and PR, two reliability diagrams, decisions
    assert found.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in found.links)
    assert "script" not in found.tags
    assert "http" not in re.sub(r"data:[^\"]+|http-equiv", "", page)


def test_verdict_numbers_and_caveats_are_on_the_page(two_arms):
    page = (two_arms / "report.html").read_text(encoding="utf-8")
    data = json.loads((two_arms / "report.json").read_text())
    text = re.sub(r"data:[^\"]+", "", page)
    assert text.index("separates the classes better") < text.index("Numbers")
    assert f"{data['arms']['imagenet']['auc']['estimate']:.3f}" in text
    assert "Small test set" in text
    for name in (
        "discrimination-0.svg",
        "decisions-0.pdf",
        "reliability-0-0.svg",
        "reliability-0-1.png",
    ):
        assert (two_arms / "figures" / name).stat().st_size > 1000


def test_hostile_names_are_shown_as_text(scores, tmp_path):
    table = scores({HOSTILE: 1.0, "../../escape": 0.5})
    table["label"] = HOSTILE
    page = build(table, tmp_path)
    found = Collector()
    found.feed(page)
    assert "script" not in found.tags
    assert "&lt;script&gt;" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures",
        "report.html",
        "report.json",
        "tables",
    ]


@pytest.mark.parametrize("n", [2, 30])
def test_a_single_perfect_arm_has_a_page(tmp_path, n):
    page = build(
        pd.DataFrame(
            {"patient": range(2 * n), "target": [0, 1] * n, "probability": [0.2, 0.9] * n}
        ),
        tmp_path,
    )
    assert "How good are these predictions?" in page
    assert "Cannot tell whether the probabilities" in page


@pytest.mark.slow
def test_the_page_of_several_labels_and_subgroups(scores, tmp_path):
    one = scores({"imagenet": 1.5, "scratch": 0.3}, patients=160)
    one["sex"] = one["patient"].str[1:].astype(int) % 2
    both = pd.concat([one.assign(label="mass"), one.assign(label="edema")], ignore_index=True)
    evaluate(both, bootstrap=100, subgroups=["sex"], prevalences=[0.02]).save(
        tmp_path / "report.json"
    )
    page = build_report(tmp_path, ["svg"]).read_text(encoding="utf-8")
    assert "Numbers, mean over labels" in page
    assert page.count("<h2>Label “") == 2
    assert "mass: " in page.split("</section>")[0]
    assert page.count("Interaction") >= 2
    assert "at prevalence 0.02" in page
    for name in (
        "metrics.csv",
        "metrics-1.csv",
        "subgroups-0.csv",
        "comparisons.csv",
        "operating_points-0.csv",
    ):
        assert len(pd.read_csv(tmp_path / "tables" / name)) > 0, name


def test_a_page_of_one_class_says_why_there_are_no_numbers(tmp_path):
    page = build(
        pd.DataFrame(
            {"patient": range(6), "target": 1, "probability": [0.2, 0.9, 0.5, 0.4, 0.3, 0.7]}
        ),
        tmp_path,
    )
    assert "no negative image" in page
    assert "nothing that compares the classes can be estimated" in page
