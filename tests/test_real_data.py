"""On real breast ultrasound, where it is at hand: an image is the unit, as the set has no patient
ids.
"""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pytest
from medtransfer.data.cohort.sources import open_cohort
from medtransfer.data.grid.fixed import Fixed
from medtransfer.training.settings import TrainSettings
from PIL import Image
from skimage.transform import resize
from sklearn.metrics import roc_auc_score

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("busi")]  # they read the same images


def test_a_probe_on_imagenet_features_tells_malignant_from_benign(real_data, tmp_path):
    cohort = mt.Cohort.from_folders(real_data / "busi", ["benign", "malignant"], "malignant")
    assert len(cohort) == 647
    assert not cohort.patients_known
    mt.inspect_images(cohort, fixed=Fixed(96))  # decoded once, for all that follows
    net = mt.load_backbone("tf_efficientnet_lite0", weights="imagenet")
    fingerprint = mt.fingerprint(cohort)
    assert fingerprint.patients_per_class == {"0": 437, "1": 210}
    assert fingerprint.domain == "far"  # grey pictures saved as RGB
    plan = mt.plan_freeze(fingerprint, net, strategy="linear_probe")
    fold = mt.split_cohort(cohort, 5).fold(0)
    run = mt.fit(
        cohort,
        fold,
        mt.Classification(cohort.labels),
        net,
        plan,
        tmp_path,
        image=mt.ImageSettings(size=96),
        train=TrainSettings(precision="fp32"),
    )
    test = run.predictions[run.predictions["part"] == "test"]
    assert roc_auc_score(test["target"], test["probability"]) > 0.82


def test_near_duplicates_of_the_breast_images_are_found(real_data):
    """The reference: all pairs of the pictures reduced to 64 x 64 grey by scikit-image."""
    cohort = open_cohort(real_data / "busi")
    assert len(cohort) == 780
    found = mt.audit(cohort, shortcuts=False)
    small = np.stack(
        [
            resize(np.asarray(Image.open(p).convert("L"), float), (64, 64), anti_aliasing=True)
            for p in cohort.images["path"]
        ]
    )
    correlation = np.corrcoef(small.reshape(780, -1))
    names = cohort.images["image"].tolist()
    position = {name: i for i, name in enumerate(names)}
    wanted = {
        (names[i], names[j])
        for i, j in zip(*np.triu_indices(780, 1), strict=True)
        if correlation[i, j] > 0.99
    }
    assert len(wanted) == 79
    assert len(wanted & set(found.near_duplicates)) >= 0.9 * len(wanted)
    assert sum(correlation[position[a], position[b]] < 0.95 for a, b in found.near_duplicates) <= 5
    across = {c.images for c in found.conflicts}
    assert any({i.split("/")[0] for i in images} == {"benign", "malignant"} for images in across)


def test_splits_keep_clusters_together(real_data):
    cohort = mt.Cohort.from_folders(real_data / "busi", ["benign", "malignant"], "malignant")
    found = mt.audit(cohort, shortcuts=False)
    split = mt.split_cohort(cohort.grouped(found.near_duplicates), 5)
    plain = mt.split_cohort(cohort, 5)
    side = [dict(zip(s.parts["image"], s.parts["fold_0"], strict=True)) for s in (split, plain)]
    assert all(side[0][a] == side[0][b] for a, b in found.near_duplicates)
    assert any(side[1][a] != side[1][b] for a, b in found.near_duplicates)


def test_breast_mnist_states_what_is_positive(real_data):
    cohort = mt.Cohort.from_medmnist(real_data / "medmnist" / "breastmnist.npz")
    counts = cohort.images.groupby("split")["malignant"].agg(["size", "sum"])
    assert counts.loc["train"].tolist() == [546, 147]
    assert counts.loc["tune"].tolist() == [78, 21]
    assert counts.loc["test"].tolist() == [156, 42]
