"""What images a folder holds, and whose they are by their DICOM headers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medtransfer.data.annotations.file_names import leads_outside
from medtransfer.data.images.dicom.geometry import group_planes
from medtransfer.data.images.dicom.header import DicomFile, is_dicom, open_dicom
from medtransfer.data.images.dicom.image import series_tag
from medtransfer.data.images.medmnist import is_archive
from medtransfer.data.images.reading import is_image_file
from medtransfer.data.images.signatures import kind_of_ending, why_no_image
from medtransfer.data.images.volumes import pixels_of_another
from medtransfer.errors import CohortError, ImageError
from medtransfer.text.names import MASK_SUFFIX, has_controls, show

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
class ImageFile:
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
class Listing:
    """What a folder holds: its images, and every other file with its name, the reason, and whether
    it could be a picture.
    """

    images: list[ImageFile]
    left_out: list[tuple[str, str, bool]]


def list_images(folder: Path, root: Path, outside: bool = False) -> Listing:
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
    images: list[ImageFile] = []
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
                images.append(
                    ImageFile(name, str(path.resolve()), damaged=True)
                )  # reading it will say why
            elif header_.derived or "Rows" not in header_.dataset:
                ignored.append(
                    (name, f"DICOM that holds {header_.derived or 'no pixels'}, no image", False)
                )
            else:
                headers.append(header_)
        else:
            images.append(ImageFile(name, str(path.resolve())))
    ignored += [
        (
            path.relative_to(root).as_posix(),
            "hidden: its name, or that of its folder, begins with a dot",
            False,
        )
        for path in hidden(folder)
    ]
    return Listing(
        sorted(images + _join_series(headers, root), key=lambda image: image.name), ignored
    )


def subfolders(root: Path) -> list[str]:
    """Names of the folders below a folder, hidden ones left out."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def walk(folder: Path) -> list[Path]:
    """Files below a folder, sorted, links to folders followed once; what begins with a dot, or lies
    in such a folder, is left out.
    """
    files: list[Path] = []
    visited: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = Path(parent).resolve()
        if place in visited:
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent) / name for name in names if not name.startswith(".")]
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


def _join_series(headers: Sequence[DicomFile], root: Path) -> list[ImageFile]:
    by_series: dict[str, list[DicomFile]] = {}
    for header in headers:
        by_series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    images = []
    for uid, members in by_series.items():
        planes = [plane for header in members for plane in header.planes]
        groups = group_planes(planes)
        # Slices of a volume lie apart; versions of one picture, saved under one series, do not.
        apart = groups and len({planes[number].position for number in groups[0]}) > 1
        if not uid or len(members) == 1 or not apart:
            images += [
                ImageFile(h.path.relative_to(root).as_posix(), str(h.path.resolve()), h.owner)
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
        images.append(
            ImageFile(name + tag, str(folder.resolve()) + tag, members[0].owner, files=len(members))
        )
    return images
