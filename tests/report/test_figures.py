from __future__ import annotations

import pytest
from medtransfer.report.figures import COLOURS, draw_discrimination, draw_training, render, settle


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_same_figure_gives_the_same_bytes(report_of_two, kind):
    contents = []
    for _ in range(2):
        figure = draw_discrimination(report_of_two.data)
        settle(figure)
        contents.append(render(figure, kind))
    assert contents[0] == contents[1]


def test_arms_keep_their_colours_and_have_their_values_in_the_legend(report_of_two):
    figure = draw_discrimination(report_of_two.data)
    roc = figure.axes[0]
    lines = [line for line in roc.lines if "AUC" in str(line.get_label())]
    assert [line.get_color() for line in lines] == list(COLOURS[:2])
    auc = report_of_two.data["arms"]["imagenet"]["auc"]["estimate"]
    assert f"imagenet: AUC {auc:.3f} (" in lines[0].get_label()


def test_a_dot_marks_the_epoch_with_the_lowest_loss():
    run = [{"epoch": epoch, "tune_loss": loss} for epoch, loss in enumerate((0.7, 0.4, 0.5))]
    axes = draw_training({"a": [run], "b": [run]}).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xydata().tolist() for line in dots] == [[[1.0, 0.4]]] * 2


def test_names_are_short_and_start_no_formula():
    run = [{"epoch": 0, "tune_loss": 0.7}]
    axes = draw_training({"x$y$" * 10: [run]}).axes[0]
    label = axes.lines[0].get_label()
    assert label.endswith("…")
    assert "$" not in label.replace(r"\$", "")
