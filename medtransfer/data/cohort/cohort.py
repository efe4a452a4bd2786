"""The cohort: a manifest, class folders or an archive, validated as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from medtransfer.data.annotations.annotations import Annotations, BoxSource
from medtransfer.data.annotations.boxes import LESION
from medtransfer.data.annotations.frames import fit_boxes, frames_of
from medtransfer.data.annotations.sources import read_annotations
from medtransfer.data.cohort.contents import (
    Contents,
    ReadOptions,
    choose_images,
    require_classes,
)
from medtransfer.data.cohort.identity import group_patients, join_look_alikes, refuse_look_alikes
from medtransfer.data.cohort.patterns import FileNames
from medtransfer.data.cohort.readers import (
    read_csv,
    read_files,
    read_folders,
    read_medmnist,
    read_named_files,
    read_rows,
)
from medtransfer.errors import CohortError
from medtransfer.text.account import Account


@dataclass(frozen=True, eq=False)
class Cohort:
    """A validated table of images.

    Attributes:
        images: one row per image, index 0..n-1, columns `image` (id), `patient`, `path` (absolute,
            see `read_image`), optionally `study`, `site`, `split` (train, tune or test), `group`
            (see `grouped`), and one float column of 0/1 per label.
        labels: names of the label columns; none for a cohort that is only to be checked.
        root: folder the ids are relative to.
        patients_known: False where the source has no patient ids, so that each image stands for a
            patient.
        by_study: images whose header names no patient, or the placeholder of an anonymiser, so that
            each study stands for one.
        ignored: files of the folder that were left out, with the reason.
        source: the arguments it was read with, for the record.
        salt: what the ids of patients from DICOM headers were hashed with; "" where ids were given.
        boxes: lesions, `image, x0, y0, x1, y1[, z0, z1], label` in pixel edges of the image, until
            `fitted` as the source states them; None where nobody drew any. See `read_annotations`.
        needed_classes: that every part must hold: 1 alone where the label is that of boxes, as
            images without any are then not needed. See `detecting`.
        accounts: what became of the files, rows and annotations that were handed over.
        notes: what was decided in reading them, in sentences.
        asks: what somebody has to look at, in sentences.
        alike: groups of patients whose ids look alike, such as 7 and 007; of DICOM headers images
            of theirs.
        annotated: the boxes as they were read, until they are fitted.
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
    needed_classes: tuple[int, ...] = (0, 1)
    accounts: tuple[Account, ...] = ()
    notes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    alike: tuple[tuple[str, ...], ...] = ()
    annotated: Annotations | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        images = len(self.images)
        labels = [f"{label}: {int(self.images[label].sum())} of {images}" for label in self.labels]
        boxes = [] if self.boxes is None else [f"{len(self.boxes)} boxes"]
        patients = f" of {self.images['patient'].nunique()} patients" if self.patients_known else ""
        return "; ".join([f"Cohort of {images} images{patients}", *labels, *boxes])

    @classmethod
    def from_contents(cls, contents: Contents) -> Cohort:
        """The cohort of what a reader found in a manifest, a folder or an archive."""
        return cls(**{member.name: getattr(contents, member.name) for member in fields(contents)})

    @classmethod
    def from_csv(
        cls,
        manifest: str | Path,
        root: str | Path = ".",
        labels: Sequence[str] = (),
        positive: str | None = None,
        salt: str | None = None,
        columns: Sequence[str] = (),
        outside: bool = False,
    ) -> Cohort:
        """Reads a manifest: columns `image`, `patient`, the labels, and optionally `study`, `site`,
        `split`.

        Args:
            manifest: CSV file with a header line. Where all images are DICOM, `patient` may be left
                out: ids then come from the headers, hashed.
            root: folder that the paths of column `image` are relative to.
            labels: label columns, each 0/1 (or false/true), or the names of two classes with
                `positive`.
            positive: the class that counts as 1.
            salt: for hashing ids from headers; drawn where left out.
            columns: others to keep, for subgroups or to leave out by; no other column is copied
                into a study.
            outside: images may lie outside of the root, or behind links that lead out of it.

        Raises:
            CohortError: with every fault, each with its row (the header is row 1).
        """
        labels = (labels,) if isinstance(labels, str) else tuple(labels)
        options = ReadOptions(salt, columns, outside=outside)
        return cls.from_contents(read_csv(Path(manifest), Path(root), labels, positive, options))

    @classmethod
    def from_folders(
        cls,
        root: str | Path,
        classes: Sequence[str] | None = None,
        positive: str | None = None,
        salt: str | None = None,
        outside: bool = False,
    ) -> Cohort:
        """Reads one folder per class. Patients are those of the DICOM headers, hashed; else each
        image stands for one.

        Args:
            root: folder that holds the class folders.
            classes: class folders; all folders below root where left out.
            positive: of two classes, the one that counts as 1; where left out, their names must
                tell (malignant against benign, yes against no; see `classes`). More than two
                classes give one label each.
            salt: for hashing ids from headers; drawn where left out.
            outside: links may lead out of the root.

        Raises:
            CohortError: a folder is missing or holds no image, there are not two classes, or
                nothing says which counts as 1.
        """
        options = ReadOptions(salt, outside=outside)
        return cls.from_contents(read_folders(Path(root), classes, positive, options))

    @classmethod
    def from_files(
        cls, root: str | Path, salt: str | None = None, boxes: str = "", outside: bool = False
    ) -> Cohort:
        """Every image below a folder, without labels: to be checked, not to be learnt from.

        Args:
            root: the folder.
            salt: for hashing ids from headers; drawn where left out.
            boxes: a source of boxes, whose files are no images; see `BoxSource`.
            outside: links may lead out of the root.

        Raises:
            CohortError: the folder holds no image.
        """
        options = ReadOptions(salt, outside=outside)
        return cls.from_contents(read_files(Path(root), boxes, options))

    @classmethod
    def from_medmnist(cls, path: str | Path, positive: str | None = None) -> Cohort:
        """Reads an archive of MedMNIST with its official split (val becomes tune). It names no
        patients.

        Args:
            path: the `.npz` file.
            positive: the class that counts as 1, by name or number. The classes of the archives
                with two are known (BreastMNIST: 0 is malignant); elsewhere they are numbers, and it
                must be given.

        Raises:
            CohortError: no such archive, or a class that it does not have.
        """
        return cls.from_contents(read_medmnist(Path(path), positive))

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
        options: ReadOptions = ReadOptions(),  # noqa: B008  # frozen
    ) -> Cohort:
        """Images with lesion boxes, for detection. The one label, `lesion`, is 1 where an image has
        a box.

        Args:
            root: folder of the images.
            boxes: where the boxes are; see `BoxSource`.
            manifest: CSV with `image`, `patient` and optionally `study`, `site`, `split`; every
                image below the root where left out.
            kinds: labels of boxes that count; all where left out.
            patient: see `FileNames`; without a manifest.
            unnamed: see `FileNames`.
            parts: folder below the root -> train, tune or test: an official split.
            options: what is rarely said otherwise; see `ReadOptions`.

        Raises:
            CohortError: see `from_csv` and `read_annotations`; or names that give no patient.
        """
        root = Path(root)
        if not root.is_dir():
            raise CohortError(
                f"{root}: no such folder. Set cohort.root to the folder that holds the images."
            )
        if manifest is not None:
            contents = read_rows(Path(manifest), root, options=options)
        else:
            names = FileNames(patient, unnamed, parts or {})
            contents = read_named_files(root, names, boxes, options)
        source: dict[str, Any] = {
            "root": str(root),
            "manifest": None if manifest is None else str(manifest),
            "patient": patient,
            "unnamed": unnamed,
            "parts": dict(parts or {}),
        }
        source |= {"outside": True} if options.outside else {}
        cohort = cls.from_contents(replace(contents, source=source))
        return cohort.with_boxes(boxes, kinds, options.axes).detecting()

    def with_boxes(self, source: str, kinds: Sequence[str] = (), axes: str | None = None) -> Cohort:
        """The cohort with lesion boxes, without the images of which their source does not say
        whether they hold a lesion.

        Args:
            source: where the boxes are; see `BoxSource`.
            kinds: labels of boxes that count; all where left out.
            axes: what the coordinates count: `file`, `ras` or `mm`; see `frames.Frame`.

        Raises:
            CohortError: see `read_annotations`; or the source says so of no image.
        """
        others = [name for name, _ in self.ignored]
        read = read_annotations(BoxSource(source, kinds, axes), self.images, self.root, others)
        choice = choose_images(
            self.images,
            [image not in read.unknown for image in self.images["image"]],
            next(iter(read.unknown.values()), ""),
            self.root.name,
        )
        if choice.images.empty:
            raise CohortError(f"{source}: says of no image whether it holds a lesion.")
        settings: dict[str, Any] = {"boxes": source, "kinds": list(kinds)}
        settings |= {"axes": axes} if axes else {}
        return replace(
            self,
            images=choice.images,
            ignored=(*self.ignored, *choice.ignored),
            boxes=read.boxes,
            annotated=read,
            source={**self.source, **settings},
            accounts=(*self.accounts, *choice.accounts, *read.accounts),
            notes=(
                *self.notes,
                *read.notes,
                *_compare_with_label(choice.images, self.labels, read),
            ),
            asks=(*self.asks, *read.asks),
        )

    def detecting(self) -> Cohort:
        """The cohort with one label, `lesion`: whether an image has a box."""
        if self.boxes is None:
            raise CohortError("detection needs lesion boxes. Set cohort.boxes.")
        boxed = self.images["image"].isin(set(self.boxes["image"])).astype(float)
        images = self.images.drop(columns=list(self.labels), errors="ignore").assign(
            **{LESION: boxed}
        )
        return replace(self, images=images, labels=(LESION,), needed_classes=(1,))

    def fitted(self, facts: pd.DataFrame) -> Cohort:
        """The cohort with its boxes on the pixels of each image, from what was noted of them; see
        `fit_boxes`.
        """
        if self.boxes is None:
            return self
        read = self.annotated
        # Masks, and boxes that have been fitted, are on the pixels as they are read.
        axes, sizes = (
            ("ras", {}) if read is None or read.placed else (self.source.get("axes"), read.sizes)
        )
        fitted = fit_boxes(self.boxes, frames_of(facts), str(self.root), axes, sizes)
        lost = int((~self.boxes["image"].isin(set(facts.loc[facts["error"] == "", "image"]))).sum())
        of_unread = (
            [f"{lost} box(es) are of images that cannot be read, and are left out with these"]
            if lost
            else []
        )
        notes, asks = (*self.notes, *of_unread, *fitted.notes), (*self.asks, *fitted.asks)
        return replace(self, boxes=fitted.boxes, annotated=None, notes=notes, asks=asks)

    def told_apart(self, choice: str) -> Cohort:
        """The cohort with an answer for patients whose ids look alike: `same` (one patient),
        `different`, or `ask`; see `identity`.

        Raises:
            CohortError: there are some, and the answer is `ask`.
        """
        if not self.alike:
            return self
        of_headers = bool(self.salt)
        if choice == "ask":
            refuse_look_alikes(
                self.alike, of_headers, str(self.source.get("manifest") or self.root)
            )
        source = {**self.source, "look_alikes": choice}
        if choice == "different":
            return replace(self, alike=(), source=source)
        images, note = join_look_alikes(self.images, self.alike, of_headers)
        return replace(self, images=images, alike=(), notes=(*self.notes, note), source=source)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def meaning(self) -> dict[str, str]:
        """By label, what 1 means: the name of the positive class, or the label itself."""
        positive = self.source.get("positive") if len(self.labels) == 1 else None
        return {label: positive or label for label in self.labels}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids, patients, groups, official parts, labels and boxes (not of the
        pixels).
        """
        columns = [
            c
            for c in ("image", "patient", "group", "split", *self.labels)
            if c in self.images.columns
        ]
        content = self.images[columns].to_csv(index=False) + (
            "" if self.boxes is None else self.boxes.to_csv(index=False)
        )
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def units(self) -> pd.Series:
        """What must not be divided, per image: the group where there is one, else the patient."""
        return self.images["group"] if "group" in self.images.columns else self.images["patient"]

    def grouped(self, pairs: Sequence[tuple[str, str]]) -> Cohort:
        """The cohort with a column `group`: patients that share near-duplicates are one unit.

        Args:
            pairs: ids of images that show the same, from `audit`. A group is named by its first
                patient.
        """
        return replace(self, images=self.images.assign(group=group_patients(self.images, pairs)))

    def without(self, images: Sequence[str]) -> Cohort:
        """The cohort less the images with these ids."""
        table = self.images[~self.images["image"].isin(list(images))].reset_index(drop=True)
        if table.empty:
            raise CohortError("no image is left after leaving out the unreadable ones.")
        boxes = (
            None
            if self.boxes is None
            else self.boxes[self.boxes["image"].isin(table["image"])].reset_index(drop=True)
        )
        require_classes(
            table, self.labels, "after leaving out unreadable images", self.needed_classes
        )
        return replace(self, images=table, boxes=boxes)

    def unit_labels(self, label: str) -> pd.Series:
        """One value per unit: the highest of its images."""
        return self.images.groupby(self.units.to_numpy(), sort=True)[label].max()


def _compare_with_label(
    images: pd.DataFrame, labels: Sequence[str], annotations: Annotations
) -> list[str]:
    """How many images have a box against their label, or none though it says so, in a sentence."""
    if len(labels) != 1:
        return []
    (label,) = labels
    boxed = images["image"].isin(set(annotations.boxes["image"]))
    positive = images[label] == 1
    counts = int((boxed & ~positive).sum()), int((positive & ~boxed).sum())
    if not any(counts):
        return []
    return [
        (
            f"{counts[0]} image(s) with {label} = 0 have a box, and {counts[1]} with {label} = 1 "
            "have none"
        )
    ]
