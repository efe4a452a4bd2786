"""Detection from the command line to the page: planes and volumes, kept activations and plain ones,
and what a wrong input gives.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.grid.settings import ImageSettings
from medtransfer.errors import ConfigError
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.heads.pyramid import choose_levels
from medtransfer.models.plan.rules import PlainCounts, plan_freeze
from medtransfer.study.study import Arm, compare
from medtransfer.study.views import Images
from medtransfer.tasks.detection import Detection
from medtransfer.training.batches import Loader
from medtransfer.training.features import FeatureSource
from medtransfer.training.loop import settle
from medtransfer.training.predicting import Network
from medtransfer.training.settings import TrainSettings
from medtransfer.training.timing import make_engine

from studies import (
    LEAN,
    LITE,
    SETTINGS,
    TWINS,
    changed,
    finished_runs,
    invoke,
    prepare_study,
    write_config,
)

pytestmark = pytest.mark.xdist_group("detection")


@pytest.fixture(scope="module")
def phantom(studies) -> Path:
    return studies.cohort(16, 0).parent


@pytest.fixture(scope="module")
def study(studies) -> Path:
    return studies.detection().out


def config(folder: Path, data: Path, **sections) -> Path:
    """Of a lean study of lesion boxes."""
    settings = changed(SETTINGS, image={"size": 64}, train={"batch_size": None})
    return write_config(
        folder,
        data / "manifest.csv",
        **{"task": "detection", "arms": TWINS, **settings, **sections},
    )


def test_the_folder_holds_what_the_numbers_follow_from(study):
    report = json.loads((study / "report.json").read_text())
    tables = [study / name for name in ("predictions.csv", "candidates.csv", "boxes.csv")]
    again = evaluate_boxes(*tables, bootstrap=100)
    assert again == report["detection"]
    assert set(report["detection"]["arms"]) == {"imagenet", "scratch"}
    assert report["arms"]["imagenet"]["auc"]["estimate"] is not None
    for name in ("lesions", "lesion_sizes", "lesion_comparisons"):
        assert len(pd.read_csv(study / "tables" / f"{name}.csv"))
    for arm in ("imagenet", "scratch"):
        run = json.loads((study / "runs" / arm / "fold-0" / "seed-0" / "run.json").read_text())
        assert run["task"]["space"] == [64, 64]
        assert (run["plan"]["strategy"], run["plan"]["frozen_stages"] > 0) == (
            ("fine_tune", True) if arm == "imagenet" else ("scratch", False)
        )
    plan = json.loads((study / "plan.json").read_text())["arms"]["imagenet"]
    assert plan["cache_cut"]  # activations are kept here too


def test_candidates_lie_in_their_images_in_the_pixels_of_the_image(study, phantom):
    candidates = pd.read_csv(study / "candidates.csv")
    assert candidates[["x0", "y0"]].min().min() >= 0
    assert (
        candidates[["x1", "y1"]].max().max() <= 128
    )  # the images have 128 pixels, the network saw 64
    assert candidates[["x1", "y1"]].max().max() > 80
    boxes = pd.read_csv(phantom / "boxes.csv")
    kept = pd.read_csv(study / "boxes.csv")
    merged = kept.merge(boxes, on="image", suffixes=("", "_true"))
    assert (merged["x0"] - merged["x0_true"]).abs().max() == 0
    predictions = pd.read_csv(study / "predictions.csv").fillna({"budget": ""})
    keys = ["arm", "image", "part", "fold", "budget"]
    best = (
        candidates.fillna({"budget": ""}).groupby(keys)["logit"].max().rename("best").reset_index()
    )
    both = predictions.merge(best, on=keys)
    assert set(both["budget"]) == {"", "level", "same"}
    assert len(both) > 20
    assert np.allclose(both["logit"], both["best"])


def test_a_second_call_takes_the_runs_as_they_are(studies, tmp_path):
    copied = studies.detection().copy(tmp_path / "s")
    stamps = finished_runs(copied.out)
    assert len(stamps) == 4
    less = ["report.figures=[]", "report.gallery=false", "audit.shortcuts=false"]
    result = invoke("compare", copied.config, *less, "--output", copied.out)
    assert result.exit_code == 0, result.output
    assert "finds lesions" in result.output
    assert "run 1 of" not in result.output
    assert finished_runs(copied.out) == stamps
    page = (copied.out / "report.html").read_text()
    assert "Lesions found" in page
    assert "data:image" not in page


def test_volumes_with_a_network_of_planes_and_one_of_volumes(studies, tmp_path):
    cohort = studies.cohort(12, 0, volumes=True).parent
    arms = {"planes": TWINS["imagenet"], "volumes": {"backbone": "monai_resnet10", "channels": 1}}
    path = config(
        tmp_path,
        cohort,
        image={"size": 48, "slices": 24},
        arms=arms,
        report={**LEAN["report"], "gallery": True},
    )
    result = invoke("compare", path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    candidates = pd.read_csv(tmp_path / "out" / "candidates.csv")
    assert {"z0", "z1"} <= set(candidates.columns)
    assert candidates[["x1", "y1"]].max().max() <= 64
    assert candidates["z1"].max() <= 22  # the longest volume has so many slices
    boxes = pd.read_csv(cohort / "boxes.csv").groupby("image").first()
    # Of the surest candidates many lie near the lesion along z, though hardly trained: boxes come
    # back to the right axis.
    assert candidates.groupby("image")["z1"].max().le(23).all()
    assert len(boxes)
    gallery = json.loads((tmp_path / "out" / "gallery.json").read_text())
    assert any(
        "slice" in row
        for arm in gallery["arms"]
        for kind in ("hits", "misses", "false_alarms")
        for row in arm[kind]
    )


def test_from_python(phantom, tmp_path):
    cohort = Cohort.from_boxes(phantom, "boxes.csv", manifest=phantom / "manifest.csv")
    assert cohort.labels == ("lesion",)
    report = compare(
        cohort,
        {"imagenet": Arm(LITE, "imagenet")},
        tmp_path / "out",
        quiet=True,
        **changed(SETTINGS, image={"size": 64}, train={"batch_size": None}),
    )
    assert report.sentences[0].startswith(
        "How well are lesions found? Average precision at an overlap of 0.5: imagenet"
    )
    assert "imagenet finds" in report.sentences[2]
    assert "Lesions" not in report.tables()["metrics"]
    assert len(report.tables()["lesions"]) == 6


def test_candidates_of_any_detector_are_evaluated(study, tmp_path):
    tables = [study / name for name in ("predictions.csv", "candidates.csv", "boxes.csv")]
    pd.read_csv(tables[1]).drop(columns=["logit", "patient"]).to_csv(
        tmp_path / "c.csv", index=False
    )
    out = tmp_path / "page"
    result = invoke(
        "evaluate",
        tables[0],
        "--candidates",
        tmp_path / "c.csv",
        "--boxes",
        tables[2],
        "--bootstrap",
        100,
        "--output",
        out,
    )
    assert result.exit_code == 0, result.output
    assert "finds lesions" in result.output
    assert "ap_50" in result.output
    assert "Lesions found" in (out / "report.html").read_text()
    result = invoke("evaluate", tables[0], "--candidates", tables[1])
    assert result.exit_code == 2
    assert "give both" in result.output


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"cohort": {"root": "x", "classes": ["a", "b"]}},
            "cohort.boxes: detection needs lesion boxes",
        ),
        ({"arms": {"f": {"kind": "features"}}}, "kind features classifies whole images"),
        ({"learning_curve": {"sizes": [5]}}, "learning_curve: is of classification"),
        ({"plan": {"search": True}}, "plan.search: its probes classify"),
        ({"task": "segmentation"}, "task"),
        ({"detection": {"overlap": 0}}, "detection.overlap"),
        (
            {"plan": {"strategy": "linear_probe"}},
            "strategy is for heads that classify whole images",
        ),
        ({"plan": {"read": "all"}}, "read is for heads that classify whole images"),
    ],
)
def test_what_does_not_fit_detection_is_refused(sections, message, phantom, tmp_path):
    with pytest.raises(ConfigError) as refused:
        prepare_study(config(tmp_path, phantom, **sections))
    assert message in str(refused.value)


def test_boxes_that_do_not_fit_are_listed_before_anything_is_written(phantom, tmp_path):
    boxes = pd.read_csv(phantom / "boxes.csv")
    boxes.loc[0, "x1"] = 900
    boxes.loc[1, "y1"] = boxes.loc[1, "y0"]
    boxes.to_csv(tmp_path / "bad.csv", index=False)
    section = {
        "manifest": str(phantom / "manifest.csv"),
        "root": str(phantom),
        "boxes": str(tmp_path / "bad.csv"),
    }
    result = invoke(
        "compare", config(tmp_path, phantom, cohort=section), "--output", tmp_path / "out"
    )
    assert result.exit_code == 2
    assert "2 of" in result.output
    assert "outside of its image" in result.output
    assert "has no extent" in result.output
    assert not (tmp_path / "out").exists()


def detection_parts(phantom, store=None):
    """Images of the phantom in the cache, a detector with its lower stages frozen, and what it
    needs.
    """
    from medtransfer.data.audit.inspection import inspect_images
    from medtransfer.data.cohort.box_grid import place_images
    from medtransfer.data.grid.fixed import Fixed

    cohort = Cohort.from_boxes(phantom, "boxes.csv", manifest=phantom / "manifest.csv")
    fixed = Fixed(64)
    facts = inspect_images(cohort, None, fixed)
    cohort = cohort.fitted(facts)
    images = Images(
        cohort,
        [Path(e) for e in facts["entry"]],
        Detection(("lesion",), (64, 64)),
        ImageSettings(size=64),
        store=store,
        placements=place_images(fixed, facts),
    )
    net = load_backbone(LITE, "imagenet")
    plan = plan_freeze(PlainCounts({"0": 10, "1": 50}, "far"), net, finest=8)
    task = Detection(("lesion",), (64, 64)).fitted(images.targets)
    torch.manual_seed(0)
    head = task.make_head(net)
    engine = make_engine("cpu", "fp32")
    settle(net, head, plan, engine, images.plain(range(4), net, engine))
    return images, net, head, task, plan, engine


def test_kept_activations_give_the_same_losses_and_gradients(phantom, tmp_path):
    images, net, head, task, plan, engine = detection_parts(phantom, tmp_path)
    assert plan.cache_cut
    rows = list(range(8))
    source = images.source(net, engine)
    kept = images.keep(net, engine, plan.cache_cut, head.taps, 0)
    assert isinstance(kept, FeatureSource)
    seen = []
    for origin in (source, kept):
        network = Network(net, head, engine).train()
        network.zero_grad()
        batch = next(iter(Loader(origin, rows, 8, None)))
        batch = origin.load(rows, 3)  # a random view, its boxes moved
        loss = task.loss(network(batch["features"], batch["present"]), batch["targets"])["loss"]
        loss.backward()
        seen.append(
            (
                batch["targets"],
                float(loss.detach()),
                [p.grad.clone() for p in network.parameters() if p.grad is not None],
            )
        )
    (boxes, loss, gradients), (kept_boxes, kept_loss, kept_gradients) = seen
    assert torch.equal(boxes.nan_to_num(-1), kept_boxes.nan_to_num(-1))
    assert loss == kept_loss
    assert len(gradients) == len(kept_gradients) > 20
    assert all(torch.equal(a, b) for a, b in zip(gradients, kept_gradients, strict=True))


def test_a_head_that_reads_before_the_cut_is_given_the_images():
    """What is kept of the stages before a cut is their mean over space, and a pyramid needs all of
    it.
    """
    net = load_backbone(LITE, "imagenet")
    counts = PlainCounts({"0": 5, "1": 50}, "far")
    below = [stage.reduction for stage in net.stages].index(8)
    for finest, frozen in ((4, below), (8, below + 2)):
        plan = plan_freeze(counts, net, finest=finest)
        assert (plan.frozen_stages, plan.finest) == (frozen, finest)
        assert plan.cache_cut == choose_levels(net, finest)[0].name == net.names[frozen - 1]
        deeper = plan_freeze(counts, net, finest=finest, frozen_stages=frozen + 1)
        assert (deeper.frozen_stages, deeper.cache_cut, deeper.views) == (frozen + 1, "", 0)
        with pytest.raises(
            ConfigError, match="no more frozen stages than lie below its finest level"
        ):
            plan_freeze(counts, net, finest=finest, frozen_stages=frozen + 1, views=4)


def test_the_loop_knows_nothing_of_boxes():
    for name in ("loop", "trainer", "predicting", "batches", "features"):
        text = (
            (Path(__file__).parents[2] / "medtransfer" / "training" / f"{name}.py")
            .read_text()
            .lower()
        )
        assert "tasks.detection" not in text
        assert "isinstance(task" not in text


def test_plans_of_detectors():
    net = load_backbone(LITE, "imagenet")
    few, many = (
        plan_freeze(PlainCounts({"0": 5, "1": n}, "far"), net, finest=8) for n in (50, 5000)
    )
    assert few.strategy == many.strategy == "fine_tune"
    assert net.stages[few.frozen_stages - 1].reduction == 8
    assert net.stages[few.frozen_stages].reduction == 16
    assert many.frozen_stages == 0
    by_hand = plan_freeze(
        PlainCounts({"0": 0, "1": 50}, "far"), net, finest=8, frozen_stages=len(net.stages)
    )
    assert by_hand.strategy == "fine_tune"  # its head trains
    assert by_hand.steps == few.steps
    scratch = plan_freeze(PlainCounts({"0": 5, "1": 50}, "far"), load_backbone(LITE), finest=8)
    assert (scratch.strategy, scratch.frozen_stages, scratch.steps) == ("scratch", 0, few.steps)


def test_a_cohort_where_every_image_has_a_lesion(phantom, tmp_path):
    """Nothing can be said of images with against those without, and nothing breaks."""
    table, boxes = pd.read_csv(phantom / "manifest.csv"), pd.read_csv(phantom / "boxes.csv")
    table[table["image"].isin(boxes["image"])].to_csv(tmp_path / "manifest.csv", index=False)
    section = {
        "manifest": str(tmp_path / "manifest.csv"),
        "root": str(phantom),
        "boxes": "boxes.csv",
    }
    path = config(
        tmp_path,
        phantom,
        cohort=section,
        arms={"imagenet": TWINS["imagenet"]},
        report={**LEAN["report"], "figures": ["svg"]},
    )
    result = invoke("compare", path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "imagenet finds" in result.output
    assert "separates the classes" not in result.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Every test image has the same label, so nothing can be said about this." in page
    assert "Reliability diagram" not in page


def test_one_network_from_python_on_one_fold(phantom, tmp_path):
    import medtransfer as mt

    cohort = mt.Cohort.from_boxes(
        phantom, "boxes.csv", manifest=phantom / "manifest.csv", kinds=["malignant", "benign"]
    )
    assert 0 < cohort.images["lesion"].mean() < 1
    net = mt.load_backbone(LITE, "imagenet")
    plan = mt.plan_freeze(PlainCounts({"0": 5, "1": 10}, "far"), net, finest=8)
    train = TrainSettings(epochs=1, precision="fp32")
    task = mt.Detection(cohort.labels, (64, 64))
    run = mt.fit(
        cohort,
        mt.split_cohort(cohort, 2).fold(0),
        task,
        net,
        plan,
        tmp_path / "run",
        image=mt.ImageSettings(size=64),
        train=train,
    )
    assert {"run.json", "candidates.csv", "predictions.csv", "weights.safetensors"} <= {
        p.name for p in run.folder.iterdir()
    }


def test_a_task_of_another_size_is_refused(phantom, tmp_path):
    import medtransfer as mt

    cohort = mt.Cohort.from_boxes(phantom, "boxes.csv", manifest=phantom / "manifest.csv")
    net = mt.load_backbone(LITE, "imagenet")
    plan = mt.plan_freeze(PlainCounts({"0": 5, "1": 10}, "far"), net, finest=8)
    with pytest.raises(
        mt.MedTransferError, match=r"images of \(64, 64\) pixels, these are seen with \(96, 96\)"
    ):
        mt.fit(
            cohort,
            mt.split_cohort(cohort, 2).fold(0),
            mt.Detection(cohort.labels, (64, 64)),
            net,
            plan,
            tmp_path / "run",
            image=mt.ImageSettings(size=96),
        )


def test_a_plan_for_whole_images_is_refused(phantom, tmp_path):
    import medtransfer as mt

    cohort = mt.Cohort.from_boxes(phantom, "boxes.csv", manifest=phantom / "manifest.csv")
    net = mt.load_backbone(LITE, "imagenet")
    plan = mt.plan_freeze(PlainCounts({"0": 5, "1": 10}, "far"), net)
    with pytest.raises(
        mt.MedTransferError,
        match="the plan is for whole images, the task is not. Give plan_freeze finest=8",
    ):
        mt.fit(
            cohort,
            mt.split_cohort(cohort, 2).fold(0),
            mt.Detection(cohort.labels, (64, 64)),
            net,
            plan,
            tmp_path / "run",
            image=mt.ImageSettings(size=64),
        )


def test_what_lies_in_the_padding_is_nothing():
    from medtransfer.data.cohort.box_grid import drop_padding, list_candidates
    from medtransfer.data.grid.placement import place

    placement = place((32, 64), (1.0, 1.0), 64, None, "image")  # 16 rows of padding above and below
    found = np.full((2, 3, 5), np.nan)
    found[0, :2] = [[3.0, 0, 0, 10, 10], [-1.0, 20, 5, 40, 25]]
    found[1, :1] = [[2.0, 0, 0, 10, 10]]
    inside = drop_padding(found, [placement] * 2, "axial")
    assert inside[0, 0].tolist() == found[0, 1].tolist()
    assert np.isnan(inside[0, 1:]).all()
    assert inside[1, 0, 0] == 2.0  # nothing else is left: the score of the image
    table = list_candidates(inside, ["a", "b"], ["p", "q"], [placement] * 2, "axial")
    assert table[["image", "x0", "y0", "x1", "y1", "logit"]].to_numpy().tolist() == [
        ["a", 5.0, 4.0, 25.0, 24.0, -1.0]
    ]


def test_the_check_reads_a_configuration_with_boxes(phantom, tmp_path):
    result = invoke("check", config(tmp_path, phantom), "--json", "--quiet")
    assert result.exit_code in {0, 1}, result.output
    assert json.loads(result.stdout)["images"] == len(pd.read_csv(phantom / "manifest.csv"))
    result = invoke("plan", config(tmp_path, phantom))
    assert "fine_tune" in result.output
