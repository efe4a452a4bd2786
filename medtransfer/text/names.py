"""Names of patients, images and files: one spelling in every table, what looks like one name and is
two, and how a name is shown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote

# Isolates, which the report puts around names so that a name written from right to left does not
# turn the sentence around.
ISOLATES = "\u2068\u2069"
_POINT_ZERO, _LEADING_ZEROS = re.compile(r"(?<=\d)\.0+$"), re.compile(r"(?<![\d.])0+(?=\d)")
_ENDING = re.compile(r"(\.nii)?\.[a-z0-9]{1,5}(\.gz)?$")
# What marks the mask of an image of the same name, as `x_mask.png` or `x_seg.nii.gz`.
MASK_SUFFIX = re.compile(
    r"[_\- ](mask|seg|segmentation|label|labelmap|groundtruth|gt)s?([_ ]?\d+)?$", re.IGNORECASE
)
# Roboflow (x_png.rf.0a1b), Label Studio (1a2b3c4d-x), copies (x (1), x copy), masks.
_ADDED = (
    re.compile(r"_(png|jpe?g|bmp|tiff?|webp)\.rf\.[0-9a-z]+$"),
    re.compile(r"^[0-9a-f]{8}-(?=.)"),
    re.compile(r"( \(\d+\)|[ _-]copy|[ _-]kopie)$"),
    MASK_SUFFIX,
)
_CONTROLS = {"Cc", "Cf", "Zl", "Zp"}


def normalise(name: str) -> str:
    """The one spelling of a name in every table: composed characters (NFC), without blanks or a
    byte order mark at either end.
    """
    text = name.strip().strip("\ufeff").strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def look_alike_key(name: str) -> str:
    """What names share that a person would take for one: case, invisible characters, kinds of
    blanks, leading zeros, `.0`.
    """
    text = name.casefold()
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            c
            for c in unicodedata.normalize("NFKC", text).casefold()
            if unicodedata.category(c) not in _CONTROLS
        )
    text = _POINT_ZERO.sub("", " ".join(text.split()))
    # Behind a point zeros count: 1.01 is not 1.1.
    return _LEADING_ZEROS.sub("", text)


def look_alikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that look alike, such as `12` and `12.0`, `7` and `007`, `p1` and
    `P1`; in order of appearance.
    """
    groups: dict[str, dict[str, None]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(look_alike_key(name), {})[name] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def show(name: str) -> str:
    """A name with characters that are not seen, or turn text around, as their codes: they would
    change a terminal, or a sentence.
    """
    return "".join(f"[U+{ord(c):04X}]" if unicodedata.category(c) in _CONTROLS else c for c in name)


def show_text(text: str) -> str:
    """The same for a whole text, whose line breaks, tabs and isolates stay."""
    allowed = f"\n\t{ISOLATES}"
    if text.isprintable():
        return text
    return "".join(
        c if c in allowed or unicodedata.category(c) not in _CONTROLS else f"[U+{ord(c):04X}]"
        for c in text
    )


def has_controls(name: str) -> bool:
    """Whether a name holds control characters, such as a line break: a table with it could not be
    read again.
    """
    return not name.isprintable() and any(
        unicodedata.category(c) in {"Cc", "Zl", "Zp"} for c in name
    )


def plain(name: str) -> str:
    """The name of a file in its plain spelling: slashes, percent-encoding, case, blanks; `..` and
    `.` at its beginning are left out.
    """
    text = unicodedata.normalize("NFC", unquote(name.strip()).replace("\\", "/")).casefold().strip()
    parts = [part.strip() for part in PurePosixPath(text).parts]
    while parts and (parts[0] in {"..", ".", "/"} or re.fullmatch(r"[a-z]:", parts[0])):
        parts = parts[1:]
    return "/".join(parts)


def letters(name: str) -> str:
    """Letters and digits of the name of a file, without its ending, accents, and what exporters and
    file managers add to it.
    """
    stem = _ENDING.sub("", plain(name).rsplit("/", 1)[-1])
    for added in _ADDED:
        stem = added.sub("", stem) or stem
    return "".join(c for c in unicodedata.normalize("NFKD", stem) if c.isalnum())


def ends_alike(image: str, name: str) -> bool:
    """Whether one of two names is the end of the other, whole folders at a time."""
    return image == name or image.endswith(f"/{name}") or name.endswith(f"/{image}")
