from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from medtransfer.evaluation import evaluate
from medtransfer.report.build import build_report, format_interval

HOSTILE = "<script>alert('x')</script>\"&$x^2$"


class Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in {"src", "href", "data", "action"}]


def build(table, folder):
    evaluate(table, bootstrap=100).save(folder / "report.json")
    return build_report(folder).read_text(encoding="utf-8")


def test_the_page_is_self_contained(scores, tmp_path):
    page = build(scores({"imagenet": 1.5, "scratch": 0.3}), tmp_path)
    found = Collector()
    found.feed(page)
    assert found.tags.count("img") == 3
    assert found.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in found.links)
    assert "script" not in found.tags
    assert "http" not in re.sub(r"data:[^\"]+|http-equiv", "", page)


def test_verdict_numbers_and_caveats_are_on_the_page(scores, tmp_path):
    page = build(scores({"imagenet": 1.5, "scratch": 0.3}), tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    text = re.sub(r"data:[^\"]+", "", page)
    assert text.index("separates the classes better") < text.index("Numbers")
    assert f"{data['arms']['imagenet']['auc']['estimate']:.3f}" in text
    assert "Small test set" in text
    for name in ("roc.svg", "roc.png", "reliability-0.svg", "reliability-1.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 1000


def test_hostile_names_are_shown_as_text(scores, tmp_path):
    table = scores({HOSTILE: 1.0, "../../escape": 0.5})
    table["label"] = HOSTILE
    page = build(table, tmp_path)
    found = Collector()
    found.feed(page)
    assert "script" not in found.tags
    assert "&lt;script&gt;" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.html", "report.json"]


def test_what_cannot_be_estimated_is_said():
    assert format_interval({"estimate": None, "low": None, "high": None, "reason": "separated"}) == "separated"
    assert format_interval({"estimate": 0.5, "low": None, "high": None}) == "0.500 (no interval: not estimable)"
    assert format_interval({"estimate": 0.5, "low": 0.4, "high": 0.6}) == "0.500 (0.400 to 0.600)"


@pytest.mark.parametrize("n", [2, 30])
def test_a_single_perfect_arm_has_a_page(tmp_path, n):
    import pandas as pd

    page = build(pd.DataFrame({"patient": range(2 * n), "target": [0, 1] * n, "probability": [0.2, 0.9] * n}), tmp_path)
    assert "How good are these predictions?" in page
    assert "Cannot tell whether the probabilities" in page
