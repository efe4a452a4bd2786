"""Hostile names, in messages and on the page."""

from __future__ import annotations

import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import CohortError

from wild_files import checked, invoke, pictures


def test_control_characters_in_names_are_shown_as_codes_and_refused_before_anything_is_trained(
    tmp_path,
):
    pictures(tmp_path / "root" / "a", ["x.png", "y\r.png", "z\x1b[31m.png"])
    pictures(tmp_path / "root" / "b", ["x.png", "y.png"])
    cohort, findings = checked(Cohort.from_folders(tmp_path / "root", ["a", "b"], "b"))
    assert len(cohort) == 3
    assert any("control character" in action for action in findings.actions)
    assert "\x1b" not in invoke("check", tmp_path / "root", "--positive", "b", "--quiet").output
    (tmp_path / "m.csv").write_text('image,patient,y\na/x.png,"p\r1",0\nb/x.png,p2,1\n', newline="")
    with pytest.raises(CohortError, match=r"row 2: p\[U\+000D\]1 holds a control character"):
        Cohort.from_csv(tmp_path / "m.csv", tmp_path / "root", ["y"])


def test_marks_that_turn_text_around_are_codes_on_the_page(tmp_path):
    pictures(tmp_path / "root" / "a", ["x\u202egnp.png", "y.png"])
    pictures(tmp_path / "root" / "b", ["x.png", "y.png"])
    invoke("check", tmp_path / "root", "--positive", "b", "--quiet", "--output", tmp_path / "out")
    page = (tmp_path / "out" / "check.html").read_text()
    assert "\u202e" not in page
