"""Files that annotate images by having their names: which belongs to which, and which to none."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medtransfer.data.images.reading import split_member
from medtransfer.errors import CohortError, list_faults
from medtransfer.text.names import MASK_SUFFIX, letters, plain, show

_SUFFIXES = {
    "png",
    "jpg",
    "jpeg",
    "tif",
    "tiff",
    "bmp",
    "dcm",
    "dicom",
    "ima",
    "nii",
    "nrrd",
    "mha",
    "mhd",
    "txt",
    "xml",
    "webp",
    "jp2",
    "gif",
}
_CHANNEL = re.compile(r"_\d{4}$")
# Files that lie beside annotations and are about all of them.
ABOUT = {
    "classes.txt",
    "obj.names",
    "obj.data",
    "data.yaml",
    "labelmap.txt",
    "dataset.json",
    "train.txt",
    "valid.txt",
    "test.txt",
}


@dataclass(frozen=True, eq=False)
class Beside:
    """Annotation files of a cohort.

    Attributes:
        of_image: by image, its files; none for images without.
        strangers: files of the same folders that belong to no image, with what is known of why.
    """

    of_image: dict[str, list[Path]]
    strangers: list[tuple[Path, str]]


def match_files(
    images: pd.DataFrame,
    root: Path,
    place: str,
    folder: str,
    suffixes: Callable[[Path], bool],
    left_out: tuple[str, ...] = (),
) -> Beside:
    """Files that annotate each image, by the same stem: in `place`, else beside it, else in
    `folder` in place of `images`.

    Args:
        images: of the cohort. root: of their ids.
        place: folder, relative to the root; "" for the usual ones.
        folder: the usual name of one. suffixes: whether a file is of the kind.
        left_out: images that are none of the cohort on purpose, whose files are no strangers.

    Raises:
        CohortError: no file at all, images that would share one, one of several images in a file,
            or a file whose name is nearly that of an image without one.
    """
    listed: dict[Path, dict[str, list[Path]]] = {}

    def files_in(where: Path) -> dict[str, list[Path]]:
        if where not in listed:
            files: dict[str, list[Path]] = {}
            for path in sorted(where.iterdir()) if where.is_dir() else []:
                if suffixes(path) and not path.name.startswith("."):
                    files.setdefault(plain(MASK_SUFFIX.sub("", stem(path))), []).append(path)
            listed[where] = files
        return listed[where]

    of_image: dict[str, list[Path]] = {}
    faults: list[str] = []
    owner: dict[Path, str] = {}
    themselves = {split_member(root / image)[0] for image in images["image"]}
    for image in images["image"]:
        file, member = split_member(root / image)
        if member:
            faults.append(
                f"{image}: is one of several in a file, which no file of the same name can "
                "annotate; use a table of boxes"
            )
            continue
        places = _places(file, root, place, folder)
        places = list(dict.fromkeys(places))
        candidates = [
            [p for p in _of(file, files_in(where)) if p not in themselves] for where in places
        ]
        several = [files for files in candidates if files]
        files = several[0] if several else []
        if len({path.read_bytes() for group in several for path in group[:1]}) > 1:
            faults.append(
                f"{image}: has two annotations that differ, {several[0][0]} and {several[1][0]}; "
                "keep one"
            )
        files_of = {path for group in several[1:] for path in group}
        owner |= dict.fromkeys(files_of, image)
        of_image[image] = files
        faults += [
            f"{image}: has the annotation of {owner[path]} ({path}); rename one"
            for path in files
            if owner.get(path, image) != image
        ]
        owner |= dict.fromkeys(files, image)
    if faults:
        raise CohortError(
            list_faults(f"boxes: {len(faults)} image(s) cannot be told apart", faults)
        )
    if not any(of_image.values()):
        raise CohortError(_tell_none(root, place, folder, images, listed))
    everything = {
        path for of_folder in listed.values() for group in of_folder.values() for path in group
    }
    # In a folder of annotations every file is one, whatever its ending.
    folders = {file.parent for file in themselves}
    everything |= {
        path
        for where in listed
        if where.is_dir() and where not in folders
        for path in where.iterdir()
        if _is_visible_file(path)
    }
    lonely = sorted(everything - set(owner) - themselves)
    return Beside(of_image, _tell_strangers(lonely, of_image, left_out))


def _is_visible_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name not in ABOUT


def _of(file: Path, listed: dict[str, list[Path]]) -> list[Path]:
    """The files that annotate an image: of its stem, or of that without the number of a channel, as
    nnU-Net has it (x_0000).
    """
    name = plain(stem(file))
    return listed.get(name) or listed.get(_CHANNEL.sub("", name), [])


def _tell_none(
    root: Path,
    place: str,
    folder: str,
    images: pd.DataFrame,
    listed: dict[Path, dict[str, list[Path]]],
) -> str:
    """That no annotation has the name of an image, where they were looked for, and what there
    is.
    """
    where = f"in {root / place}" if place else f"beside the images, or in folders called {folder},"
    others = [
        path.name for of_folder in listed.values() for group in of_folder.values() for path in group
    ]
    sentence = (
        f" There are {len(others)} files, such as {show(others[0])}, and images such as "
        f"{show(images['image'].iloc[0])}."
        if others
        else ""
    )
    remedy = "" if place else f" Say where they are, such as masks:FOLDER (relative to {root})."
    return f"boxes: no file {where} has the name of an image.{sentence}{remedy}"


def stem(path: Path) -> str:
    """The name without the suffix of a kind of file; a UID has dots that are none."""
    name = path.name.removesuffix(".gz")
    head, _, suffix = name.rpartition(".")
    return head if head and suffix.lower() in _SUFFIXES else name


def _places(file: Path, root: Path, place: str, folder: str) -> list[Path]:
    if place:
        return [root / place / file.parent.relative_to(root), root / place]
    places = [file.parent, file.parent.parent / folder]
    if "images" in file.parent.parts:
        at = len(file.parent.parts) - 1 - file.parent.parts[::-1].index("images")
        places.append(Path(*file.parent.parts[:at], folder, *file.parent.parts[at + 1 :]))
    return places


def _tell_strangers(
    lonely: list[Path], of_image: dict[str, list[Path]], left_out: tuple[str, ...]
) -> list[tuple[Path, str]]:
    """Annotation files without an image; one that is nearly named as an image that has none would
    make a negative of it.
    """
    without = {letters(image): image for image, files in of_image.items() if not files}
    apart = {letters(image) for image in left_out}
    near = [
        f"{path.name}: is it the annotation of {without[letters(path.name)]}?"
        for path in lonely
        if letters(path.name) in without
    ]
    if near:
        raise CohortError(
            list_faults(
                f"boxes: {len(near)} annotation file(s) have nearly the name of an image that has "
                "none",
                near,
                "Give both one name; otherwise the image would count as one without a lesion.",
            )
        )
    return [
        (
            path,
            "of an image that was left out" if letters(path.name) in apart else "of no image here",
        )
        for path in lonely
    ]
