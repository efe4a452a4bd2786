"""Archives of MedMNIST, with their official split."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pytest
from medtransfer.errors import CohortError


def test_archives_keep_their_split_and_state_their_labels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12), ("val", 6), ("test", 8)):
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 28, 28)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    cohort = mt.Cohort.from_medmnist(tmp_path / "breastmnist.npz")
    assert cohort.labels == ("malignant",)
    assert cohort.images["malignant"].tolist()[:4] == [1, 0, 1, 0]  # 0 is malignant
    assert cohort.images["split"].value_counts().to_dict() == {"train": 12, "test": 8, "tune": 6}
    assert not cohort.patients_known
    assert np.array_equal(
        mt.read_image(cohort.images["path"][14]).array[0], arrays["val_images"][2]
    )
    assert mt.split_cohort(cohort).official
    other = tmp_path / "unknown.npz"
    np.savez(other, **arrays)
    with pytest.raises(CohortError, match="name one of the classes 0, 1"):
        mt.Cohort.from_medmnist(other)
    assert mt.Cohort.from_medmnist(other, "1").labels == ("1",)
    np.savez(other, x=np.zeros(3))
    with pytest.raises(CohortError, match=r"holds train_images|no array"):
        mt.Cohort.from_medmnist(other)


def test_volumes_of_archives_and_colour(tmp_path):
    arrays = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = (
            np.random.default_rng(1).integers(0, 255, (4, 28, 28, 28)).astype(np.uint8)
        )
        arrays[f"{part}_labels"] = np.array([[0], [1], [0], [1]])
    np.savez(tmp_path / "nodulemnist3d_64.npz", **arrays)
    cohort = mt.Cohort.from_medmnist(tmp_path / "nodulemnist3d_64.npz")
    assert cohort.images["malignant"].tolist()[:4] == [0, 1, 0, 1]
    assert mt.read_image(cohort.images["path"][5]).array.shape == (1, 28, 28, 28)
