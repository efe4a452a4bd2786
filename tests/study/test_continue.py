"""A study that goes on: after an interruption, with an arm more, with a plan edited by hand; and
what it takes over.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import medtransfer as mt
import pandas as pd
from medtransfer.config.study_config import make_config
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.progress import Reporter
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.engines import choose_engines
from medtransfer.study.environment import recorded_engine, write_record
from medtransfer.study.jobs import Job
from medtransfer.study.planning import share_steps, train_of
from medtransfer.study.worker import Worker

from networks import SMALL
from studies import ARMS, LITE, finished_runs, invoke, prepare_study, read_run, write_config


def test_an_interrupted_study_is_continued(studies, tmp_path):
    study = studies.finished(studies.cohort())
    copied = study.copy(tmp_path / "s")
    undone = copied.out / "runs" / "scratch" / "fold-1" / "seed-0" / "run.json"
    undone.unlink()
    (copied.out / "predictions.csv").unlink()
    stamps = finished_runs(copied.out)
    assert len(stamps) == 3
    result = invoke("compare", copied.config, "--output", copied.out)
    assert result.exit_code == 0, result.output
    assert "3 of 4 runs are there already" in result.output
    assert {path: finished_runs(copied.out)[path] for path in stamps} == stamps
    assert undone.is_file()
    assert (copied.out / "predictions.csv").read_bytes() == (
        study.out / "predictions.csv"
    ).read_bytes()


def test_an_arm_with_a_larger_budget_is_added_to_a_finished_study(studies, tmp_path):
    study = studies.finished(studies.cohort()).copy(tmp_path / "s")
    out = study.out
    record = {
        arm: (out / "runs" / arm / "fold-1" / "seed-0" / "run.json") for arm in (*ARMS, "longer")
    }
    stamps = {arm: record[arm].stat().st_mtime_ns for arm in ARMS}
    before = pd.read_csv(out / "predictions.csv")
    longer = f"arms.longer={{backbone: {SMALL}, weights: none, budget: 3}}"
    result = invoke("compare", study.config, longer, "--output", out)
    assert result.exit_code == 0, result.output
    assert stamps == {arm: record[arm].stat().st_mtime_ns for arm in ARMS}
    runs = {arm: json.loads(path.read_text()) for arm, path in record.items()}
    assert runs["longer"]["budget"]["steps"] == 3 * runs["scratch"]["budget"]["steps"] > 0
    assert (runs["longer"]["epochs"], runs["scratch"]["budget_epochs"]) == (3, 1)
    after = pd.read_csv(out / "predictions.csv")
    assert after[after["arm"] != "longer"].reset_index(drop=True).equals(before)
    pairs = {
        (pair["a"], pair["b"])
        for pair in json.loads((out / "report.json").read_text())["comparisons"]
    }
    assert pairs == {("imagenet", "scratch"), ("imagenet", "longer"), ("scratch", "longer")}
    page = (out / "report.html").read_text()
    assert (
        page.count(
            "number of optimiser steps (longer: 3 times as many, scratch: up to four times as "
            "many, until"
        )
        == 2
    )
    assert "Of these, longer was added when the others had been evaluated." in page
    # A third call knows that still. Runs that something decides otherwise are done again, which is
    # said.
    again = json.loads(record["longer"].read_text())
    record["longer"].write_text(json.dumps({**again, "key": "of other code"}))
    result = invoke("compare", study.config, longer, "--output", out)
    assert result.exit_code == 0
    assert (
        "1 finished runs were made with another plan, code, library or device, and are done again"
        in result.output
    )
    assert json.loads((out / "environment.json").read_text())["added_later"] == ["longer"]
    assert json.loads(record["longer"].read_text())["key"] == again["key"]
    # An arm with a finished run stays; one without can be given up again.
    assert invoke("compare", study.config, "--output", out).exit_code == 2
    shutil.rmtree(out / "runs" / "longer")
    assert invoke("compare", study.config, "--output", out).exit_code == 0
    assert json.loads((out / "environment.json").read_text())["added_later"] == []


def test_an_added_arm_trains_in_the_precision_of_those_before_it(tmp_path):
    """Measured anew, another one might be chosen, and finished runs of the architecture be done
    again.
    """
    nets = {"imagenet": mt.load_backbone(LITE), "scratch": mt.load_backbone(LITE)}
    plan = mt.plan_freeze(
        PlainCounts({"0": 200, "1": 200}, "near"), nets["imagenet"], transfer=True
    )
    train = {"device": "cpu", "batch_size": 2}
    config = make_config(
        {
            "cohort": {"manifest": "m.csv", "labels": ["y"]},
            "arms": {arm: {"backbone": LITE} for arm in nets},
            "image": {"size": 32},
            "train": train,
        }
    )
    plans = {"imagenet": plan, "scratch": replace(plan, frozen_stages=0)}
    prepared = SimpleNamespace(config=config, backbones=nets, plans=plans, split=range(3))
    stored = {"imagenet": {"device": "cpu", "precision": "bf16", "layout": "contiguous"}}
    (tmp_path / "environment.json").write_text(json.dumps({"arms": stored}))
    engines = choose_engines(prepared, StudyFolder(tmp_path))
    assert {(engine.precision, engine.layout) for engine in engines.values()} == {
        ("bf16", "contiguous")
    }


def test_what_a_gpu_was_given_does_not_bind_a_processor(tmp_path):
    stored = {
        "a": {"device": "cuda:0", "precision": "fp16", "layout": "contiguous", "compiled": True}
    }
    (tmp_path / "environment.json").write_text(json.dumps({"arms": stored}))
    assert recorded_engine(StudyFolder(tmp_path), "a", "cpu") == {}
    assert (
        recorded_engine(StudyFolder(tmp_path), "a", "cuda")
        == recorded_engine(StudyFolder(tmp_path), "a")
        == {**stored["a"], "difference": {}}
    )


def test_budgets_are_told_as_they_were_spent():
    from medtransfer.report.methods import describe_budgets

    study = {"arms": {"a": {}, "b": {"budget": 1.5}, "probe": {"budget": 5}}}
    plans = {"a": {"steps": 50}, "b": {"steps": 80}, "probe": {"steps": 0}}
    assert describe_budgets(study, plans) == "number of optimiser steps (b: 1.6 times as many)"
    assert (
        describe_budgets({"arms": {"a": {}}}, {"a": {"steps": 50}}) == "number of optimiser steps"
    )
    assert (
        describe_budgets({"arms": {"b": {"budget": 3}}}, {"b": {"steps": 1500}})
        == "number of optimiser steps (b: 1,500)"
    )
    until = {"a": {"steps": 50}, "b": {"steps": 50, "level": True}}
    said = describe_budgets({"arms": {"a": {}, "b": {"budget": None}}}, until)
    assert (
        said
        == "number of optimiser steps (b: up to four times as many, until the tune loss levelled "
        "off)"
    )


def test_budgets_are_times_that_of_the_study():
    from medtransfer.models.plan.rules import PlainCounts, plan_freeze

    arms = {
        "probe": {"backbone": LITE, "weights": "imagenet", "budget": 5},
        "scratch": {"backbone": LITE},
        "longer": {"backbone": LITE, "budget": 2.5},
        "once": {"backbone": LITE, "budget": 1},
    }
    nets = {name: mt.load_backbone(LITE, arm.get("weights")) for name, arm in arms.items()}
    plans = {
        name: plan_freeze(PlainCounts({"0": 6, "1": 6}, "far"), net) for name, net in nets.items()
    }
    planned = plans["scratch"].steps
    assert planned > 0
    assert plans["probe"].strategy == "linear_probe"
    section = {"manifest": "m.csv", "labels": ["y"]}
    for train, curve, draws, steps, epochs in (
        ({}, {}, False, planned, None),
        ({"epochs": 4}, {}, False, 4 * 7, 4),
        ({"epochs": 4}, {"sizes": [5], "steps": 30}, False, 4 * 7, 4),
        ({"epochs": 4}, {"sizes": [5], "steps": 30}, True, planned, None),
    ):
        config = make_config(
            {"cohort": section, "arms": arms, "train": train, "learning_curve": curve}
        )
        shared = share_steps(plans, config, 7, draws)
        assert [shared[name].steps for name in arms] == [0, steps, round(2.5 * steps), steps]
        # Without weights and a budget of its own an arm goes on until level, but not in the draws
        # of a learning curve.
        assert [shared[name].level for name in arms] == [False, not draws, False, False]
        assert "2.5 times" in shared["longer"].reason
        assert shared["once"].reason == plans["once"].reason
        assert ("until the tune loss has levelled off" in shared["scratch"].reason) == (not draws)
        assert train_of(config, "scratch", draws).epochs == epochs
        assert train_of(config, "longer", draws).epochs == (None if epochs is None else 10)


def test_interruption_exits_130_and_says_how_to_go_on(studies, tmp_path, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("medtransfer.study.run.train_network", interrupt)
    result = invoke(
        "compare", write_config(tmp_path, studies.cohort()), "--output", tmp_path / "new"
    )
    assert result.exit_code == 130
    assert "Run the same command again" in result.output


def test_a_plan_edited_by_hand_is_honoured(studies, tmp_path):
    config = write_config(tmp_path, studies.cohort())
    out = tmp_path / "edited"
    out.mkdir()
    planned = prepare_study(config).plans["imagenet"]
    assert planned.frozen_stages != 16
    (out / "plan.json").write_text(
        json.dumps({"arms": {"imagenet": {**planned.to_dict(), "frozen_stages": 16}}})
    )
    prepared = prepare_study(config, output=out)
    folder = StudyFolder(out)
    engines = choose_engines(prepared, folder)
    worker = Worker(prepared, engines, folder, tmp_path / "store")
    assert worker.key_of(Job("imagenet", 0, 0))[1].frozen_stages == 16  # what a run is given
    write_record(prepared, engines, folder)
    followed = json.loads((out / "plan.json").read_text())["arms"]["imagenet"]
    assert followed["trainable_fraction"] < 0.5
    assert "Set by hand: frozen_stages 16" in followed["reason"]
    worker.do(Job("imagenet", 0, 0), Reporter(quiet=True))
    assert read_run(out, "imagenet")["plan"]["frozen_stages"] == 16
    again = prepare_study(config, output=out)  # the study goes on with it
    assert again.plans["imagenet"].decisive() == prepared.plans["imagenet"].decisive()
    edited, plain = (
        Worker(one, engines, folder, tmp_path / "store").key_of(Job("imagenet", 0, 0))[0]
        for one in (again, prepare_study(config))
    )
    assert edited == worker.key_of(Job("imagenet", 0, 0))[0] != plain
