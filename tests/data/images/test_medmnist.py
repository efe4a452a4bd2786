"""Facts that an archive of MedMNIST states twice."""

from __future__ import annotations

import numpy as np
import pytest
from medtransfer.data.images.medmnist import read_labels
from medtransfer.data.images.reading import read_image
from medtransfer.errors import CohortError, ImageError


def archive(path, **changes):
    arrays = {
        f"{part}_images": np.full((4, 28, 28), 9, np.uint8) for part in ("train", "val", "test")
    }
    arrays |= {
        f"{part}_labels": np.array([[0], [1], [0], [1]], np.uint8)
        for part in ("train", "val", "test")
    }
    np.savez(
        path, **{name: array for name, array in (arrays | changes).items() if array is not None}
    )
    return path


def test_a_sound_archive(tmp_path):
    labels, names = read_labels(
        archive(tmp_path / "a.npz", val_labels=np.array([0.0, 1.0, 1.0, 0.0]))
    )
    assert labels["val"].tolist() == [0, 1, 1, 0]
    assert names == ("0", "1")
    image = read_image(f"{tmp_path / 'a.npz'}#val/1")
    assert not image.provenance["hazards"]
    assert (image.provenance["turn"], image.provenance["stored_shape"]) == (
        [[0, 1], [1, 1]],
        [28, 28],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros((3, 1), int)}, "4 images but 3 labels in train"),
        ({"train_labels": np.zeros((4, 5), int)}, r"train_labels has shape \(4, 5\)"),
        ({"val_labels": np.array([0, 1, -1, -1])}, "val_labels holds 2 values that are no class"),
        ({"test_labels": np.array([0, 1.5, 1, 1])}, "test_labels holds 1 values that are no class"),
        (
            {"test_labels": np.array([0, np.nan, 1, np.inf])},
            "test_labels holds 2 values that are no class",
        ),
        (
            {"val_images": np.zeros((4, 64, 64), np.uint8)},
            "differ in shape .train 28 x 28, val 64 x 64, test 28 x 28.",
        ),
        ({"val_images": np.zeros((4, 28, 28, 3), np.uint8)}, "differ in shape"),
        ({"test_labels": None}, "no array test_labels"),
        ({"train_images": np.array(["Doe"] * 4)}, "train_images holds .* not numbers"),
    ],
)
def test_contradictions_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(CohortError, match=rf"a\.npz: .*{message}"):
        read_labels(archive(tmp_path / "a.npz", **changes))


def test_values_of_another_type_are_told(tmp_path):
    path = archive(tmp_path / "a.npz", train_images=np.full((4, 28, 28), 3000, np.uint16))
    image = read_image(f"{path}#train/0")
    assert image.array.max() == 3000
    assert image.provenance["hazards"] == [
        ("values", "images are uint16, not uint8; values are taken as they are")
    ]
    path = archive(tmp_path / "b.npz", train_images=np.full((4, 28, 28), np.nan))
    with pytest.raises(ImageError, match="784 pixels are NaN or infinite"):
        read_image(f"{path}#train/0")
