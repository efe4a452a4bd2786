"""The cohort: a manifest, class folders or an archive, validated as a whole."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from medtransfer.data.annotations.boxes import LESION
from medtransfer.data.annotations.frames import fit_boxes, frames_of
from medtransfer.data.annotations.sources import Annotations, is_annotation
from medtransfer.data.cohort.archives import read_archive
from medtransfer.data.cohort.boxed import add_boxes, name_by_files
from medtransfer.data.cohort.classes import choose_folders, find_positive
from medtransfer.data.cohort.identity import group_patients, join_look_alikes, refuse_look_alikes
from medtransfer.data.cohort.listing import (
    Found,
    Listed,
    alike_owners,
    find_owner,
    known_by_study,
    list_images,
    name_patients,
    subfolders,
    tabulate,
)
from medtransfer.data.cohort.manifest import label_of, read_cells, read_manifest, refuse_reserved
from medtransfer.data.images.reading import is_image_file
from medtransfer.errors import CohortError
from medtransfer.text.account import Account, make_account
from medtransfer.text.names import look_alikes

_READ = (
    "PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, DICOM, NIfTI, NRRD and MetaImage files are read."
)


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
        detects: its label is that of boxes; images without any are then not needed. See
            `detecting`.
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
    detects: bool = False
    accounts: tuple[Account, ...] = ()
    notes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    alike: tuple[tuple[str, ...], ...] = ()
    annotated: Annotations | None = field(default=None, repr=False)

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

        Raises:
            CohortError: with every fault, each with its row (the header is row 1).
        """
        manifest, root, labels = (
            Path(manifest),
            Path(root),
            (labels,) if isinstance(labels, str) else tuple(labels),
        )
        if not labels:
            raise CohortError(
                f"{manifest}: name at least one label column. Columns here: "
                f"{', '.join(read_cells(manifest).columns)}."
            )
        refuse_reserved(labels)
        others = [column for column in columns if column not in labels]
        return cls.from_manifest(manifest, root, labels, positive, salt, others, outside)._checked(
            str(manifest)
        )

    @classmethod
    def from_manifest(
        cls,
        manifest: Path,
        root: Path,
        labels: tuple[str, ...],
        positive: str | None,
        salt: str | None,
        columns: Sequence[str] = (),
        outside: bool = False,
    ) -> Cohort:
        """As `from_csv`, with or without labels, and without the check that both classes are
        there.
        """
        images, account, notes = read_manifest(manifest, root, labels, positive, columns, outside)
        source: dict[str, Any] = {
            "manifest": str(manifest),
            "root": str(root),
            "labels": list(labels),
            "positive": positive,
        }
        source |= {"outside": True} if outside else {}
        read: dict[str, Any] = {"source": source, "accounts": (account,), "notes": tuple(notes)}
        if "patient" in images.columns:
            return cls(
                images, labels, root.resolve(), alike=tuple(look_alikes(images["patient"])), **read
            )
        owners, used = [find_owner(path) for path in images["path"]], salt or secrets.token_hex(16)
        images.insert(1, "patient", name_patients(owners, used))
        if unnamed := int((images["patient"] == "").sum()):
            raise CohortError(
                f"{manifest}: no column patient, and {unnamed} image(s) are not DICOM files that "
                "name one. Add the column: without it the "
                "same patient could be trained and tested on."
            )
        by_study = known_by_study(images["image"].tolist(), owners)
        alike = tuple(alike_owners(images["image"].tolist(), owners))
        return cls(
            images, labels, root.resolve(), by_study=by_study, salt=used, alike=alike, **read
        )

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
        root = Path(root)
        names = choose_folders(root, subfolders(root) if root.is_dir() else None, classes, positive)
        listed = {name: list_images(root / name, root, outside) for name in names}
        empty = [name for name, files in listed.items() if not files.images]
        if empty:
            raise CohortError(f"{root / empty[0]}: no image in this folder. {_READ}")
        chosen = positive or find_positive(names, str(root)) if len(names) == 2 else None
        cohort = cls.from_listed_classes(root, listed, chosen, salt)
        return replace(cohort, source={**cohort.source, "outside": True}) if outside else cohort

    @classmethod
    def from_listed_classes(
        cls, root: Path, listed: dict[str, Listed], positive: str | None, salt: str | None
    ) -> Cohort:
        """Class folders that have been listed; `positive`: the one of two classes that counts as 1;
        None: each class is a label.
        """
        names = list(listed)
        positives = [positive] if positive is not None else names
        rows = [
            {label_of(p): float(p == name) for p in positives}
            for name, files in listed.items()
            for _ in files.images
        ]
        loose = [p for p in sorted(root.iterdir()) if p.is_file() and not p.name.startswith(".")]
        ignored = [
            (
                p.name,
                "beside the class folders" if is_image_file(p) else "not an image",
                is_image_file(p),
            )
            for p in loose
        ]
        ignored += [row for files in listed.values() for row in files.left_out]
        source = {"root": str(root), "classes": names, "positive": positive}
        labels = tuple(label_of(p) for p in positives)
        found = [file for files in listed.values() for file in files.images]
        return cls._from_listing(
            found, pd.DataFrame(rows), labels, root, ignored, source, salt
        )._checked(str(root))

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
        axes: str | None = None,
        outside: bool = False,
    ) -> Cohort:
        """Images with lesion boxes, for detection. The one label, `lesion`, is 1 where an image has
        a box.

        Args:
            root: folder of the images.
            boxes: where the boxes are; see `read_annotations`.
            manifest: CSV with `image`, `patient` and optionally `study`, `site`, `split`; every
                image below the root where left out.
            kinds: labels of boxes that count; all where left out.
            patient: regular expression that finds the patient in the name of a file: its first
                group, or all of it. Without a manifest; patients are those of DICOM headers where
                left out, else each image stands for one.
            unnamed: images whose name gives no patient: `own` (each stands for one) or `leave_out`.
            parts: folder below the root -> train, tune or test: an official split.
            salt, columns, outside: see `from_csv`.
            axes: what the coordinates of boxes count: `file`, `ras` or `mm`; see `frames.Frame`.

        Raises:
            CohortError: see `from_csv` and `read_annotations`; or names that give no patient.
        """
        root = Path(root)
        if not root.is_dir():
            raise CohortError(
                f"{root}: no such folder. Set cohort.root to the folder that holds the images."
            )
        if manifest is not None:
            cohort = cls.from_manifest(Path(manifest), root, (), None, salt, columns, outside)
        else:
            cohort = cls.from_files(root, salt, boxes, outside)
            cohort = name_by_files(cohort, patient, unnamed, parts or {})
        source: dict[str, Any] = {
            "root": str(root),
            "manifest": None if manifest is None else str(manifest),
        }
        source |= {"patient": patient, "unnamed": unnamed, "parts": dict(parts or {})}
        source |= {"outside": True} if outside else {}
        return replace(cohort, source=source).with_boxes(boxes, kinds, axes).detecting()

    def with_boxes(self, source: str, kinds: Sequence[str] = (), axes: str | None = None) -> Cohort:
        """The cohort with lesion boxes, from `source`, without the images of which that does not
        say whether they hold a lesion.

        See `read_annotations`; axes: see `frames.Frame`.
        """
        return add_boxes(self, source, kinds, axes)

    def detecting(self) -> Cohort:
        """The cohort with one label, `lesion`: whether an image has a box."""
        if self.boxes is None:
            raise CohortError("detection needs lesion boxes. Set cohort.boxes.")
        there = self.images["image"].isin(set(self.boxes["image"])).astype(float)
        images = self.images.drop(columns=list(self.labels), errors="ignore").assign(
            **{LESION: there}
        )
        return replace(self, images=images, labels=(LESION,), detects=True)

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

    @classmethod
    def from_files(
        cls, root: str | Path, salt: str | None = None, boxes: str = "", outside: bool = False
    ) -> Cohort:
        """Every image below a folder, without labels: to be checked, not to be learnt from. What
        `boxes` is read from is none.
        """
        root = Path(root)
        listed = list_images(root, root, outside)
        files = [file for file in listed.images if not is_annotation(file.name, boxes)]
        ignored = [
            (name, reason, asks)
            for name, reason, asks in listed.left_out
            if not is_annotation(name, boxes)
        ]
        if not files:
            raise CohortError(f"{root}: no image in this folder. {_READ}")
        return cls._from_listing(
            files,
            pd.DataFrame(index=range(len(files))),
            (),
            root,
            ignored,
            {"root": str(root)},
            salt,
        )

    @classmethod
    def _from_listing(
        cls,
        files: list[Found],
        targets: pd.DataFrame,
        labels: tuple[str, ...],
        root: Path,
        ignored: list[tuple[str, str, bool]],
        source: dict[str, Any],
        salt: str | None,
    ) -> Cohort:
        images, owned, by_study, used = tabulate(files, salt)
        return cls(
            pd.concat([images, targets], axis=1),
            labels,
            root.resolve(),
            owned,
            by_study,
            tuple((name, reason) for name, reason, _ in ignored),
            source,
            used,
            accounts=(
                make_account(
                    "files", root.resolve().name, sum(file.files for file in files), ignored
                ),
            ),
            alike=tuple(alike_owners(images["image"].tolist(), [file.owner for file in files])),
        )

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
        path = Path(path)
        images, chosen = read_archive(path, positive)
        label = label_of(chosen)
        source = {"manifest": str(path), "root": str(path.parent), "labels": [], "positive": chosen}
        images[label] = images.pop("value")
        account = make_account("images", path.name, len(images), [])
        return cls(
            images, (label,), path.parent.resolve(), False, source=source, accounts=(account,)
        )._checked(str(path))

    def _checked(self, source: str) -> Cohort:
        for label in self.labels:
            counts = self.images[label].value_counts()
            if len(counts) < 2:
                raise CohortError(
                    f"{source}: every image has {label} = {counts.index[0]:g}. Both classes are "
                    "needed to learn and to evaluate."
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
        kept = self.images[~self.images["image"].isin(list(images))].reset_index(drop=True)
        if kept.empty:
            raise CohortError("no image is left after leaving out the unreadable ones.")
        boxes = (
            None
            if self.boxes is None
            else self.boxes[self.boxes["image"].isin(kept["image"])].reset_index(drop=True)
        )
        cohort = replace(self, images=kept, boxes=boxes)
        return cohort if self.detects else cohort._checked("after leaving out unreadable images")

    def unit_labels(self, label: str) -> pd.Series:
        """One value per unit: the highest of its images."""
        return self.images.groupby(self.units.to_numpy(), sort=True)[label].max()
