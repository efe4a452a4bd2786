"""Models trained here as a source of weights, never for images that they have seen; and weights
that were never trained.
"""

from __future__ import annotations

import shutil

import medtransfer as mt
import numpy as np
import pydicom
import pytest
import safetensors.numpy
import torch
from medtransfer.errors import LeakageError, WeightsError
from medtransfer.records.study_folder import StudyFolder
from medtransfer.report.build import build_report
from medtransfer.study.engines import choose_engines
from medtransfer.study.environment import write_record

from studies import LITE, invoke, prepare_study, write_config


def test_a_model_trained_here_is_a_source_of_weights(studies, tmp_path):
    """ImageNet, then this study, then another cohort; never the same images."""
    study = studies.finished(studies.cohort())
    folder = study.out / "runs" / "imagenet" / "fold-0" / "seed-0"
    net = mt.load_backbone(LITE, weights=f"study:{folder}")
    tensors = safetensors.numpy.load_file(folder / "weights.safetensors")
    for key, value in net.network.state_dict().items():
        assert np.array_equal(value.numpy(), tensors[f"backbone.network.{key}"])
    assert net.weights.trained
    assert net.recipe.mean == (0.5, 0.5, 0.5)
    assert net.weights.origin.startswith(
        "runs/imagenet/fold-0/seed-0/weights.safetensors, trained from imagenet 57934424"
    )
    assert set(net.weights.unused) == {"head.linear.bias", "head.linear.weight"}
    with pytest.raises(
        WeightsError, match="holds 4 trained models. Name the folder of one, such as study:"
    ):
        mt.load_backbone(LITE, weights=f"study:{study.out}")
    with pytest.raises(WeightsError, match="holds no trained model"):
        mt.load_backbone(LITE, weights=f"study:{tmp_path}")
    with pytest.raises(WeightsError, match=f"is a {LITE}, not a resnet18"):
        mt.load_backbone("resnet18", weights=f"study:{folder}")
    arms = {"imagenet": {"backbone": LITE, "weights": f"study:{folder}"}}
    for name in ("same", "next", "anew", "alone"):
        (tmp_path / name).mkdir()
    same = write_config(tmp_path / "same", study.manifest, arms=arms)
    with pytest.raises(LeakageError, match="images of .* belong to the study in"):
        prepare_study(same)
    other = studies.cohort(30, 9)
    result = invoke(
        "compare", write_config(tmp_path / "next", other, arms=arms), "--output", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    # Both phantoms call their patients P0000 and so on.
    assert "patient ids occur here and in the study in" in result.output
    # A third study, from the second: the images of the first are known still.
    third = (
        f"arms.imagenet.weights=study:{tmp_path / 'o' / 'runs' / 'imagenet' / 'fold-0' / 'seed-0'}"
    )
    with pytest.raises(LeakageError, match="belong to the study in"):
        prepare_study(same, third)
    # The same pixels in files that were written anew.
    shutil.copytree(study.manifest.parent, tmp_path / "anew", dirs_exist_ok=True)
    for path in (tmp_path / "anew").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "other"
        dataset.save_as(path)
    anew = write_config(tmp_path / "alone", tmp_path / "anew" / "manifest.csv", arms=arms)
    with pytest.raises(LeakageError, match="belong to the study in"):
        prepare_study(anew)
    shutil.copytree(folder, tmp_path / "lost")
    with pytest.raises(WeightsError, match="belongs to no study with a cohort.csv"):
        prepare_study(anew, f"arms.imagenet.weights=study:{tmp_path / 'lost'}")


def test_random_weights_are_never_frozen(studies, scores, tmp_path):
    manifest = studies.cohort()
    torch.save(mt.load_backbone(LITE, seed=5).network.state_dict(), tmp_path / "untrained.pth")
    arms = {"pretended": {"backbone": LITE, "weights": f"file:{tmp_path / 'untrained.pth'}"}}
    config = write_config(tmp_path, manifest, arms=arms)
    with pytest.raises(WeightsError, match="do not look like trained weights"):
        prepare_study(config)
    prepared = prepare_study(config, "plan.frozen_stages=0")  # all of it trains
    folder = StudyFolder(tmp_path / "out")
    folder.path.mkdir()
    write_record(prepared, choose_engines(prepared, folder), folder)
    mt.evaluate(scores({"pretended": 1.0}), bootstrap=100).save(tmp_path / "out" / "report.json")
    assert "do not look like trained ones" in build_report(tmp_path / "out", []).read_text()
    cohort = mt.Cohort.from_csv(manifest, manifest.parent, ["malignant"])
    net = mt.load_backbone(LITE)
    plan = mt.plan_freeze(mt.fingerprint(cohort), mt.load_backbone(LITE, weights="imagenet"))
    with pytest.raises(WeightsError, match="stages are to be frozen"):
        mt.fit(
            cohort,
            mt.split_cohort(cohort, folds=2).fold(0),
            mt.Classification(("malignant",)),
            net,
            plan,
            tmp_path / "run",
        )
