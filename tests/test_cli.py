from __future__ import annotations

import html
import json
import shlex

import medtransfer as mt
import pytest
from medtransfer.config.study_config import configs_folder

from studies import invoke


def test_help_names_the_verbs():
    result = invoke("--help")
    assert result.exit_code == 0
    for verb in ("demo", "check", "compare", "plan", "evaluate", "backbones", "configs"):
        assert verb in result.output


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
        (["--backbone", "resnet18", "--counts", "5,5", "--domain", "middle"], "use near or far"),
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


def test_demo_touches_no_files_of_others(tmp_path):
    (tmp_path / "mine-cohort").mkdir()
    (tmp_path / "mine-cohort" / "manifest.csv").write_text("mine")
    result = invoke("demo", "--output", tmp_path / "mine", "--patients", 30)
    assert (result.exit_code, "holds no phantom cohort" in result.output) == (2, True), (
        result.output
    )
    assert (tmp_path / "mine-cohort" / "manifest.csv").read_text() == "mine"
    assert not (tmp_path / "mine").exists()


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


def test_evaluate_prints_and_answers_in_json(scores, tmp_path):
    path = tmp_path / "p.csv"
    scores({"a": 1.5, "b": 0.4}).to_csv(path, index=False)
    result = invoke("evaluate", path, "--bootstrap", 100)
    assert result.exit_code == 0
    assert "a separates the classes better than b" in result.output
    answer = json.loads(invoke("evaluate", path, "--bootstrap", 100, "--json").output)
    assert answer == mt.evaluate(path, bootstrap=100).to_dict()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "is empty"),
        ("patient,target\n1,0\n", "no column probability"),
        ("patient,target,probability\n1,0,0.2\n2,1,x\n", "row 3: probability is 'x'"),
        ("patient,target,probability\n1,,0.2\n2,,0.3\n", "column target is empty"),
    ],
)
def test_evaluate_refuses_with_the_place(tmp_path, text, message):
    path = tmp_path / "p.csv"
    if text is not None:
        path.write_text(text)
    result = invoke("evaluate", path, "--output", tmp_path / "out")
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_configs_and_backbones_are_listed():
    listed = invoke("configs").output
    assert "demo.yaml" in listed
    assert "breast_ultrasound.yaml" in listed
    assert "cohort:" in invoke("configs", "demo").output
    assert invoke("configs", "nothing").exit_code == 2
    assert json.loads(invoke("configs", "--schema").output)["title"] == "StudyConfig"
    assert "resnet18" in invoke("backbones", "resnet1*").output.split()
    rows = {
        row["name"]: row for row in json.loads(invoke("backbones", "*resnet1*", "--json").output)
    }
    assert rows["monai_resnet18"]["ndim"] == 3
    assert {"imagenet", "timm:a1_in1k"} <= set(rows["resnet18"]["weights"])
    assert rows["resnet18"]["offline"] == []
    (lite,) = json.loads(invoke("backbones", "tf_efficientnet_lite0", "--json").output)
    assert (lite["offline"], lite["input_size"]) == (["imagenet"], 224)
    here = invoke("backbones", "tf_*", "--offline").output
    assert "tf_efficientnet_lite0" in here
    assert "tf_efficientnet_b0" not in here
    (measured,) = json.loads(invoke("backbones", "resnet10t", "--measure", "--json").output)
    assert (measured["stages"], measured["exact"], measured["parameters"]) == (5, True, 4.92)
    assert measured["speed"] in {"fast", "medium"}
    assert 0.1 < measured["memory_gb"] < 2
    assert invoke("backbones", "no such*").exit_code == 2


def test_usage_errors_exit_2():
    assert invoke("compare").exit_code == 2
    assert invoke("nonsense").exit_code == 2
    assert invoke("evaluate", "x.csv", "--bootstrap", "3").exit_code == 2


def test_check_answers_in_json_with_the_exit_code(manifest, tmp_path):
    path = manifest(patients=12, views=2)
    clean = invoke("check", path, "--json")
    assert clean.exit_code == 0, clean.output
    answer = json.loads(clean.stdout)
    assert (answer["images"], answer["patients"], answer["actions"]) == (24, 12, [])
    (tmp_path / "0-0.png").write_bytes((tmp_path / "1-0.png").read_bytes())
    (tmp_path / "3-1.png").write_bytes(b"broken")
    found = invoke("check", path, "--json")
    assert found.exit_code == 1
    answer = json.loads(found.stdout)
    assert answer["near_duplicates"] == [["0-0.png", "1-0.png"]]
    assert answer["unreadable"][0]["image"] == "3-1.png"
    assert str(tmp_path) not in found.stdout


def test_check_writes_a_page_with_the_pictures(manifest, tmp_path):
    path = manifest(patients=12, views=1)
    (tmp_path / "0-0.png").write_bytes((tmp_path / "1-0.png").read_bytes())
    result = invoke("check", path, "--output", tmp_path / "out", "--quiet")
    assert result.exit_code == 1
    assert "To do: 1 group(s)" in result.output
    page = (tmp_path / "out" / "check.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "Equal pixels under different labels (malignant 0 and 1)" in page
    assert (
        json.loads((tmp_path / "out" / "check.json").read_text())["conflicts"][0]["kind"]
        == "duplicate"
    )
    assert "http" not in page.replace("http-equiv", "")


def test_check_takes_configurations_folders_and_archives(manifest, tmp_path):
    path = manifest(patients=12, views=2)
    (tmp_path / "study.yaml").write_text(
        "cohort: {labels: [malignant]}\narms: {a: {backbone: resnet18}}\n"
    )
    settings = (f"cohort.manifest={path}", f"cohort.root={tmp_path}")
    assert invoke("check", tmp_path / "study.yaml", *settings, "-q").exit_code == 0
    less = invoke(
        "check",
        tmp_path / "study.yaml",
        *settings,
        "audit.shortcuts=false",
        "--output",
        tmp_path / "less",
        "-q",
    )
    assert (less.exit_code, "not looked for: shortcuts" in less.output) == (0, True), less.output
    assert "Not looked for: shortcuts." in (tmp_path / "less" / "check.html").read_text()
    assert json.loads((tmp_path / "less" / "check.json").read_text())["not_looked_for"] == [
        "shortcuts"
    ]
    listed = invoke("check", tmp_path, "--flat", "-q")
    assert "24 images found, 24 readable" in listed.output
    assert invoke("check", path, "x.y=1").exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file or folder"),
        ("a.csv", "image,patient\nmissing.png,P0\n", "Is the root right?"),
        ("a.csv", "image;patient\na.png;P0\n", "none of its 1 images is under"),
        ("a.csv", "PK\x03\x04\udcff", "begins as a spreadsheet or an archive"),
        ("a.csv", "", "is empty"),
        ("a.npz", "x", "not a readable archive"),
    ],
)
def test_check_says_what_it_cannot_take(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    result = invoke("check", tmp_path / name)
    assert (result.exit_code, message in result.output) == (2, True), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("replacement", "options", "message"),
    [
        (("P1,1", "P1,yes"), (), "no label was checked"),
        (("P1,1", "P1,yes"), ("--label", "malignant"), "label malignant is 'yes'"),
        ((",1\n", ",0\n"), ("--label", "malignant"), "every image has malignant = 0"),
        (("malignant", "diagnosis of it"), ("--label", "malignant"), "no column malignant"),
    ],
)
def test_a_label_that_cannot_be_checked_is_not_passed_over(manifest, replacement, options, message):
    path = manifest(patients=12, views=2)
    path.write_text(path.read_text().replace(*replacement))
    result = invoke("check", path, "-q", *options)
    assert result.exit_code in {1, 2}
    assert message in result.output


def test_check_names_what_it_found(manifest, tmp_path):
    path = manifest(patients=12, views=2, split=["train", "test"] * 12)
    path.write_text(path.read_text().replace("2-1.png,P2,0", "2-1.png,P2,1"))
    (tmp_path / "3-1.png").write_bytes(b"")
    result = invoke("check", path, "-q")
    assert result.exit_code == 1
    for part in (
        "unreadable 3-1.png: ",
        "such as 0-0.png and 0-1.png",
        "1 patient(s) under two labels",
        "patient P2 under two labels",
    ):
        assert part in result.output


@pytest.mark.slow
def test_the_command_on_the_page_gives_the_numbers_of_the_page(scores, tmp_path):
    table = scores({"a": 1.0, "b": 0.5}, views=2)
    table["the site"] = [
        "north" if int(patient[1:]) % 3 else "south" for patient in table["patient"]
    ]
    table["w"] = 1.0 + (table["patient"].str[1:].astype(int) % 2)
    table.to_csv(tmp_path / "TABLE.csv", index=False)
    settings = [
        "unit=patient",
        "weight=w",
        "subgroups=[the site]",
        "margin=0.05",
        "prevalences=[0.01,0.1]",
        "sensitivity=null",
        "threshold=0.3",
    ]
    first = invoke(
        "evaluate",
        tmp_path / "TABLE.csv",
        *settings,
        "--bootstrap",
        100,
        "--seed",
        3,
        "-o",
        tmp_path / "out",
        "--json",
    )
    assert first.exit_code == 0, first.output
    page = (tmp_path / "out" / "report.html").read_text()
    command = shlex.split(html.unescape(page.split("<code>medtransfer ")[1].split("</code>")[0]))
    command[1] = tmp_path / command[1]
    assert json.loads(invoke(*command, "--json").stdout) == json.loads(first.stdout)


def test_rows_longer_than_the_header_lose_nothing_in_silence(tmp_path):
    (tmp_path / "m.csv").write_text(
        "image,patient,malignant,age\na.png,P1,1,50,5\nb.png,P2,0,40,2\n"
    )
    result = invoke("check", tmp_path / "m.csv")
    assert result.exit_code == 2
    assert (
        "row 2 has 5 cells, and the header in row 1 has 4 names: column 5 has none" in result.output
    )
