from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from medtransfer.report.sheet import build_sheet, encode_picture
from PIL import Image

FINDINGS = {
    "images": 3,
    "readable": 2,
    "patients": 2,
    "patients_known": True,
    "classes": {"benign": 2},
    "meaning": {},
    "counts": {},
    "actions": ["remove <b>a.png</b>"],
    "accounts": [],
    "notes": [],
    "unreadable": [{"image": "c.png", "reason": "empty file"}],
    "hazards": [{"image": "a.png", "hazard": "text", "detail": "letters in the picture"}],
    "conflicts": [],
    "ignored": [],
    "not_looked_for": [],
    "shortcuts": [],
    "clusters": [["a.png", "b.png"]],
    "near_duplicates": [["a.png", "b.png"]],
}


@pytest.fixture
def folder(tmp_path):
    picture = np.full((4, 6), 7, np.uint8)
    build_sheet(tmp_path / "sheet", "cohort <1>", FINDINGS, {"a.png": picture}, {"a.png": "benign"})
    return tmp_path / "sheet"


def test_the_sheet_holds_findings_and_pictures_and_loads_nothing(folder):
    page = (folder / "check.html").read_text(encoding="utf-8")
    assert "Check of cohort &lt;1&gt;" in page
    assert "Remove &lt;b&gt;a.png&lt;/b&gt;" in page
    assert "c.png: empty file" in page
    assert page.count("data:image/png;base64,") >= 1
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_every_finding_is_in_the_file_beside_it(folder):
    content = json.loads((folder / "check.json").read_text())
    assert content == {"format": 1, **FINDINGS}


def test_a_picture_is_shown_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    kind, content = encode_picture(picture).split(",")
    assert kind == "data:image/png;base64"
    assert (np.array(Image.open(io.BytesIO(base64.b64decode(content)))) == picture).all()
