"""What images a folder holds, and whose they are by their DICOM headers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medtransfer.data.dicom import DicomFile, is_dicom, open_dicom
from medtransfer.data.dicom_image import DICOM, dicom_files, series_tag
from medtransfer.data.medmnist import is_archive
from medtransfer.data.reading import is_image_file, split_member
from medtransfer.data.series import group_planes
from medtransfer.errors import ImageError

_MASK_SUFFIX = re.compile(r"_mask(_\d+)?$")


@dataclass(frozen=True)
class Found:
    """One image of a folder.

    Attributes:
        name: its id: the path relative to the root, with `#tag` for one of several series.
        path: absolute.
        patient, study: keys of its DICOM header, "" where there are none. Not to be shown.
    """

    name: str
    path: str
    patient: str = ""
    study: str = ""


def list_images(folder: Path, root: Path) -> tuple[list[Found], list[tuple[str, str]]]:
    """Images below a folder, and what was left out with the reason.

    A file is an image, but DICOM files of one series whose slices are parallel are one volume.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts))
    stems = {p.with_suffix("") for p in files}
    found: list[Found] = []
    ignored: list[tuple[str, str]] = []
    headers: list[DicomFile] = []
    for path in files:
        name = path.relative_to(root).as_posix()
        if not is_image_file(path) or is_archive(path):
            ignored.append((name, "not an image"))
        # Public sets (BUSI) keep `x_mask.png` beside `x.png`; a mask trained on as an image would give the label away.
        elif _MASK_SUFFIX.search(path.stem) and path.with_name(_MASK_SUFFIX.sub("", path.stem)) in stems:
            ignored.append((name, "mask of another image"))
        elif path.suffix.lower() in DICOM or is_dicom(path):
            header = _open_header(path)
            if header is None:
                found.append(Found(name, str(path.resolve())))  # reading it will say why
            elif "Rows" not in header.dataset:
                ignored.append((name, "a DICOM object without pixels"))
            else:
                headers.append(header)
        else:
            found.append(Found(name, str(path.resolve())))
    return sorted(found + _join_series(headers, root), key=lambda image: image.name), ignored


def find_owner(path: str) -> tuple[str, str]:
    """Patient and study of an image by its DICOM header; ("", "") where it has none. Not to be shown."""
    file, member = split_member(path)
    try:
        for candidate in dicom_files(file) if file.is_dir() else [file]:
            header = open_dicom(candidate, pixels=False)
            if not file.is_dir() or not member or series_tag(header) == member:
                return header.owner
    except ImageError:
        pass
    return "", ""


def name_patients(owners: Sequence[tuple[str, str]], salt: str) -> list[str]:
    """Ids for the patients of DICOM headers: digests that cannot be turned back without the salt.

    Args:
        owners: (patient, study) of each image, from `Found` or `find_owner`.
        salt: secret of the study.

    Returns:
        One id per image, "" for those without an owner. Where all files carry one patient id, it is a
        placeholder of an anonymiser, and the studies stand for the patients.
    """
    patients = {patient for patient, _ in owners if patient}
    studies = {study for _, study in owners if study}
    placeholder = len(patients) == 1 and len(studies) > 1
    keys = [study if placeholder or not patient else patient for patient, study in owners]
    return ["p-" + hashlib.sha256(f"{salt}|{key}".encode()).hexdigest()[:12] if key else "" for key in keys]


def _open_header(path: Path) -> DicomFile | None:
    try:
        return open_dicom(path, pixels=False)
    except ImageError:
        return None


def _join_series(headers: Sequence[DicomFile], root: Path) -> list[Found]:
    by_series: dict[tuple[Path, str], list[DicomFile]] = {}
    for header in headers:
        by_series.setdefault((header.path.parent, header.text("SeriesInstanceUID")), []).append(header)
    in_folder = {folder: sum(f == folder for f, _ in by_series) for folder, _ in by_series}
    found = []
    for (folder, uid), members in by_series.items():
        groups = group_planes([plane for header in members for plane in header.planes])
        if uid and len(members) > 1 and groups and len(groups[0]) > 1:
            only = in_folder[folder] == 1 and not any(other != folder and folder in other.parents for other, _ in by_series)
            tag = "" if only else f"#{series_tag(members[0])}"
            found.append(Found(folder.relative_to(root).as_posix() + tag, str(folder.resolve()) + tag, *members[0].owner))
        else:
            found += [Found(h.path.relative_to(root).as_posix(), str(h.path.resolve()), *h.owner) for h in members]
    return found
