"""The readers of images with labels: manifests, class folders, folders of images, archives."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.data.annotations.sources import is_annotation
from medtransfer.data.cohort.archives import read_archive
from medtransfer.data.cohort.classes import choose_folders, find_positive
from medtransfer.data.cohort.contents import (
    Contents,
    ReadOptions,
    choose_images,
    require_classes,
)
from medtransfer.data.cohort.listing import ImageFile, Listing, list_images, subfolders
from medtransfer.data.cohort.manifest import label_of, read_cells, read_manifest, refuse_reserved
from medtransfer.data.cohort.owners import alike_owners, find_owner, known_by_study, name_patients
from medtransfer.data.cohort.patterns import FileNames, find_parts, find_patients
from medtransfer.data.images.reading import is_image_file
from medtransfer.errors import CohortError
from medtransfer.text.account import make_account
from medtransfer.text.names import look_alikes

_READ = (
    "PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, DICOM, NIfTI, NRRD and MetaImage files are read."
)


def read_csv(
    manifest: Path,
    root: Path,
    labels: Sequence[str],
    positive: str | None,
    options: ReadOptions,
) -> Contents:
    """A manifest with labels; see `Cohort.from_csv`."""
    if not labels:
        raise CohortError(
            f"{manifest}: name at least one label column. Columns here: "
            f"{', '.join(read_cells(manifest).columns)}."
        )
    refuse_reserved(labels)
    others = [column for column in options.columns if column not in labels]
    contents = read_rows(manifest, root, labels, positive, replace(options, columns=others))
    require_classes(contents.images, labels, str(manifest))
    return contents


def read_rows(
    manifest: Path,
    root: Path,
    labels: Sequence[str] = (),
    positive: str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008  # frozen
) -> Contents:
    """A manifest with or without labels, which may have images of one class alone; see
    `Cohort.from_csv`.
    """
    images, account, notes = read_manifest(
        manifest, root, labels, positive, options.columns, options.outside
    )
    source: dict[str, Any] = {
        "manifest": str(manifest),
        "root": str(root),
        "labels": list(labels),
        "positive": positive,
    }
    source |= {"outside": True} if options.outside else {}
    contents = Contents(
        images,
        tuple(labels),
        root.resolve(),
        source=source,
        accounts=(account,),
        notes=tuple(notes),
    )
    if "patient" in images.columns:
        return replace(contents, alike=tuple(look_alikes(images["patient"])))
    owners = [find_owner(path) for path in images["path"]]
    salt = options.salt or secrets.token_hex(16)
    images.insert(1, "patient", name_patients(owners, salt))
    if unnamed := int((images["patient"] == "").sum()):
        raise CohortError(
            f"{manifest}: no column patient, and {unnamed} image(s) are not DICOM files that name "
            "one. Add the column: without it the same patient could be trained and tested on."
        )
    ids = images["image"].tolist()
    return replace(
        contents,
        by_study=known_by_study(ids, owners),
        salt=salt,
        alike=tuple(alike_owners(ids, owners)),
    )


def read_folders(
    root: Path, classes: Sequence[str] | None, positive: str | None, options: ReadOptions
) -> Contents:
    """One folder per class; see `Cohort.from_folders`."""
    names = choose_folders(root, subfolders(root) if root.is_dir() else None, classes, positive)
    listings = {name: list_images(root / name, root, options.outside) for name in names}
    empty = [name for name, listing in listings.items() if not listing.images]
    if empty:
        raise CohortError(f"{root / empty[0]}: no image in this folder. {_READ}")
    if len(names) == 2 and positive is None:
        positive = find_positive(names, str(root))
    contents = read_classes(root, listings, positive, options.salt)
    if not options.outside:
        return contents
    return replace(contents, source={**contents.source, "outside": True})


def read_classes(
    root: Path,
    listings: Mapping[str, Listing],
    positive: str | None = None,
    salt: str | None = None,
) -> Contents:
    """Class folders that have been listed.

    Args:
        root: folder that holds the class folders.
        listings: by class, what its folder holds.
        positive: the one of two classes that counts as 1; None: each class is a label.
        salt: for hashing ids from headers; drawn where left out.

    Raises:
        CohortError: all images are of one class.
    """
    positives = [positive] if positive is not None else list(listings)
    rows = [
        {label_of(other): float(other == name) for other in positives}
        for name, listing in listings.items()
        for _ in listing.images
    ]
    loose = [p for p in sorted(root.iterdir()) if p.is_file() and not p.name.startswith(".")]
    left_out = [
        (
            path.name,
            "beside the class folders" if is_image_file(path) else "not an image",
            is_image_file(path),
        )
        for path in loose
    ]
    left_out += [row for listing in listings.values() for row in listing.left_out]
    files = [file for listing in listings.values() for file in listing.images]
    contents = _join_files(files, root, left_out, salt)
    labels = tuple(label_of(name) for name in positives)
    images = pd.concat([contents.images, pd.DataFrame(rows)], axis=1)
    require_classes(images, labels, str(root))
    source = {"root": str(root), "classes": list(listings), "positive": positive}
    return replace(contents, images=images, labels=labels, source=source)


def read_files(root: Path, boxes: str, options: ReadOptions) -> Contents:
    """Every image below a folder, without labels; see `Cohort.from_files`."""
    listing = list_images(root, root, options.outside)
    files = [file for file in listing.images if not is_annotation(file.name, boxes)]
    left_out = [row for row in listing.left_out if not is_annotation(row[0], boxes)]
    if not files:
        raise CohortError(f"{root}: no image in this folder. {_READ}")
    return replace(_join_files(files, root, left_out, options.salt), source={"root": str(root)})


def read_named_files(root: Path, names: FileNames, boxes: str, options: ReadOptions) -> Contents:
    """Every image below a folder, with patients and parts from the names of files; see `FileNames`.

    Raises:
        CohortError: a name that gives no patient, with `unnamed` None; or a folder without an
            image.
    """
    contents = read_files(root, boxes, options)
    if names.patient is not None:
        images = contents.images["image"].tolist()
        patients = find_patients(images, names.patient, names.unnamed is None)
        contents = replace(
            contents,
            images=contents.images.assign(
                patient=[patient or image for patient, image in zip(patients, images, strict=True)]
            ),
            patients_known="" not in patients or names.unnamed == "leave_out",
            by_study=(),
            alike=tuple(look_alikes(filter(None, patients))),
        )
        stays = [bool(patient) or names.unnamed == "own" for patient in patients]
        contents = _choose(contents, stays, "its name gives no patient")
    if names.parts:
        parts = find_parts(contents.images["image"].tolist(), names.parts)
        contents = replace(contents, images=contents.images.assign(split=parts))
        contents = _choose(contents, list(map(bool, parts)), "in none of cohort.parts")
    return contents


def read_medmnist(path: Path, positive: str | None) -> Contents:
    """An archive with its official split; see `Cohort.from_medmnist`."""
    images, positive = read_archive(path, positive)
    label = label_of(positive)
    images[label] = images.pop("value")
    require_classes(images, (label,), str(path))
    return Contents(
        images,
        (label,),
        path.parent.resolve(),
        patients_known=False,
        source={
            "manifest": str(path),
            "root": str(path.parent),
            "labels": [],
            "positive": positive,
        },
        accounts=(make_account("images", path.name, len(images), []),),
    )


def _choose(contents: Contents, stays: Sequence[bool], reason: str) -> Contents:
    choice = choose_images(contents.images, stays, reason, contents.root.name)
    return replace(
        contents,
        images=choice.images,
        ignored=(*contents.ignored, *choice.ignored),
        accounts=(*contents.accounts, *choice.accounts),
    )


def _join_files(
    files: Sequence[ImageFile],
    root: Path,
    left_out: Sequence[tuple[str, str, bool]],
    salt: str | None,
) -> Contents:
    """The images of a folder without labels, whose they are by their headers, and the account of
    its files.
    """
    names, owners = [file.name for file in files], [file.owner for file in files]
    # What cannot be read names nobody; it does not make the others unknown.
    owned = all(any(file.owner) for file in files if not file.damaged) and any(map(any, owners))
    salt = (salt or secrets.token_hex(16)) if any(map(any, owners)) else ""
    patients = [
        patient or name for patient, name in zip(name_patients(owners, salt), names, strict=True)
    ]
    images = pd.DataFrame(
        {"image": names, "patient": patients, "path": [file.path for file in files]}
    )
    folder = root.resolve()
    return Contents(
        images,
        (),
        folder,
        patients_known=owned,
        by_study=known_by_study(names, owners),
        ignored=tuple((name, reason) for name, reason, _ in left_out),
        salt=salt,
        accounts=(make_account("files", folder.name, sum(file.files for file in files), left_out),),
        alike=tuple(alike_owners(names, owners)),
    )
