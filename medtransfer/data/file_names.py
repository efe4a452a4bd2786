"""Names of images as annotators, manifests and file systems write them -> the images that are meant."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from medtransfer.names import show

_ENDING = re.compile(r"(\.nii)?\.[a-z0-9]{1,5}(\.gz)?$")


class Names:
    """Images by their ids, by what ends them, such as the name of the file, and by other spellings of these.

    Spellings that are taken for the same: slashes either way, percent-encoding, composed and decomposed letters, case, blanks at the ends.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids = set(ids)
        self._by_last: dict[str, list[str]] = {}
        self._by_plain: dict[str, list[str]] = {}
        self._by_letters: dict[str, list[str]] = {}
        for image in sorted(self.ids):
            self._by_last.setdefault(image.rsplit("/", 1)[-1], []).append(image)
            self._by_plain.setdefault(plain(image).rsplit("/", 1)[-1], []).append(image)
            self._by_letters.setdefault(letters(image), []).append(image)

    def find(self, name: str) -> list[str]:
        """The images that a name may mean: all that end with it, whole folders at a time; none where it has other folders."""
        if name in self.ids:
            return [name]
        exact = [i for i in self._by_last.get(name.rsplit("/", 1)[-1], []) if ends_alike(i, name)]
        if exact:
            return exact
        wanted = plain(name)
        return [i for i in self._by_plain.get(wanted.rsplit("/", 1)[-1], []) if ends_alike(plain(i), wanted)]

    def near(self, name: str) -> list[str]:
        """Images whose names have the same letters and digits, whatever their endings and signs; in a folder of another name there is "
        "none."""
        here = _folder(name)
        return [image for image in self._by_letters.get(letters(name), []) if not here or _folder(image) in {"", here}]


def plain(name: str) -> str:
    """A name in its plain spelling; `..` and `.` at its beginning are left out."""
    text = unicodedata.normalize("NFC", unquote(name.strip()).replace("\\", "/")).casefold().strip()
    parts = [part.strip() for part in PurePosixPath(text).parts]
    while parts and (parts[0] in {"..", ".", "/"} or re.fullmatch(r"[a-z]:", parts[0])):
        parts = parts[1:]
    return "/".join(parts)


def letters(name: str) -> str:
    """Letters and digits of the name of a file, without its ending and accents."""
    stem = _ENDING.sub("", plain(name).rsplit("/", 1)[-1])
    return "".join(c for c in unicodedata.normalize("NFKD", stem) if c.isalnum())


def _folder(name: str) -> str:
    """Letters and digits of the innermost folder."""
    parts = plain(name).split("/")
    return "".join(c for c in parts[-2] if c.isalnum()) if len(parts) > 1 else ""


def find_file(root: Path, name: str) -> Path | None:
    """The file below a root that a name means, in whatever spelling; None where there is none, or several.

    Args:
        root: of the name. name: relative to it.
    """
    here = root
    for part in PurePosixPath(unquote(name.strip()).replace("\\", "/")).parts:
        if part in {"..", "."} or (here / part).exists():
            here = here / part
            continue
        try:
            alike = [entry.name for entry in here.iterdir() if plain(entry.name) == plain(part)]
        except OSError:
            return None
        if len(alike) != 1:
            return None
        here = here / alike[0]
    return here if here.exists() else None


def leads_outside(path: Path, root: Path) -> bool:
    """Whether a file lies outside of a root, or behind a link that leads out of it."""
    return not path.resolve().is_relative_to(root.resolve())


def ends_alike(image: str, name: str) -> bool:
    """Whether one of two names is the end of the other, whole folders at a time."""
    return image == name or image.endswith(f"/{name}") or name.endswith(f"/{image}")


def tell_spellings(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence where names of annotations were matched to images that are spelt otherwise; pairs of name and image, "" for none."""
    other = {name: image for name, image in pairs if image and not ends_alike(image, name)}
    if not other:
        return []
    name, image = next(iter(other.items()))
    return [f"{len(other)} image(s) are spelt otherwise in the boxes than on the disk, such as {show(name)} for {show(image)}"]
