"""On real breast ultrasound, where it is at hand: an image is the unit, as the set has no patient ids."""

from __future__ import annotations

import medtransfer as mt
from medtransfer.config import TrainSection
from sklearn.metrics import roc_auc_score


def test_a_probe_on_imagenet_features_tells_malignant_from_benign(real_data, tmp_path):
    cohort = mt.Cohort.from_folders(real_data / "busi", ["benign", "malignant"], "malignant")
    assert len(cohort) == 647
    assert not cohort.patients_known
    net = mt.load_backbone("tf_efficientnet_lite0", weights="imagenet")
    fingerprint = cohort.fingerprint()
    assert fingerprint.patients_per_class == {"0": 437, "1": 210}
    assert fingerprint.domain == "far"  # grey pictures saved as RGB
    plan = mt.plan_freeze(fingerprint, net, strategy="linear_probe")
    fold = mt.split_cohort(cohort, 5).fold(0)
    run = mt.fit(cohort, fold, mt.Classification(cohort.labels), net, plan, tmp_path, size=96, train=TrainSection(precision="fp32"))
    test = run.predictions[run.predictions["part"] == "test"]
    assert roc_auc_score(test["target"], test["probability"]) > 0.82
