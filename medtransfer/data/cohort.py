"""The cohort: a manifest, class folders or an archive, validated as a whole."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from medtransfer.data.boxes import LESION, fit_boxes, is_annotation, read_boxes
from medtransfer.data.classes import find_positive
from medtransfer.data.listing import Found, find_owner, known_by_study, list_images, name_patients
from medtransfer.data.manifest import RESERVED, read_manifest, read_table, refuse_reserved
from medtransfer.data.medmnist import PARTS as MEDMNIST_PARTS
from medtransfer.data.medmnist import read_labels
from medtransfer.data.naming import find_parts, find_patients
from medtransfer.data.reading import is_image_file
from medtransfer.data.similarity import cluster_pairs
from medtransfer.errors import CohortError

if TYPE_CHECKING:
    from medtransfer.data.fingerprint import Fingerprint

Listed = tuple[list[Found], list[tuple[str, str]]]
_READ = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, NRRD and MHA files are read."


@dataclass(frozen=True, eq=False)
class Cohort:
    """A validated table of images.

    Attributes:
        images: one row per image, index 0..n-1, columns `image` (id), `patient`, `path` (absolute, see
            `read_image`), optionally `study`, `site`, `split` (train, tune or test), `group` (see
            `grouped`), and one float column of 0/1 per label.
        labels: names of the label columns; none for a cohort that is only to be checked.
        root: folder the ids are relative to.
        patients_known: False where the source has no patient ids, so that each image stands for a patient.
        by_study: images whose header names no patient, or the placeholder of an anonymiser, so that each study stands for one.
        ignored: files of the folder that were left out, with the reason.
        source: the arguments it was read with, for the record.
        salt: what the ids of patients from DICOM headers were hashed with; "" where ids were given.
        boxes: lesions, `image, x0, y0, x1, y1[, z0, z1], label` in pixel edges of the image; None where nobody drew any. See
            `read_boxes`.
        detects: its label is that of boxes; images without any are then not needed. See `detecting`.
    """

    images: pd.DataFrame
    labels: tuple[str, ...]
    root: Path
    patients_known: bool = True
    by_study: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    salt: str = field(default="", repr=False)
    boxes: pd.DataFrame | None = None
    detects: bool = False

    @classmethod
    def from_csv(
        cls,
        manifest: str | Path,
        root: str | Path = ".",
        labels: Sequence[str] = (),
        positive: str | None = None,
        salt: str | None = None,
        columns: Sequence[str] = (),
    ) -> Cohort:
        """Reads a manifest: columns `image`, `patient`, the labels, and optionally `study`, `site`, `split`.

        Args:
            manifest: CSV file with a header line. Where all images are DICOM, `patient` may be left out:
                ids then come from the headers, hashed.
            root: folder that the paths of column `image` are relative to.
            labels: label columns, each 0/1 (or false/true), or the names of two classes with `positive`.
            positive: the class that counts as 1.
            salt: for hashing ids from headers; drawn where left out.
            columns: others to keep, for subgroups or to leave out by; no other column is copied into a study.

        Raises:
            CohortError: with every fault, each with its row (the header is row 1).
        """
        manifest, root, labels = Path(manifest), Path(root), (labels,) if isinstance(labels, str) else tuple(labels)
        if not labels:
            raise CohortError(f"{manifest}: name at least one label column. Columns here: {', '.join(read_table(manifest).columns)}.")
        refuse_reserved(labels)
        others = [column for column in columns if column not in labels]
        return cls.from_manifest(manifest, root, labels, positive, salt, others)._checked(str(manifest))

    @classmethod
    def from_manifest(
        cls, manifest: Path, root: Path, labels: tuple[str, ...], positive: str | None, salt: str | None, columns: Sequence[str] = ()
    ) -> Cohort:
        """As `from_csv`, with or without labels, and without the check that both classes are there."""
        images = read_manifest(manifest, root, labels, positive, columns)
        source = {"manifest": str(manifest), "root": str(root), "labels": list(labels), "positive": positive}
        if "patient" in images.columns:
            return cls(images, labels, root.resolve(), source=source)
        owners, used = [find_owner(path) for path in images["path"]], salt or secrets.token_hex(16)
        images.insert(1, "patient", name_patients(owners, used))
        if unnamed := int((images["patient"] == "").sum()):
            raise CohortError(
                f"{manifest}: no column patient, and {unnamed} image(s) are not DICOM files that name one. Add the column: without it the "
                "same patient could be trained and tested on."
            )
        by_study = known_by_study(images["image"].tolist(), owners)
        return cls(images, labels, root.resolve(), by_study=by_study, source=source, salt=used)

    @classmethod
    def from_folders(
        cls, root: str | Path, classes: Sequence[str] | None = None, positive: str | None = None, salt: str | None = None
    ) -> Cohort:
        """Reads one folder per class. Patients are those of the DICOM headers, hashed; else each image stands for one.

        Args:
            root: folder that holds the class folders.
            classes: class folders; all folders below root where left out.
            positive: of two classes, the one that counts as 1; where left out, their names must tell (malignant against benign, yes
                against no; see `classes`). More than two classes give one label each.
            salt: for hashing ids from headers; drawn where left out.

        Raises:
            CohortError: a folder is missing or holds no image, there are not two classes, or nothing says which counts as 1.
        """
        root = Path(root)
        if not root.is_dir():
            raise CohortError(f"{root}: no such folder. Set cohort.root to the folder that holds the class folders.")
        here = subfolders(root)
        names = list(classes) if classes else here
        found = f"Folders in {root}: {', '.join(here) or 'none'}."
        if len(set(names)) != len(names) or len(names) < 2:
            given = f"{len(names)} given ({', '.join(names) or 'none'})"
            raise CohortError(f"two classes are compared, {given}. {found} Name two with classes.")
        absent = [name for name in names if name not in here]
        if absent:
            raise CohortError(f"no class folder {', '.join(absent)}. {found}")
        if positive is not None and (positive not in names or len(names) != 2):
            raise CohortError(f"positive: {positive!r} is none of two classes ({', '.join(names)}).")
        listed = {name: list_images(root / name, root) for name in names}
        empty = [name for name, (files, _) in listed.items() if not files]
        if empty:
            raise CohortError(f"{root / empty[0]}: no image in this folder. {_READ}")
        chosen = positive or find_positive(names, str(root)) if len(names) == 2 else None
        return cls.from_listed_classes(root, listed, chosen, salt)

    @classmethod
    def from_listed_classes(cls, root: Path, listed: dict[str, Listed], positive: str | None, salt: str | None) -> Cohort:
        """Class folders that have been listed; `positive`: the one of two classes that counts as 1; None: each class is a label."""
        names = list(listed)
        positives = [positive] if positive is not None else names
        rows = [{_label(p): float(p == name) for p in positives} for name, (files, _) in listed.items() for _ in files]
        loose = [p.name for p in sorted(root.iterdir()) if p.is_file() and not p.name.startswith(".") and is_image_file(p)]
        ignored = [*((name, "beside the class folders") for name in loose), *(row for _, left_out in listed.values() for row in left_out)]
        source = {"root": str(root), "classes": names, "positive": positive}
        labels = tuple(_label(p) for p in positives)
        found = [file for files, _ in listed.values() for file in files]
        return cls._from_listing(found, pd.DataFrame(rows), labels, root, ignored, source, salt)._checked(str(root))

    @classmethod
    def from_boxes(
        cls,
        root: str | Path,
        boxes: str,
        manifest: str | Path | None = None,
        kinds: Sequence[str] = (),
        patient: str | None = None,
        unnamed: Literal["own", "leave_out"] | None = None,
        parts: Mapping[str, str] | None = None,
        salt: str | None = None,
        columns: Sequence[str] = (),
    ) -> Cohort:
        """Images with lesion boxes, for detection. The one label, `lesion`, is 1 where an image has a box.

        Args:
            root: folder of the images.
            boxes: where the boxes are; see `read_boxes`.
            manifest: CSV with `image`, `patient` and optionally `study`, `site`, `split`; every image below the root where left out.
            kinds: labels of boxes that count; all where left out.
            patient: regular expression that finds the patient in the name of a file: its first group, or all of it. Without a
                manifest; patients are those of DICOM headers where left out, else each image stands for one.
            unnamed: images whose name gives no patient: `own` (each stands for one) or `leave_out`.
            parts: folder below the root -> train, tune or test: an official split.
            salt, columns: see `from_csv`.

        Raises:
            CohortError: see `from_csv` and `read_boxes`; or names that give no patient.
        """
        root = Path(root)
        if not root.is_dir():
            raise CohortError(f"{root}: no such folder. Set cohort.root to the folder that holds the images.")
        if manifest is not None:
            cohort = cls.from_manifest(Path(manifest), root, (), None, salt, columns)
        else:
            cohort = cls.from_files(root, salt, boxes)
            if patient is not None:
                names = find_patients(cohort.images["image"].tolist(), patient, unnamed is None)
                own = [name or image for name, image in zip(names, cohort.images["image"], strict=True)]
                named = "" not in names or unnamed == "leave_out"
                cohort = replace(cohort, images=cohort.images.assign(patient=own), patients_known=named, by_study=())
                cohort = cohort._keeping([bool(name) or unnamed == "own" for name in names], "its name gives no patient")
            if parts:
                where = find_parts(cohort.images["image"].tolist(), parts)
                cohort = replace(cohort, images=cohort.images.assign(split=where))._keeping(
                    list(map(bool, where)), "in none of cohort.parts"
                )
        source: dict[str, Any] = {"root": str(root), "manifest": None if manifest is None else str(manifest)}
        source |= {"patient": patient, "unnamed": unnamed, "parts": dict(parts or {})}
        return replace(cohort, source=source).with_boxes(boxes, kinds).detecting()

    def _keeping(self, kept: Sequence[bool], reason: str) -> Cohort:
        """The cohort with some of its images; why the others were left out is noted."""
        left_out = ((image, reason) for image, keep in zip(self.images["image"], kept, strict=True) if not keep)
        return replace(self, images=self.images[list(kept)].reset_index(drop=True), ignored=(*self.ignored, *left_out))

    def with_boxes(self, source: str, kinds: Sequence[str] = ()) -> Cohort:
        """The cohort with lesion boxes, from `source`; see `read_boxes`."""
        boxes = read_boxes(source, self.images, self.root, kinds, [name for name, _ in self.ignored])
        return replace(self, boxes=boxes, source={**self.source, "boxes": source, "kinds": list(kinds)})

    def detecting(self) -> Cohort:
        """The cohort with one label, `lesion`: whether an image has a box."""
        if self.boxes is None:
            raise CohortError("detection needs lesion boxes. Set cohort.boxes.")
        there = self.images["image"].isin(set(self.boxes["image"])).astype(float)
        images = self.images.drop(columns=list(self.labels), errors="ignore").assign(**{LESION: there})
        return replace(self, images=images, labels=(LESION,), detects=True)

    def fitted(self, shapes: Mapping[str, tuple[int, ...]]) -> Cohort:
        """The cohort with its boxes checked against the pixels of each image; see `fit_boxes`."""
        return self if self.boxes is None else replace(self, boxes=fit_boxes(self.boxes, dict(shapes), str(self.root)))

    @classmethod
    def from_files(cls, root: str | Path, salt: str | None = None, boxes: str = "") -> Cohort:
        """Every image below a folder, without labels: to be checked, not to be learnt from. What `boxes` is read from is none."""
        root = Path(root)
        found, left_out = list_images(root, root)
        files = [file for file in found if not is_annotation(file.name, boxes)]
        ignored = [(name, reason) for name, reason in left_out if not is_annotation(name, boxes)]
        if not files:
            raise CohortError(f"{root}: no image in this folder. {_READ}")
        return cls._from_listing(files, pd.DataFrame(index=range(len(files))), (), root, ignored, {"root": str(root)}, salt)

    @classmethod
    def _from_listing(
        cls,
        files: list[Found],
        targets: pd.DataFrame,
        labels: tuple[str, ...],
        root: Path,
        ignored: list[tuple[str, str]],
        source: dict[str, Any],
        salt: str | None,
    ) -> Cohort:
        names, owners = [file.name for file in files], [file.owner for file in files]
        # What cannot be read names nobody; it does not make the others unknown.
        owned = all(any(file.owner) for file in files if not file.damaged) and any(map(any, owners))
        used = (salt or secrets.token_hex(16)) if any(map(any, owners)) else ""
        hashed, by_study = name_patients(owners, used), known_by_study(names, owners)
        patients = [patient or name for patient, name in zip(hashed, names, strict=True)]
        images = pd.DataFrame({"image": names, "patient": patients, "path": [file.path for file in files]})
        return cls(pd.concat([images, targets], axis=1), labels, root.resolve(), owned, by_study, tuple(ignored), source, used)

    @classmethod
    def from_medmnist(cls, path: str | Path, positive: str | None = None) -> Cohort:
        """Reads an archive of MedMNIST with its official split (val becomes tune). It names no patients.

        Args:
            path: the `.npz` file.
            positive: the class that counts as 1, by name or number. The classes of the archives with two
                are known (BreastMNIST: 0 is malignant); elsewhere they are numbers, and it must be given.

        Raises:
            CohortError: no such archive, or a class that it does not have.
        """
        path = Path(path)
        labels, names = read_labels(path)
        if positive is not None and positive.isdigit() and int(positive) < len(names):
            positive = names[int(positive)]
        if positive is None:
            positive = "malignant" if "malignant" in names else names[1] if len(names) == 2 and not names[1].isdigit() else None
        if positive not in names:
            raise CohortError(f"{path}: positive is {positive!r}; name one of the classes {', '.join(names)}.")
        rows = [
            {"image": f"{path.name}#{part}/{row}", "path": f"{path.resolve()}#{part}/{row}", "split": MEDMNIST_PARTS[part], "value": value}
            for part, values in labels.items()
            for row, value in enumerate(values)
        ]
        images = pd.DataFrame(rows)
        images.insert(1, "patient", images["image"])
        label = _label(positive)
        images[label] = (images.pop("value") == names.index(positive)).astype(float)
        source = {"manifest": str(path), "root": str(path.parent), "labels": [], "positive": positive}
        return cls(images, (label,), path.parent.resolve(), False, source=source)._checked(str(path))

    def _checked(self, source: str) -> Cohort:
        for label in self.labels:
            counts = self.images[label].value_counts()
            if len(counts) < 2:
                raise CohortError(
                    f"{source}: every image has {label} = {counts.index[0]:g}. Both classes are needed to learn and to evaluate."
                )
        return self

    def __len__(self) -> int:
        return len(self.images)

    @property
    def meaning(self) -> dict[str, str]:
        """By label, what 1 means: the name of the positive class, or the label itself."""
        positive = self.source.get("positive") if len(self.labels) == 1 else None
        return {label: positive or label for label in self.labels}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids, patients, groups, official parts, labels and boxes (not of the pixels)."""
        columns = [c for c in ("image", "patient", "group", "split", *self.labels) if c in self.images.columns]
        content = self.images[columns].to_csv(index=False) + ("" if self.boxes is None else self.boxes.to_csv(index=False))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def units(self) -> pd.Series:
        """What must not be divided, per image: the group where there is one, else the patient."""
        return self.images["group"] if "group" in self.images.columns else self.images["patient"]

    def grouped(self, pairs: Sequence[tuple[str, str]]) -> Cohort:
        """The cohort with a column `group`: patients that share near-duplicates are one unit.

        Args:
            pairs: ids of images that show the same, from `audit`. A group is named by its first patient.
        """
        codes, patients = pd.factorize(self.images["patient"])
        patient_of = dict(zip(self.images["image"], codes, strict=True))
        names = np.asarray(patients, dtype=object).copy()
        for group in cluster_pairs(len(patients), [(patient_of[a], patient_of[b]) for a, b in pairs]):
            names[list(group)] = patients[group[0]]
        return replace(self, images=self.images.assign(group=names[codes]))

    def without(self, images: Sequence[str]) -> Cohort:
        """The cohort less the images with these ids."""
        kept = self.images[~self.images["image"].isin(list(images))].reset_index(drop=True)
        if kept.empty:
            raise CohortError("no image is left after leaving out the unreadable ones.")
        boxes = None if self.boxes is None else self.boxes[self.boxes["image"].isin(kept["image"])].reset_index(drop=True)
        cohort = replace(self, images=kept, boxes=boxes)
        return cohort if self.detects else cohort._checked("after leaving out unreadable images")

    def unit_labels(self, label: str) -> pd.Series:
        """One value per unit: the highest of its images."""
        return self.images.groupby(self.units.to_numpy(), sort=True)[label].max()

    def fingerprint(self) -> Fingerprint:
        """Reads every image and describes the cohort. See `Fingerprint`."""
        from medtransfer.data.fingerprint import make_fingerprint
        from medtransfer.data.inspection import inspect_images

        return make_fingerprint(self, inspect_images(self))


def subfolders(root: Path) -> list[str]:
    """Names of the folders below a folder, hidden ones left out."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _label(name: str) -> str:
    return f"class {name}" if name in RESERVED else name  # a class folder may have the name of a column of the study's own tables
