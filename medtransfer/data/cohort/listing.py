"""What images a folder holds, and whose they are by their DICOM headers."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from medtransfer.data.annotations.file_names import leads_outside
from medtransfer.data.cohort.clusters import cluster_pairs
from medtransfer.data.images.dicom.geometry import group_planes
from medtransfer.data.images.dicom.header import DicomFile, is_dicom, open_dicom
from medtransfer.data.images.dicom.image import dicom_files, series_tag
from medtransfer.data.images.medmnist import is_archive
from medtransfer.data.images.reading import is_image_file, split_member
from medtransfer.data.images.signatures import kind_of_ending, why_no_image
from medtransfer.data.images.volumes import pixels_of_another
from medtransfer.errors import CohortError, ImageError
from medtransfer.text.names import MASK_SUFFIX, has_controls, look_alikes, show

# Endings and names of files that lie beside pictures and are none.
_NO_PICTURES = {
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm", ".md", ".rst", ".yaml",
    ".yml", ".toml", ".ini", ".cfg", ".log",
    ".py", ".ipynb", ".r", ".m", ".sh", ".bat", ".xlsx", ".xls", ".ods", ".doc", ".docx", ".odt",
    ".db", ".lnk", ".url", ".sha256", ".md5",
    ".lock", ".bak", ".tmp", ".part", ".names", ".data",
}  # fmt: skip
_COMPANIONS = {
    "dicomdir",
    "license",
    "licence",
    "readme",
    "makefile",
    "thumbs.db",
    "desktop.ini",
    "md5sums",
    "sha256sums",
    "checksums",
}


@dataclass(frozen=True)
class Found:
    """One image of a folder.

    Attributes:
        name: its id: the path relative to the root, with `#tag` for one of several series.
        path: absolute.
        owner: patient and study of its DICOM header, "" where there are none. Not to be shown.
        damaged: True for a DICOM file whose header cannot be read.
        files: how many files it consists of.
    """

    name: str
    path: str
    owner: tuple[str, str] = field(default=("", ""), repr=False)
    damaged: bool = False
    files: int = 1


@dataclass(frozen=True)
class Listed:
    """What a folder holds: its images, and every other file with its name, the reason, and whether
    it could be a picture.
    """

    images: list[Found]
    left_out: list[tuple[str, str, bool]]


def list_images(folder: Path, root: Path, outside: bool = False) -> Listed:
    """Images below a folder, and what is left out with the reason.

    A file is an image, but DICOM files of one series whose slices are parallel are one volume, in
    whatever subfolders they lie.

    Args:
        folder: searched to any depth, links followed. root: of the names. outside: links may lead
            out of the root.

    Raises:
        CohortError: links that lead out of the root, unless `outside`.
    """
    files = walk(folder)
    if not outside:
        _refuse_outside(files, root)
    stems = {(p.parent, _stem(p)) for p in files}
    found: list[Found] = []
    ignored: list[tuple[str, str, bool]] = []
    headers: list[DicomFile] = []
    for path in files:
        name = path.relative_to(root).as_posix()
        if not _is_text(name):
            ignored.append(
                (
                    os.fsencode(name).decode("utf-8", "replace"),
                    "its name is not UTF-8; rename it",
                    True,
                )
            )
        elif has_controls(name):
            ignored.append((name, "its name holds a control character; rename it", True))
        elif header := pixels_of_another(path):
            ignored.append((name, f"pixels of {header.name}", False))
        elif not is_image_file(path) or is_archive(path):
            ignored.append((name, _why_left_out(path), _could_be_picture(path)))
        # Public sets (BUSI) keep `x_mask.png` beside `x.png`; a mask trained on as an image would
        # give the label away.
        elif (
            MASK_SUFFIX.search(_stem(path))
            and (path.parent, MASK_SUFFIX.sub("", _stem(path))) in stems
        ):
            ignored.append((name, "mask of another image", False))
        elif is_dicom(path):
            header_ = _open_header(path)
            if header_ is None or header_.lost:
                found.append(
                    Found(name, str(path.resolve()), damaged=True)
                )  # reading it will say why
            elif header_.derived or "Rows" not in header_.dataset:
                ignored.append(
                    (name, f"DICOM that holds {header_.derived or 'no pixels'}, no image", False)
                )
            else:
                headers.append(header_)
        else:
            found.append(Found(name, str(path.resolve())))
    ignored += [
        (
            path.relative_to(root).as_posix(),
            "hidden: its name, or that of its folder, begins with a dot",
            False,
        )
        for path in hidden(folder)
    ]
    return Listed(
        sorted(found + _join_series(headers, root), key=lambda image: image.name), ignored
    )


def subfolders(root: Path) -> list[str]:
    """Names of the folders below a folder, hidden ones left out."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def walk(folder: Path) -> list[Path]:
    """Files below a folder, sorted, links to folders followed once; what begins with a dot, or lies
    in such a folder, is left out.
    """
    files: list[Path] = []
    seen: set[Path] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        place = Path(here).resolve()
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(here) / name for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file() or path.is_symlink())


def hidden(folder: Path) -> list[Path]:
    """Pictures and volumes, by their endings, that begin with a dot or lie in such a folder; what
    macOS keeps beside a file is none.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.name.startswith("._")
        and kind_of_ending(path)
        and path.is_file()
        and _is_text(path.name)
    ]


def _refuse_outside(files: Sequence[Path], root: Path) -> None:
    # A file lies where its folder does, unless it is a link itself.
    folders = {folder: leads_outside(folder, root) for folder in {path.parent for path in files}}
    beyond = [
        path
        for path in files
        if folders[path.parent] or (path.is_symlink() and leads_outside(path, root))
    ]
    if beyond:
        raise CohortError(
            f"{root}: {len(beyond)} file(s) lie behind links that lead out of it, such as "
            f"{show(beyond[0].relative_to(root).as_posix())}. Set "
            "cohort.outside=true (--outside) if they are meant, or leave the links out."
        )


def _why_left_out(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a link to nothing"
    reason = why_no_image(path).rstrip(".")
    if reason and _could_be_picture(path):
        return f"not an image: {reason[0].lower()}{reason[1:]}"
    ending = path.suffix.lower()
    return f"not an image ({ending})" if ending else "not an image"


def _could_be_picture(path: Path) -> bool:
    return path.suffix.lower() not in _NO_PICTURES and path.name.lower() not in _COMPANIONS


def tabulate(
    files: Sequence[Found], salt: str | None
) -> tuple[pd.DataFrame, bool, tuple[str, ...], str]:
    """The images of a folder as a table, and whose they are.

    Returns:
        `image`, `patient`, `path`; whether all patients are known; the images of which the study
        alone is; the salt of the ids, "" without.
    """
    names, owners = [file.name for file in files], [file.owner for file in files]
    # What cannot be read names nobody; it does not make the others unknown.
    owned = all(any(file.owner) for file in files if not file.damaged) and any(map(any, owners))
    used = (salt or secrets.token_hex(16)) if any(map(any, owners)) else ""
    patients = [
        patient or name for patient, name in zip(name_patients(owners, used), names, strict=True)
    ]
    images = pd.DataFrame(
        {"image": names, "patient": patients, "path": [file.path for file in files]}
    )
    return images, owned, known_by_study(names, owners), used


def find_owner(path: str) -> tuple[str, str]:
    """Patient and study of an image by its DICOM header; ("", "") where it has none. Not to be
    shown.
    """
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

    Images are of one patient where they share the patient id (and its issuer, where several issuers
    occur for that id), or the study. Where all files carry one id, it is a placeholder of an
    anonymiser, and the studies stand for the patients.

    Args:
        owners: (patient, study) of each image, from `Found` or `find_owner`; patient is
            "issuer|id".
        salt: secret of the study.

    Returns:
        One id per image, "" for those without an owner.
    """
    placeholder = is_placeholder(owners)
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
        keys = (
            [f"patient {number}" if alone else f"patient {issuer}|{number}"]
            if number and not placeholder
            else []
        )
        # A study of several patients is a placeholder too; it serves only where nothing else does.
        keys += [f"study {study}"] if study and (not keys or len(numbers_of[study]) < 2) else []
        rows = [nodes.setdefault(key, len(nodes)) for key in keys]
        links += [(rows[0], row) for row in rows]
        of_image.append(rows[0] if rows else -1)
    name_of = dict(enumerate(nodes))
    for group in cluster_pairs(len(nodes), links):
        first = min(name_of[node] for node in group)
        name_of |= dict.fromkeys(group, first)
    return [
        ""
        if node < 0
        else "p-" + hashlib.sha256(f"{salt}|{name_of[node]}".encode()).hexdigest()[:12]
        for node in of_image
    ]


def alike_owners(images: Sequence[str], owners: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Images, two of each kind, whose headers name patients by ids that look alike; the ids
    themselves are not to be shown.
    """
    of_number: dict[str, str] = {}
    for image, (patient, _) in zip(images, owners, strict=True):
        of_number.setdefault(patient.partition("|")[2], image)
    return [
        tuple(of_number[number] for number in group)
        for group in look_alikes(n for n in of_number if n)
    ]


def known_by_study(images: Sequence[str], owners: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The images of which the study alone stands for the patient, so that two studies of one
    patient pass for two patients.
    """
    named = (
        set()
        if is_placeholder(owners)
        else {study for patient, study in owners if patient.partition("|")[2]}
    )
    return tuple(
        image
        for image, (_, study) in zip(images, owners, strict=True)
        if study and study not in named
    )


def is_placeholder(owners: Sequence[tuple[str, str]]) -> bool:
    """Whether all headers name one patient, and several studies: an anonymiser's word, and no
    id.
    """
    return (
        len({p.partition("|")[2] for p, _ in owners if p}) == 1
        and len({s for _, s in owners if s}) > 1
    )


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
            found += [
                Found(h.path.relative_to(root).as_posix(), str(h.path.resolve()), h.owner)
                for h in members
            ]
            continue
        if len({member.owner[0] for member in members}) > 1:
            one, other = (
                members[0],
                next(member for member in members if member.owner[0] != members[0].owner[0]),
            )
            raise CohortError(
                f"{show(one.path.name)} and {show(other.path.name)} are of one series, and their "
                "headers name two patients. Export each "
                "patient again."
            )
        folder = Path(os.path.commonpath([header.path.parent for header in members]))
        alone = sum(folder in header.path.parents for header in headers) == len(members)
        name = folder.resolve().name if folder == root else folder.relative_to(root).as_posix()
        tag = "" if alone else f"#{series_tag(members[0])}"
        found.append(
            Found(name + tag, str(folder.resolve()) + tag, members[0].owner, files=len(members))
        )
    return found
