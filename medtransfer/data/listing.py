"""What images a folder holds, and whose they are by their DICOM headers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medtransfer.data.dicom import DicomFile, is_dicom, open_dicom
from medtransfer.data.dicom_image import dicom_files, series_tag, visible_files
from medtransfer.data.medmnist import is_archive
from medtransfer.data.reading import is_image_file, split_member
from medtransfer.data.series import group_planes
from medtransfer.data.similarity import cluster_pairs
from medtransfer.errors import ImageError

_MASK_SUFFIX = re.compile(r"_mask(_\d+)?$")


@dataclass(frozen=True)
class Found:
    """One image of a folder.

    Attributes:
        name: its id: the path relative to the root, with `#tag` for one of several series.
        path: absolute.
        owner: patient and study of its DICOM header, "" where there are none. Not to be shown.
        damaged: True for a DICOM file whose header cannot be read.
    """

    name: str
    path: str
    owner: tuple[str, str] = field(default=("", ""), repr=False)
    damaged: bool = False


def list_images(folder: Path, root: Path) -> tuple[list[Found], list[tuple[str, str]]]:
    """Images below a folder, and what was left out with the reason.

    A file is an image, but DICOM files of one series whose slices are parallel are one volume, in
    whatever subfolders they lie.
    """
    files = visible_files(folder)
    stems = {(p.parent, _stem(p)) for p in files}
    found: list[Found] = []
    ignored: list[tuple[str, str]] = []
    headers: list[DicomFile] = []
    for path in files:
        name = path.relative_to(root).as_posix()
        if not _is_text(name):
            ignored.append((os.fsencode(name).decode("utf-8", "replace"), "its name is not UTF-8; rename it"))
        elif not is_image_file(path) or is_archive(path):
            ignored.append((name, "not an image"))
        # Public sets (BUSI) keep `x_mask.png` beside `x.png`; a mask trained on as an image would give the label away.
        elif _MASK_SUFFIX.search(_stem(path)) and (path.parent, _MASK_SUFFIX.sub("", _stem(path))) in stems:
            ignored.append((name, "mask of another image"))
        elif is_dicom(path):
            header = _open_header(path)
            if header is None or header.lost:
                found.append(Found(name, str(path.resolve()), damaged=True))  # reading it will say why
            elif header.derived or "Rows" not in header.dataset:
                ignored.append((name, f"DICOM that holds {header.derived or 'no pixels'}, no image"))
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

    Images are of one patient where they share the patient id (and its issuer, where several issuers occur
    for that id), or the study. Where all files carry one id, it is a placeholder of an anonymiser, and the
    studies stand for the patients.

    Args:
        owners: (patient, study) of each image, from `Found` or `find_owner`; patient is "issuer|id".
        salt: secret of the study.

    Returns:
        One id per image, "" for those without an owner.
    """
    placeholder = _is_placeholder(owners)
    issuers: dict[str, set[str]] = {}
    for patient, _ in owners:
        issuer, _, number = patient.partition("|")
        issuers.setdefault(number, set()).update({issuer} - {""})
    numbers_of: dict[str, set[str]] = {}
    for patient, study in owners:
        numbers_of.setdefault(study, set()).update({patient.partition("|")[2]} - {""})
    nodes: dict[str, int] = {}
    links, of_image = [], []
    for patient, study in owners:
        issuer, _, number = patient.partition("|")
        alone = len(issuers[number]) < 2
        keys = [f"patient {number}" if alone else f"patient {issuer}|{number}"] if number and not placeholder else []
        # A study of several patients is a placeholder too; it serves only where nothing else does.
        keys += [f"study {study}"] if study and (not keys or len(numbers_of[study]) < 2) else []
        rows = [nodes.setdefault(key, len(nodes)) for key in keys]
        links += [(rows[0], row) for row in rows]
        of_image.append(rows[0] if rows else -1)
    name_of = dict(enumerate(nodes))
    for group in cluster_pairs(len(nodes), links):
        first = min(name_of[node] for node in group)
        name_of |= dict.fromkeys(group, first)
    return ["" if node < 0 else "p-" + hashlib.sha256(f"{salt}|{name_of[node]}".encode()).hexdigest()[:12] for node in of_image]


def known_by_study(images: Sequence[str], owners: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The images of which the study alone stands for the patient, so that two studies of one patient pass for two patients."""
    named = set() if _is_placeholder(owners) else {study for patient, study in owners if patient.partition("|")[2]}
    return tuple(image for image, (_, study) in zip(images, owners, strict=True) if study and study not in named)


def _is_placeholder(owners: Sequence[tuple[str, str]]) -> bool:
    return len({p.partition("|")[2] for p, _ in owners if p}) == 1 and len({s for _, s in owners if s}) > 1


def _open_header(path: Path) -> DicomFile | None:
    try:
        return open_dicom(path, pixels=False)
    except ImageError:
        return None


def _stem(path: Path) -> str:
    """The name without its ending; `.nii.gz` is one ending."""
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _join_series(headers: Sequence[DicomFile], root: Path) -> list[Found]:
    by_series: dict[str, list[DicomFile]] = {}
    for header in headers:
        by_series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    found = []
    for uid, members in by_series.items():
        planes = [plane for header in members for plane in header.planes]
        groups = group_planes(planes)
        # Slices of a volume lie apart; versions of one picture, saved under one series, do not.
        apart = groups and len({planes[number].position for number in groups[0]}) > 1
        if not uid or len(members) == 1 or not apart:
            found += [Found(h.path.relative_to(root).as_posix(), str(h.path.resolve()), h.owner) for h in members]
            continue
        folder = Path(os.path.commonpath([header.path.parent for header in members]))
        alone = sum(folder in header.path.parents for header in headers) == len(members)
        name = folder.resolve().name if folder == root else folder.relative_to(root).as_posix()
        tag = "" if alone else f"#{series_tag(members[0])}"
        found.append(Found(name + tag, str(folder.resolve()) + tag, members[0].owner))
    return found
