"""Class folders, folders of images, and what lies beside them."""

from __future__ import annotations

from pathlib import Path

import medtransfer as mt
import nibabel as nib
import numpy as np
import pytest
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.sources import open_cohort
from medtransfer.errors import CohortError

from wild_files import pictures


def test_class_folders_are_read(write_png):
    for name in (
        "benign/a.png",
        "benign/b.png",
        "malignant/a.png",
        "malignant/a_mask.png",
        "malignant/.hidden.png",
    ):
        root = write_png(name, np.full((8, 8), 7, np.uint8)).parents[1]
    (root / "benign" / "notes.txt").write_text("x")
    cohort = mt.Cohort.from_folders(root, positive="malignant")
    assert cohort.images["image"].tolist() == ["benign/a.png", "benign/b.png", "malignant/a.png"]
    assert cohort.images["malignant"].tolist() == [0, 0, 1]
    assert not cohort.patients_known
    assert dict(cohort.ignored) == {
        "benign/notes.txt": "not an image (.txt)",
        "malignant/a_mask.png": "mask of another image",
        "malignant/.hidden.png": "hidden: its name, or that of its folder, begins with a dot",
    }


def test_faulty_folders_are_refused(tmp_path, write_png):
    with pytest.raises(CohortError, match="no such folder"):
        mt.Cohort.from_folders(tmp_path / "none")
    (tmp_path / "benign").mkdir()
    with pytest.raises(CohortError, match="two classes are compared, 1 given"):
        mt.Cohort.from_folders(tmp_path)
    (tmp_path / "malignant").mkdir()
    write_png("benign/a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(CohortError, match="malignant: no image in this folder"):
        mt.Cohort.from_folders(tmp_path)
    with pytest.raises(
        CohortError, match="no class folder cancer. Folders in .*: benign, malignant"
    ):
        mt.Cohort.from_folders(tmp_path, ["benign", "cancer"])


def test_what_is_to_be_checked_is_recognised(manifest, write_png, tmp_path):
    path = manifest(patients=4, views=1)
    assert open_cohort(path).labels == ("malignant",)
    for name in ("a/1", "a/2", "b/1", "b/2", "c/1", "c/2"):
        root = write_png(f"three/{name}.png", np.full((8, 8), 7, np.uint8)).parents[1]
    assert open_cohort(root).labels == ("a", "b", "c")
    assert open_cohort(root, flat=True).labels == ()
    assert open_cohort(root / "a").images["image"].tolist() == ["1.png", "2.png"]
    with pytest.raises(CohortError, match="no such file or folder"):
        open_cohort(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="no image in this folder"):
        open_cohort(tmp_path / "empty")


def test_masks_of_volumes_are_no_images(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x.nii.gz", "x_mask.nii.gz", "y.nii.gz"):
            nib.save(
                nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)),
                tmp_path / folder / name,
            )
    cohort = mt.Cohort.from_folders(tmp_path, positive="b")
    assert cohort.images["image"].tolist() == [
        "a/x.nii.gz",
        "a/y.nii.gz",
        "b/x.nii.gz",
        "b/y.nii.gz",
    ]
    assert ("a/x_mask.nii.gz", "mask of another image") in cohort.ignored


def test_folders_without_images_and_loose_images_do_not_change_the_classes(tmp_path, write_png):
    for name in ("a/1", "a/2", "b/1", "b/2", "loose"):
        write_png(f"set/{name}.png", np.full((8, 8), 7, np.uint8))
    (tmp_path / "set" / "checked").mkdir()
    cohort = open_cohort(tmp_path / "set")
    assert cohort.labels == ("a", "b")
    assert ("loose.png", "beside the class folders") in cohort.ignored
    with pytest.raises(CohortError, match="label is for manifests"):
        open_cohort(tmp_path / "set", labels=["x"])
    with pytest.raises(CohortError, match="is one image"):
        open_cohort(tmp_path / "set" / "loose.png")


def test_masks_beside_images_are_no_images(tmp_path):
    for kind in ("benign", "malignant"):
        pictures(
            tmp_path / kind,
            [
                "a.png",
                "a_segmentation.png",
                "b.png",
                "b-mask.png",
                "c.png",
                "c_seg.png",
                "c_seg_1.png",
                "d_mask.png",
            ],
        )
    cohort = Cohort.from_folders(tmp_path)
    assert [Path(name).name for name in cohort.images["image"][:4]] == [
        "a.png",
        "b.png",
        "c.png",
        "d_mask.png",
    ]  # d_mask is of no d


def test_folders_of_parts_are_no_classes_and_alike_ones_are_asked_about(tmp_path):
    for part in ("train", "val", "test"):
        pictures(tmp_path / "xray" / part / "NORMAL", ["a.png", "b.png"])
    with pytest.raises(CohortError, match="are parts of a set, not classes"):
        open_cohort(tmp_path / "xray")
    for kind in ("benign", "Benign "):
        pictures(tmp_path / "twice" / kind, ["a.png", "b.png"])
    with pytest.raises(CohortError, match="look alike"):
        open_cohort(tmp_path / "twice")
