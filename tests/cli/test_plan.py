from __future__ import annotations

import json

import medtransfer as mt
import pytest
from medtransfer.config.study_config import configs_folder

from studies import invoke


def test_plan_without_a_cohort_answers_in_json():
    result = invoke(
        "plan", "--backbone", "resnet18", "--counts", "399,147", "--domain", "far", "--json"
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    keys = {
        "strategy",
        "stages",
        "frozen_stages",
        "trainable_fraction",
        "head_lr",
        "backbone_lr",
        "stage_decay",
        "steps",
        "evidence",
        "reason",
    }
    assert keys <= set(answer)
    assert (answer["strategy"], answer["stages"], answer["evidence"]) == ("lp_ft", 9, "strong")
    text = invoke(
        "plan", "--backbone", "resnet18", "--counts", "399,147", "--domain", "near"
    ).output
    assert "stages frozen" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a CONFIG, or --backbone"),
        (["--backbone", "resnet18", "--counts", "many"], "expected whole numbers"),
        (["--backbone", "resnet18", "--counts", "5"], "at least two counts"),
        (["--backbone", "resnet18", "--counts", "5,0"], "each at least 1"),
        (["--backbone", "resnet18", "--counts", "5,5", "--domain", "middle"], "'near', 'far'"),
        (["--backbone", "resnet0", "--counts", "5,5"], "unknown backbone"),
        (["none.yaml"], "cannot be read"),
    ],
)
def test_plan_says_what_it_needs(arguments, message):
    result = invoke("plan", *arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_plan_can_be_written_for_editing(tmp_path):
    arguments = [
        "plan",
        "--backbone",
        "resnet18",
        "--counts",
        "399,147",
        "--output",
        tmp_path / "out",
    ]
    assert invoke(*arguments).exit_code == 0
    assert (
        json.loads((tmp_path / "out" / "plan.json").read_text())["arms"]["resnet18"]["stages"] == 9
    )


def test_plan_of_a_config_writes_nothing(tmp_path):
    manifest = mt.write_phantom(tmp_path / "c", 30)
    before = sorted(tmp_path.rglob("*"))
    result = invoke(
        "plan",
        configs_folder() / "demo.yaml",
        f"cohort.manifest={manifest}",
        f"cohort.root={manifest.parent}",
        "--json",
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert set(answer) == {"imagenet", "scratch"}
    assert answer["scratch"]["frozen_stages"] == 0
    assert sorted(tmp_path.rglob("*")) == before
