"""Heat maps agree with MONAI's Grad-CAM, and are judged against boxes as worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from medtransfer.evaluation.analyses.localisation import evaluate_localisation
from medtransfer.inference.heat_maps import heat_maps, read_map
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.tasks.classification import Classification
from medtransfer.training.timing import make_engine
from monai.visualize import GradCAM
from torch import nn

from studies import ARMS, SETTINGS, changed, invoke


class Seen(nn.Module):
    def __init__(self, net, head):
        super().__init__()
        self.net, self.head = net, head

    def forward(self, x):
        return self.head(self.net({"image": x}, self.head.taps))


def batch_of(x, slices: int = 1):
    count = len(x)
    present = torch.ones(count, slices, dtype=torch.bool)
    return {
        "features": {"image": x},
        "present": present,
        "targets": torch.zeros(count, 1),
        "rows": torch.arange(count),
    }


def network(name: str, read: str = "last", size: int = 64):
    torch.manual_seed(0)
    net = load_backbone(name, size=size)
    head = Classification(("x",), read=read).make_head(net)
    nn.init.normal_(head.linear.weight)
    return net.eval(), head.eval()


def test_maps_are_those_of_monai():
    net, head = network("resnet18")
    net.freeze(3)  # frozen stages carry gradients all the same
    x = torch.randn(3, 3, 64, 64)
    mine = heat_maps(net, head, [batch_of(x)], make_engine("cpu", "fp32"))
    layer = f"net.network.{net.stages[-1].operations[-1]}"
    camera = GradCAM(Seen(net, head), layer, postprocessing=lambda y: y)
    theirs = np.concatenate(
        [camera(x=x[i : i + 1], class_idx=0).detach().numpy() for i in range(3)]
    )[:, 0]
    highest = theirs.reshape(3, -1).max(1)
    assert (highest > 0).any()
    for m, t, h in zip(mine, theirs, highest, strict=True):
        assert np.allclose(m, t / h if h > 0 else 0 * t, atol=1e-5)
        assert m.max() == pytest.approx(1.0 if h > 0 else 0.0)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("read", ["last", "all"])
def test_any_chain_has_maps(name, read):
    size = 224 if "224" in name else 64
    net, head = network(name, read, size)
    maps = heat_maps(
        net, head, [batch_of(torch.randn(2, 3, size, size))], make_engine("cpu", "fp32")
    )
    assert maps.shape == (2, size, size)
    assert maps.min() >= 0
    assert np.isfinite(maps).all()


def test_slices_of_a_volume_have_a_map_each():
    net, head = network("resnet18")
    maps = heat_maps(
        net, head, [batch_of(torch.randn(2, 5, 3, 64, 64), 5)], make_engine("cpu", "fp32")
    )
    assert maps.shape == (2, 5, 64, 64)
    assert maps.reshape(2, -1).max(1).tolist() == pytest.approx([1, 1])


def test_a_map_is_read_by_hand():
    heat = np.zeros((10, 12), np.float32)
    heat[2:4, 3:6] = 0.6
    heat[3, 4] = 1.0
    heat[8, 10] = 0.7  # not connected
    point, box = read_map(heat)
    assert point.tolist() == [3.5, 4.5]
    assert box.tolist() == [2, 3, 4, 6]
    point, box = read_map(np.zeros((4, 4), np.float32))
    assert np.isnan(point).all()
    assert np.isnan(box).all()


def test_a_study_with_boxes_says_where_its_classifiers_looked(studies, tmp_path, monkeypatch):
    manifest = studies.cohort(24, 0)
    study = studies.finished(
        manifest,
        cohort={
            "manifest": str(manifest),
            "root": str(manifest.parent),
            "labels": ["malignant"],
            "boxes": "boxes.csv",
        },
        arms={"imagenet": ARMS["imagenet"], "features": {"kind": "features"}},
        **changed(SETTINGS, image={"size": 64}, report={"gallery": True}),
    )
    found = json.loads((study.out / "report.json").read_text())["localisation"]
    assert list(found["arms"]) == ["imagenet"]  # formulas look nowhere
    table = pd.read_csv(study.out / "localisation.csv")
    boxes = pd.read_csv(manifest.parent / "boxes.csv")
    assert set(table["image"]) == set(boxes["image"])
    assert table[["x", "y", "x1", "y1"]].max().max() <= 128
    assert table["x"].max() > 70  # in pixels of the image, not of the grid
    assert evaluate_localisation(table, boxes, 100) == found
    page = (study.out / "report.html").read_text()
    assert "Where the networks looked" in page
    gallery = json.loads((study.out / "gallery.json").read_text())
    shown = [
        row
        for arm in gallery["arms"]
        for kind in ("false_positives", "false_negatives")
        for row in arm[kind]
    ]
    assert gallery["heat"] == any(row["heat"] for row in shown)
    (formulas,) = [arm for arm in gallery["arms"] if arm["arm"] == "features"]
    errors = [row for kind in ("false_positives", "false_negatives") for row in formulas[kind]]
    assert errors
    assert all(row["heat"] is None for row in errors)
    # A report without pixels keeps what was measured.
    copied = study.copy(tmp_path / "s")
    monkeypatch.setenv("MEDTRANSFER_CACHE", str(tmp_path / "cache"))
    result = invoke("compare", copied.config, "--output", copied.out, "--report-only")
    assert result.exit_code == 0, result.output
    assert json.loads((copied.out / "report.json").read_text())["localisation"] == found
