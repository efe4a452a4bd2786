"""The cohort: a manifest or class folders, validated as a whole, and its fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from medtransfer.data.reading import is_image_file
from medtransfer.errors import CohortError, LeakageError, list_faults

PARTS = ("train", "tune", "test")
_OPTIONAL = ("study", "site", "split")
_PART_NAMES = {"train": "train", "training": "train", "tune": "tune", "val": "tune", "valid": "tune", "validation": "tune", "test": "test"}
_MASK_SUFFIX = re.compile(r"_mask(_\d+)?$")


@dataclass(frozen=True, eq=False)
class Cohort:
    """A validated table of images.

    Attributes:
        images: one row per image, index 0..n-1, columns `image` (id), `patient`, `path` (absolute),
            optionally `study`, `site`, `split` (train, tune or test), and one float column of 0/1 per label.
        labels: names of the label columns.
        root: folder the ids are relative to.
        patients_known: False where the source has no patient ids, so that each image stands for a patient.
        ignored: files of the folder that were left out, with the reason.
        source: the arguments it was read with, for the record.
    """

    images: pd.DataFrame
    labels: tuple[str, ...]
    root: Path
    patients_known: bool = True
    ignored: tuple[tuple[str, str], ...] = ()
    source: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_csv(cls, manifest: str | Path, root: str | Path = ".", labels: Sequence[str] = (), positive: str | None = None) -> Cohort:
        """Reads a manifest: columns `image`, `patient`, the labels, and optionally `study`, `site`, `split`.

        Args:
            manifest: CSV file with a header line.
            root: folder that the paths of column `image` are relative to.
            labels: label columns, each 0/1 (or false/true), or the names of two classes with `positive`.
            positive: the class that counts as 1.

        Raises:
            CohortError: with every fault, each with its row (the header is row 1).
            LeakageError: a patient stands in two parts of the official split.
        """
        manifest, root = Path(manifest), Path(root)
        table = _read_manifest(manifest)
        labels = tuple(labels)
        if not labels:
            raise CohortError(f"{manifest}: name at least one label column. Columns here: {', '.join(table.columns)}.")
        _refuse_reserved(labels)
        missing = [name for name in ("image", "patient", *labels) if name not in table.columns]
        if missing:
            raise CohortError(f"{manifest}: no column {', '.join(missing)}. Columns here: {', '.join(table.columns)}.")
        if table.empty:
            raise CohortError(f"{manifest}: no rows below the header. Add one row per image.")
        for column in table.columns:
            table[column] = table[column].str.strip()
        faults = _check_rows(table, root)
        values = {label: _parse_labels(table[label], label, positive, faults) for label in labels}
        if "split" in table.columns:
            faults += [
                f"row {i + 2}: split is {v!r}; use train, tune or test"
                for i, v in enumerate(table["split"])
                if v.lower() not in _PART_NAMES
            ]
        if faults:
            raise CohortError(list_faults(f"{manifest}: {len(faults)} fault(s)", faults, "Mend these rows and run again."))
        images = table[["image", "patient"]].copy()
        images["path"] = [str((root / name).resolve()) for name in table["image"]]
        for column in _OPTIONAL:
            if column in table.columns:
                images[column] = table[column]
        if "split" in images.columns:
            images["split"] = [_PART_NAMES[v.lower()] for v in images["split"]]
            _refuse_shared_patients(images, manifest)
        for label in labels:
            images[label] = values[label]
        source = {"manifest": str(manifest), "root": str(root), "labels": list(labels), "positive": positive}
        return cls(images, labels, root.resolve(), source=source)._checked(str(manifest))

    @classmethod
    def from_folders(cls, root: str | Path, classes: Sequence[str] | None = None, positive: str | None = None) -> Cohort:
        """Reads one folder per class. The image stands for the patient, as folders name none.

        Args:
            root: folder that holds the class folders.
            classes: two class folders; all folders below root where left out.
            positive: the class that counts as 1; the second one where left out.

        Raises:
            CohortError: a folder is missing or holds no image, or there are not two classes.
        """
        root = Path(root)
        if not root.is_dir():
            raise CohortError(f"{root}: no such folder. Set cohort.root to the folder that holds the class folders.")
        here = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        names = list(classes) if classes else here
        found = f"Folders in {root}: {', '.join(here) or 'none'}."
        if len(set(names)) != 2 or len(names) != 2:
            raise CohortError(
                f"two classes are compared, {len(names)} given ({', '.join(names) or 'none'}). {found} Name two with classes."
            )
        absent = [name for name in names if name not in here]
        if absent:
            raise CohortError(f"no class folder {', '.join(absent)}. {found}")
        positive = positive or names[1]
        if positive not in names:
            raise CohortError(f"positive: {positive!r} is none of the classes {', '.join(names)}.")
        label = f"class {positive}" if positive in _RESERVED else positive
        rows: list[dict[str, object]] = []
        ignored: list[tuple[str, str]] = []
        for name in names:
            files, left_out = _list_images(root / name, root)
            ignored += left_out
            if not files:
                raise CohortError(f"{root / name}: no image in this folder. PNG, JPEG, TIFF and DICOM files are read.")
            rows += [{"image": f, "patient": f, "path": str((root / f).resolve()), label: float(name == positive)} for f in files]
        source = {"root": str(root), "classes": names, "positive": positive}
        return cls(pd.DataFrame(rows), (label,), root.resolve(), False, tuple(ignored), source)._checked(str(root))

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

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids, patients, official parts and labels (not of the pixels)."""
        columns = [c for c in ("image", "patient", "split", *self.labels) if c in self.images.columns]
        return hashlib.sha256(self.images[columns].to_csv(index=False).encode()).hexdigest()

    def without(self, images: Sequence[str]) -> Cohort:
        """The cohort less the images with these ids."""
        kept = self.images[~self.images["image"].isin(list(images))].reset_index(drop=True)
        if kept.empty:
            raise CohortError("no image is left after leaving out the unreadable ones.")
        return replace(self, images=kept)._checked("after leaving out unreadable images")

    def patient_labels(self, label: str) -> pd.Series:
        """One value per patient: the highest of the patient's images."""
        return self.images.groupby("patient", sort=True)[label].max()

    def fingerprint(self) -> Fingerprint:
        """Reads every image and describes the cohort. See `Fingerprint`."""
        from medtransfer.data.audit import inspect_images

        return make_fingerprint(self, inspect_images(self))


@dataclass(frozen=True)
class Fingerprint:
    """What the plan needs to know of a cohort.

    Attributes:
        patients_per_class, images_per_class: counts by class, "0" and "1" of the first label.
        ndim: 2 for images, 3 for volumes.
        modality: DICOM modality where all images agree, else "mixed" or "unknown".
        colour: True where images carry colour.
        domain: near (colour photographs, histology, endoscopy) or far (grey US, MR, CT) from ImageNet.
        rows, columns: quantiles 0, 0.5 and 1 of the image shape in pixels.
        intensity: quantiles 0, 0.5 and 1 of the images' 99th percentile of intensity.
    """

    patients_per_class: dict[str, int]
    images_per_class: dict[str, int]
    ndim: int
    modality: str
    colour: bool
    domain: Literal["near", "far"]
    rows: tuple[float, float, float]
    columns: tuple[float, float, float]
    intensity: tuple[float, float, float]

    @property
    def smallest_class(self) -> int:
        """Patients in the smaller class: the number the plan depends on."""
        return min(self.patients_per_class.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def make_fingerprint(cohort: Cohort, facts: pd.DataFrame) -> Fingerprint:
    """Describes a cohort from the facts of its images (see `audit.inspect_images`), unreadable ones left out."""
    readable = facts[facts["error"] == ""]
    label = cohort.labels[0]
    images = cohort.images[["image", "patient"]].assign(**{_TARGET: cohort.images[label]})
    merged = images.merge(readable, on="image", how="inner", validate="one_to_one")
    if merged.empty:
        raise CohortError(f"{cohort.root}: none of the {len(cohort)} images can be read. `medtransfer check` lists the reasons.")
    # A patient with a positive and a negative image counts once, as positive.
    by_patient = merged.groupby("patient")[_TARGET].max()
    modalities = sorted(set(merged["modality"]) - {""})
    colour = bool(merged["colour"].mean() > 0.5)

    def quantiles(column: str) -> tuple[float, float, float]:
        low, middle, high = (float(q) for q in np.quantile(merged[column].to_numpy(float), [0.0, 0.5, 1.0]))
        return low, middle, high

    return Fingerprint(
        patients_per_class={"0": int((by_patient == 0).sum()), "1": int((by_patient == 1).sum())},
        images_per_class={"0": int((merged[_TARGET] == 0).sum()), "1": int((merged[_TARGET] == 1).sum())},
        ndim=2,
        modality=modalities[0] if len(modalities) == 1 else ("mixed" if modalities else "unknown"),
        colour=colour,
        domain="near" if colour else "far",
        rows=quantiles("rows"),
        columns=quantiles("columns"),
        intensity=quantiles("intensity"),
    )


def _read_manifest(manifest: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(manifest, dtype=str, index_col=False, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except FileNotFoundError as error:
        raise CohortError(f"{manifest}: no such file. Give a CSV with the columns image, patient and your label.") from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CohortError(f"{manifest}: not a readable CSV ({error}). Save it as comma-separated UTF-8 with a header.") from error
    table.columns = [str(column).strip() for column in table.columns]
    twice = sorted({c for c in table.columns if list(table.columns).count(c) > 1})
    if twice:
        raise CohortError(f"{manifest}: column {', '.join(twice)} appears twice. Rename or remove one.")
    return table


def _check_rows(table: pd.DataFrame, root: Path) -> list[str]:
    """Faults of ids and files, each with its row; the header is row 1."""
    faults: list[str] = []
    first_row: dict[Path, int] = {}
    for i, (image, patient) in enumerate(zip(table["image"], table["patient"], strict=True)):
        row = i + 2
        if not image:
            faults.append(f"row {row}: image is empty")
            continue
        # The file, not its spelling: `a.png` and `./a.png` are one image.
        file = (root / image).resolve()
        if file in first_row:
            faults.append(f"row {row}: image {image!r} is already in row {first_row[file]}; every image needs one row")
        else:
            first_row[file] = row
            if not (root / image).is_file():
                faults.append(f"row {row}: no file {root / image}")
        if not patient:
            faults.append(f"row {row}: patient is empty; without it the same patient could be trained and tested on")
    return faults


# Names of the tables that labels stand beside.
_RESERVED = {"image", "patient", "path", "study", "site", "split", "file_digest"}
_EMPTY = {"", "nan", "na", "n/a", "none", "null"}
_TARGET = "(target)"
_WORDS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def _parse_labels(column: pd.Series, label: str, positive: str | None, faults: list[str]) -> list[float]:
    parse: Callable[[str], float | None]
    if positive is not None:
        names = sorted(name for name in set(column) if name.lower() not in _EMPTY)
        if positive not in names or len(names) > 2:
            faults.append(f"column {label}: expected {positive!r} and one other class, found {', '.join(names[:6]) or 'nothing'}")
            return []
        parse = {name: float(name == positive) for name in names}.get
    else:
        parse = lambda text: _WORDS.get(text.lower())  # noqa: E731  a two-way choice of one function
    values: list[float] = []
    for i, text in enumerate(column):
        value = None if text.lower() in _EMPTY else parse(text)
        if value is None:
            what = "is empty" if text.lower() in _EMPTY else f"is {text!r}"
            allowed = "a class name" if positive is not None else "0 or 1 (or name the positive class with cohort.positive)"
            faults.append(f"row {i + 2}: label {label} {what}; use {allowed}, or remove the row")
        values.append(np.nan if value is None else value)
    return values


def _refuse_reserved(labels: tuple[str, ...]) -> None:
    clash = [label for label in labels if label in _RESERVED]
    if clash:
        raise CohortError(f"label {', '.join(clash)}: this name is taken by a column of the study's own tables. Rename the column.")


def _refuse_shared_patients(images: pd.DataFrame, manifest: Path) -> None:
    parts = images.groupby("patient", sort=False)["split"].unique()
    shared = [f"patient {patient}: {', '.join(names)}" for patient, names in parts.items() if len(names) > 1]
    if shared:
        raise LeakageError(
            list_faults(
                f"{manifest}: {len(shared)} patient(s) stand in more than one part of column split",
                shared,
                "Put all images of a patient into one part, or remove the column to have a split made by patient.",
            )
        )


def _list_images(folder: Path, root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Image files below a folder as ids relative to root, and what was left out with the reason."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts))
    stems = {p.with_suffix("") for p in files}
    images: list[str] = []
    ignored: list[tuple[str, str]] = []
    for path in files:
        name = path.relative_to(root).as_posix()
        if not is_image_file(path):
            ignored.append((name, "not an image"))
        # Public sets (BUSI) keep `x_mask.png` beside `x.png`; a mask trained on as an image would give the label away.
        elif _MASK_SUFFIX.search(path.stem) and path.with_name(_MASK_SUFFIX.sub("", path.stem)) in stems:
            ignored.append((name, "mask of another image"))
        else:
            images.append(name)
    return images, ignored
