from __future__ import annotations

import json

from medtransfer.config.study_config import configs_folder

from studies import invoke


def test_examples_are_listed_and_printed():
    listed = invoke("configs").output
    assert "demo.yaml" in listed
    assert "breast_ultrasound.yaml" in listed
    text = (configs_folder() / "demo.yaml").read_text(encoding="utf-8")
    assert invoke("configs", "demo").output == invoke("configs", "demo.yaml").output == text


def test_the_schema_is_printed():
    assert json.loads(invoke("configs", "--schema").output)["title"] == "StudyConfig"
