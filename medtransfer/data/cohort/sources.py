"""What a path holds: a manifest, an archive, class folders, or images; and a second cohort, matched
to a study by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medtransfer.data.cohort.classes import (
    guess_positive,
    match_classes,
    refuse_odd_classes,
    refuse_opposite,
)
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.data.cohort.contents import ReadOptions
from medtransfer.data.cohort.listing import list_images, subfolders
from medtransfer.data.cohort.manifest import RESERVED, guess_labels, read_cells, refuse_reserved
from medtransfer.data.cohort.readers import read_classes, read_rows
from medtransfer.data.images.medmnist import is_archive, read_labels
from medtransfer.data.images.reading import is_image_file
from medtransfer.errors import CohortError
from medtransfer.text.account import make_account

# Why a folder of a second cohort was not read.
BESIDE = "class folder that the study does not know"


def open_cohort(
    path: str | Path,
    root: str | Path | None = None,
    labels: Sequence[str] = (),
    positive: str | None = None,
    flat: bool = False,
    outside: bool = False,
) -> Cohort:
    """What a path holds, to be checked: a manifest, an archive, class folders, or a folder of
    images.

    Args:
        path: CSV, `.npz` or folder.
        root: folder that a manifest's images are relative to; its own folder where left out.
        labels: see `Cohort.from_csv`; the columns of 0 and 1 where left out.
        positive: the class that counts as 1, of a manifest or of two class folders.
        flat: the folders below are not classes.
        outside: images may lie outside of the root, or behind links that lead out of it.

    Raises:
        CohortError: nothing to check.
    """
    path = Path(path)
    if not path.exists():
        raise CohortError(
            f"{path}: no such file or folder. Give a manifest (CSV), a MedMNIST archive, or a "
            "folder of images."
        )
    table = not path.is_dir() and not is_archive(path)
    idle = {"root": root is not None and not table, "label": bool(labels) and not table}
    if any(idle.values()):
        raise CohortError(
            f"{path}: {', '.join(name for name, given in idle.items() if given)} is for "
            "manifests; leave it out."
        )
    if path.is_dir():
        listings = (
            {}
            if flat
            else {name: list_images(path / name, path, outside) for name in subfolders(path)}
        )
        empty = {name: files for name, files in listings.items() if not files.images}
        listings = {name: files for name, files in listings.items() if files.images}
        # A folder per patient or series is no class: classes are few, and have several images each.
        if 2 <= len(listings) <= 12 and all(len(files.images) > 1 for files in listings.values()):
            refuse_odd_classes(list(listings), str(path))
            if positive is not None:
                return Cohort.from_folders(path, list(listings), positive, outside=outside)
            # Without a word which counts as 1, each class is a label of its own.
            cohort = Cohort.from_contents(
                read_classes(path, listings, guess_positive(list(listings)))
            )
            beside = [row for files in empty.values() for row in files.left_out]
            account = make_account("files", f"{path}, folders without an image", 0, beside)
            return replace(cohort, accounts=(*cohort.accounts, account)) if beside else cohort
        if positive is not None:
            raise CohortError(
                f"{path}: holds no class folders, so that no class counts as 1; leave positive out."
            )
        return Cohort.from_files(path, outside=outside)
    if is_archive(path):
        return Cohort.from_medmnist(path, positive)
    if is_image_file(path):
        raise CohortError(f"{path}: is one image. Give its folder, or a manifest (CSV).")
    labels = tuple(labels) or guess_labels(path)
    refuse_reserved(labels)
    root = Path(root) if root is not None else path.parent
    options = ReadOptions(outside=outside)
    cohort = Cohort.from_contents(read_rows(path, root, labels, positive, options))
    if not labels:
        cohort.source["unused"] = [
            column for column in read_cells(path).columns if column not in RESERVED
        ]
    return cohort


def open_second(
    path: str | Path,
    label: str,
    classes: Sequence[str],
    meaning: str,
    root: str | Path | None = None,
    labels: Sequence[str] = (),
    positive: str | None = None,
) -> Cohort:
    """A second cohort for the models of a study: its classes are matched by name, never by order,
    and its label is called as the study's.

    Args:
        path, root: see `open_cohort`.
        label: of the study.
        classes: of the study, where they are known. meaning: the one that counts as 1 there.
        labels, positive: of the second cohort, where its names are others: said aloud, they are
            believed.

    Raises:
        CohortError: names do not fit, and nobody said which is which; or see `open_cohort`.
    """
    path = Path(path)
    for name in (*labels, positive):
        if name:
            refuse_opposite(name, meaning, classes, str(path))
    if path.is_dir():
        cohort = _open_folders(path, classes, meaning, positive)
    elif path.exists() and is_archive(path):
        names = read_labels(path)[1]
        if positive is None:
            match_classes([meaning], names, str(path))
        cohort = Cohort.from_medmnist(path, positive or meaning)
    else:
        cohort = _open_manifest(path, label, classes, meaning, root, labels, positive)
    if len(cohort.labels) != 1:
        raise CohortError(
            f"{path}: has the labels {', '.join(cohort.labels) or 'none'}, the study has {label}. "
            "Name one with --label."
        )
    # From here on its classes are those of the study.
    source = {**cohort.source, "classes": list(classes), "positive": meaning}
    return replace(
        cohort,
        images=cohort.images.rename(columns={cohort.labels[0]: label}),
        labels=(label,),
        source=source,
    )


def _open_folders(path: Path, classes: Sequence[str], meaning: str, positive: str | None) -> Cohort:
    folders = [name for name in subfolders(path) if list_images(path / name, path).images]
    shown, remedy = (
        ", ".join(folders) or "none",
        "Keep two class folders there, or give a manifest with 0 and 1.",
    )
    if len(folders) < 2:
        raise CohortError(
            f"{path}: holds no two class folders ({shown}). Give class folders, a manifest (CSV) "
            "or an archive."
        )
    if positive is None:
        wanted = match_classes(classes or [meaning], folders, str(path))
        if not classes and len(folders) != 2:  # of the study only the positive class has a name
            raise CohortError(
                f"{path}: {meaning} counts as 1, and which of the others ({shown}) counts as 0 is "
                f"not known. {remedy}"
            )
        return _noting(Cohort.from_folders(path, wanted if classes else folders, meaning), folders)
    if positive not in folders:
        raise CohortError(f"{path}: no class folder {positive}. Folders here: {shown}.")
    if positive != meaning and (positive in classes or meaning in folders):
        raise CohortError(
            f"{path}: in the study {meaning} counts as 1, not {positive}. Leave --positive out."
        )
    others = [name for name in folders if name != positive]
    negative = [name for name in others if name in classes and name != meaning][:1] or others
    if len(negative) != 1:
        raise CohortError(
            f"{path}: {positive} counts as 1, and which of {', '.join(others)} counts as 0 is not "
            f"known. {remedy}"
        )
    return _noting(Cohort.from_folders(path, [*negative, positive], positive), folders)


def _noting(cohort: Cohort, folders: Sequence[str]) -> Cohort:
    """The cohort with a note of the class folders beside those that were read."""
    beside = ((name, BESIDE) for name in folders if name not in cohort.source["classes"])
    return replace(cohort, ignored=(*cohort.ignored, *beside))


def _open_manifest(
    path: Path,
    label: str,
    classes: Sequence[str],
    meaning: str,
    root: str | Path | None,
    labels: Sequence[str],
    positive: str | None,
) -> Cohort:
    if not path.exists():
        raise CohortError(
            f"{path}: no such file or folder. Give a manifest (CSV), a MedMNIST archive, or class "
            "folders."
        )
    table = read_cells(path)
    column = labels[0] if labels else label
    if not labels and column not in table.columns:
        others = [name for name in table.columns if name not in RESERVED]
        raise CohortError(
            f"{path}: no column {label}, which is the study's label. Columns here: "
            f"{', '.join(others) or 'none'}. If one of them means the "
            "same, name it with --label; 1 must mean what it means in the study."
        )
    values = {value for value in table[column] if value} if column in table.columns else set()
    numbers = {value.lower() for value in values} <= {"0", "1", "0.0", "1.0", "true", "false"}
    if positive is None and values and not numbers:
        match_classes(classes or [meaning], sorted(values), f"{path}, column {column}")
        positive = meaning
    return open_cohort(path, root, [column], positive)
