"""Names of images as annotators, manifests and file systems write them -> the images that are
meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from medtransfer.text.names import ends_alike, letters, plain, show

# Folders that are parts of one set.
_PARTS = {"train", "training", "val", "valid", "validation", "tune", "test", "testing"}


class Names:
    """Images by their ids, by what ends them, such as the name of the file, and by other spellings
    of these.

    Spellings that are taken for the same: slashes either way, percent-encoding, composed and
    decomposed letters, case, blanks at the ends.
    """

    def __init__(self, ids: Iterable[str], root: Path | None = None) -> None:
        self.ids = set(ids)
        self.root = root
        self._by_last: dict[str, list[str]] = {}
        self._by_plain: dict[str, list[tuple[str, str]]] = {}
        self._by_letters: dict[str, list[str]] = {}
        self._whole: dict[str, list[str]] = {}
        for image in sorted(self.ids):
            spelt = plain(image)
            self._whole.setdefault(spelt, []).append(image)
            self._by_last.setdefault(image.rsplit("/", 1)[-1], []).append(image)
            self._by_plain.setdefault(spelt.rsplit("/", 1)[-1], []).append((image, spelt))
            self._by_letters.setdefault(letters(image), []).append(image)

    def find(self, name: str) -> list[str]:
        """The images that a name may mean: all that end with it, whole folders at a time; none
        where it has other folders.
        """
        if name in self.ids:
            return [name]
        if (whole := self._whole.get(plain(name), [])) and not self._by_last.get(name):
            return whole
        exact = [
            image
            for image in self._by_last.get(name.rsplit("/", 1)[-1], [])
            if ends_alike(image, name)
        ]
        wanted = plain(name)
        images = exact or [
            image
            for image, spelt in self._by_plain.get(wanted.rsplit("/", 1)[-1], [])
            if ends_alike(spelt, wanted)
        ]
        return [image for image in images if not self._lies_elsewhere(image, wanted)]

    def _lies_elsewhere(self, image: str, name: str) -> bool:
        """Whether a name with more folders than the image is that of another file: of another part,
        or one that lies beside the root.
        """
        spelt = plain(image)
        return name.endswith(f"/{spelt}") and self._is_elsewhere(
            name.removesuffix(f"/{spelt}").split("/"), image
        )

    def _is_elsewhere(self, folders: list[str], file: str) -> bool:
        if self.root is None or not folders:
            return False
        root = self.root.resolve()
        root_folders = [part.casefold() for part in root.parts]
        if any(part in _PARTS and part not in root_folders for part in folders) and any(
            part in _PARTS for part in root_folders
        ):
            return True
        other = (
            find_file(root.parent, f"{folders[-1]}/{file}")
            if folders[-1] != root_folders[-1]
            else None
        )
        return other is not None and other.resolve() != (root / file).resolve()

    def near(self, name: str) -> list[str]:
        """Images whose names have the same letters and digits; none where the name has other
        folders.
        """
        innermost = _folder(name)
        *folders, last = plain(name).split("/")
        if self._is_elsewhere(folders, last):
            return []
        return [
            image
            for image in self._by_letters.get(letters(name), [])
            if not innermost or _folder(image) in {"", innermost}
        ]


def _folder(name: str) -> str:
    """Letters and digits of the innermost folder."""
    parts = plain(name).split("/")
    return "".join(c for c in parts[-2] if c.isalnum()) if len(parts) > 1 else ""


def find_file(root: Path, name: str) -> Path | None:
    """The file below a root that a name means, in whatever spelling; None where there is none, or
    several.

    Args:
        root: of the name. name: relative to it.
    """
    path = root
    for part in PurePosixPath(unquote(name.strip()).replace("\\", "/")).parts:
        if part in {"..", "."} or (path / part).exists():
            path = path / part
            continue
        try:
            alike = _spellings(path, path.stat().st_mtime_ns).get(plain(part), [])
        except OSError:
            return None
        if len(alike) != 1:
            return None
        path = path / alike[0]
    return path if path.exists() else None


def near_file(path: Path) -> str:
    """The name of a file in the same folder with the same letters and digits, whatever its ending;
    "" where there is none.
    """
    try:
        return next(
            (
                entry.name
                for entry in sorted(path.parent.iterdir())
                if letters(entry.name) == letters(path.name)
            ),
            "",
        )
    except OSError:
        return ""


@lru_cache(maxsize=256)
def _spellings(folder: Path, changed: int) -> dict[str, list[str]]:  # noqa: ARG001
    """The entries of a folder by their plain spelling."""
    spelt: dict[str, list[str]] = {}
    for entry in folder.iterdir():
        spelt.setdefault(plain(entry.name), []).append(entry.name)
    return spelt


def leads_outside(path: Path, root: Path) -> bool:
    """Whether a file lies outside of a root, or behind a link that leads out of it."""
    return not path.resolve().is_relative_to(root.resolve())


def tell_spellings(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence where names of annotations were matched to images that are spelt otherwise; pairs
    of name and image, "" for none.
    """
    other = {name: image for name, image in pairs if image and not ends_alike(image, name)}
    if not other:
        return []
    name, image = next(iter(other.items()))
    return [
        (
            f"{len(other)} image(s) are spelt otherwise in the boxes than on the disk, such as "
            f"{show(name)} for {show(image)}"
        )
    ]
