"""Studies of volumes: slices, slabs, whole volumes, and what the record says of them. See also
test_end_to_end.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from medtransfer.records.study_folder import StudyFolder
from medtransfer.study.engines import choose_engines
from medtransfer.study.environment import write_record

from networks import SMALL
from studies import LITE, SETTINGS, changed, prepare_study, write_config

IMAGE = {"image": {"slices": 10, "slice_spacing": 10}}
SLABS = [
    ({"slab": 3, "pooling": "max"}, "with neighbours (3 as channels); pooled by max"),
    ({"slab": 5, "pooling": "mean"}, "with neighbours (5 as channels); pooled by mean"),
    ({"channels": 1, "recipe": {"mean": 0.4, "std": 0.3}}, "pooled by attention"),
]


@pytest.fixture
def volumes(studies):
    return studies.cohort(24, 3, volumes=True)


@pytest.mark.parametrize(("change", "seen"), SLABS)
def test_slabs_channels_and_recipes_are_recorded(volumes, tmp_path, change, seen):
    arms = {"imagenet": {"backbone": LITE, "weights": "imagenet", **change}}
    prepared = prepare_study(
        write_config(tmp_path, volumes, arms=arms, **changed(SETTINGS, **IMAGE)),
        "plan.strategy=lp_ft",
    )
    folder = StudyFolder(tmp_path / "out")
    folder.path.mkdir()
    write_record(prepared, choose_engines(prepared, folder), folder)
    arm = json.loads((tmp_path / "out" / "environment.json").read_text())["arms"]["imagenet"]
    assert arm["slices"].startswith("up to 10 axial slices, 10 mm apart")
    assert arm["slices"].endswith(seen)
    channels = change.get("channels", change.get("slab"))
    assert len(arm["recipe"]["mean"]) == channels
    assert arm["recipe"]["mean"][0] == change.get("recipe", {"mean": 0.5})["mean"]
    assert len(arm["weights"]["changes"]) == (channels != 3)


@pytest.mark.xdist_group("slabs")
def test_slabs_and_slices_of_one_channel_are_trained(studies, volumes):
    """Neighbours as channels under a probe, and one network for each slice whose attention is
    learnt.
    """
    arms = {
        "slab": {
            "backbone": LITE,
            "weights": "imagenet",
            **SLABS[0][0],
            "plan": {"strategy": "linear_probe"},
        },
        "wide": {"backbone": SMALL, **SLABS[1][0]},
        "single": {"backbone": SMALL, **SLABS[2][0]},
    }
    study = studies.finished(
        volumes, arms=arms, **changed(SETTINGS, **IMAGE, train={"batch_size": 4})
    )
    weights = {
        arm: safetensors.numpy.load_file(
            study.out / "runs" / arm / "fold-0" / "seed-0" / "weights.safetensors"
        )
        for arm in arms
    }
    first = {"slab": "conv_stem.weight", "wide": "conv1.0.weight", "single": "conv1.0.weight"}
    channels = {
        arm: weights[arm][f"backbone.network.{name}"].shape[1] for arm, name in first.items()
    }
    assert channels == {"slab": 3, "wide": 5, "single": 1}
    assert (
        np.abs(weights["single"]["head.scores.weight"]).max() > 0
    )  # what tells the slices apart has been learnt
    assert "head.scores.weight" not in weights["slab"]
    environment = json.loads((study.out / "environment.json").read_text())["arms"]
    for arm, (_, seen) in zip(arms, SLABS, strict=True):
        assert environment[arm]["slices"].endswith(seen)
