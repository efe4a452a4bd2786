"""What a file is, by its first bytes: names are often wrong, content is not.

Every kind that is read here has a signature. The ending decides only for files whose content shows
none: damaged ones, which are listed nonetheless, so that reading them says why.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from medtransfer.errors import ImageError

PICTURES = frozenset({"PNG", "JPEG", "BMP", "GIF", "WebP", "JPEG 2000", "PNM", "AVIF", "TIFF"})
VOLUMES = frozenset({"NIfTI", "NRRD", "MetaImage"})
ARCHIVE = "npz"

_HEAD = 4096
_ENDINGS = {
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jfif", "jpe", "jif", "mpo"),
    "BMP": ("bmp", "dib"),
    "GIF": ("gif",),
    "WebP": ("webp",),
    "JPEG 2000": ("jp2", "j2k", "jpx", "j2c", "jpc", "jpf"),
    "PNM": ("pbm", "pgm", "ppm", "pnm"),
    "AVIF": ("avif",),
    "TIFF": ("tif", "tiff", "btf", "tf8"),
    "DICOM": ("dcm", "dicom", "ima"),
    "NIfTI": ("nii", "nii.gz"),
    "NRRD": ("nrrd", "nhdr"),
    "MetaImage": ("mha", "mhd"),
    ARCHIVE: ("npz",),
}
_KIND_OF_ENDING = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings}
# Slides are TIFF inside, of which one page in a hundred could be read: the label, or a thumbnail.
_SLIDES = {"svs", "ndpi", "scn", "bif", "mrxs", "vms", "vmu", "czi", "vsi", "isyntax"}
# Signatures at a fixed place. DICOM first: its preamble may be the beginning of a TIFF (PS3.10
# 7.1).
_SIGNATURES = (
    (128, b"DICM", "DICOM"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"NRRD000", "NRRD"),
)
_PNM = re.compile(rb"P[1-6]\s+(?:#[^\r\n]*[\r\n]\s*)*\d+\s+(?:#[^\r\n]*[\r\n]\s*)*\d+\s")
_META = re.compile(rb"\s*\w+\s*=")
_META_DIMENSIONS = re.compile(rb"^\s*NDims\s*=", re.MULTILINE)
# The value representations with which a data set can begin.
_FIRST_VR = {b"UL", b"UI", b"CS", b"SH", b"DA", b"TM", b"LO", b"OB", b"DT"}

# What is often met in place of an image: place, signature, what it is, what to do.
_UNPACK = "Unpack it, and give the files inside"
_FRAMES = "Export the frames that are wanted as PNG"
_ARRAY = "Save the array as NIfTI (volumes), or as PNG or TIFF (planes)"
_FOREIGN = (
    (
        0,
        b"version https://git-lfs",
        "it is a Git LFS pointer, not the file itself",
        "Run `git lfs pull` in its repository",
    ),
    (
        0,
        b"\0\x05\x16\x07",
        "it is what macOS keeps beside a file (its name begins with ._)",
        "Leave it out",
    ),
    (0, b"PK\x03\x04", "it is a zip archive", _UNPACK),
    (0, b"PK\x05\x06", "it is an empty zip archive", "Fetch it again"),
    (0, b"Rar!\x1a\x07", "it is a rar archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "it is a 7z archive", _UNPACK),
    (257, b"ustar", "it is a tar archive", _UNPACK),
    (
        0,
        b"\x1f\x8b",
        "it is compressed by gzip, and no NIfTI file",
        "Unpack it (gunzip), and give the file inside",
    ),
    (0, b"BZh", "it is compressed by bzip2", "Unpack it (bunzip2), and give the file inside"),
    (0, b"\xfd7zXZ\0", "it is compressed by xz", "Unpack it (unxz), and give the file inside"),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "it is compressed by zstd",
        "Unpack it (unzstd), and give the file inside",
    ),
    (0, b"%PDF", "it is a PDF", "Export the images in it as PNG"),
    (0, b"%!PS", "it is PostScript", "Export it as PNG"),
    (0, b"{\\rtf", "it is a text document", "Export the images in it as PNG"),
    (
        0,
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "it is an office document",
        "Export the images in it as PNG",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "it is HDF5 (MATLAB 7.3, MINC 2 and others)", _ARRAY),
    (0, b"MATLAB 5.0", "it is a MATLAB file", _ARRAY),
    (0, b"CDF\x01", "it is netCDF (MINC 1 and others)", _ARRAY),
    (0, b"\x93NUMPY", "it is a NumPy array without spacing or orientation", _ARRAY),
    (0, b"SIMPLE  =", "it is FITS", _ARRAY),
    (
        0,
        b"ZISRAWFILE",
        "it is a microscope's CZI file",
        "Export the wanted region or level as TIFF or PNG",
    ),
    (0, b"8BPS", "it is a Photoshop file", "Export it as PNG"),
    (0, b"\x76\x2f\x31\x01", "it is OpenEXR", "Export it as TIFF"),
    (0, b"#?RADIANCE", "it is a Radiance picture", "Export it as TIFF"),
    (0, b"\0\0\x01\0", "it is an icon", "Export it as PNG"),
    (0, b"\0\0\0\x0cJXL ", "it is JPEG XL", "Export it as PNG"),
    (0, b"\xff\x0a", "it is JPEG XL", "Export it as PNG"),
    (0, b"II\xbc", "it is JPEG XR", "Export it as PNG"),
    (0, b"\xff\xd8\xff\xf7", "it is JPEG-LS outside of DICOM", "Export it as PNG"),
    (0, b"\x1a\x45\xdf\xa3", "it is a video (Matroska or WebM)", _FRAMES),
    (0, b"\0\0\x01\xba", "it is a video (MPEG)", _FRAMES),
    (0, b"FLV\x01", "it is a video", _FRAMES),
)
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def kind_of(path: Path) -> str:
    """What a file is: by its first bytes, else by its ending.

    Returns:
        One of PICTURES or VOLUMES, "DICOM", "npz" (an archive of arrays), or "" for anything else.
    """
    return _kind_of_content(_head(path)) or kind_of_ending(path)


def kind_of_ending(path: Path) -> str:
    """What the name says the file is; "" where it says nothing that is read here."""
    name = path.name.lower()
    return (
        "NIfTI"
        if name.endswith(".nii.gz")
        else _KIND_OF_ENDING.get(path.suffix.lower().lstrip("."), "")
    )


def readable_kind(path: Path) -> str:
    """As `kind_of`, for reading.

    Raises:
        ImageError: the file is known to be something else, such as a web page in place of a
            download.
    """
    reason = why_no_image(path)
    if reason:
        cause, _, remedy = reason.partition(". ")
        raise ImageError(f"{path}: not a readable {noun(kind_of_ending(path))} ({cause}). {remedy}")
    return kind_of(path)


def noun(kind: str) -> str:
    """What a message calls a file of this kind."""
    if kind in PICTURES - {"TIFF"}:
        return "picture"
    return (
        "volume"
        if kind in VOLUMES
        else {"TIFF": "TIFF", "DICOM": "DICOM file", ARCHIVE: "archive"}.get(kind, "image")
    )


def why_no_image(path: Path) -> str:
    """What the file is instead of an image, and what to do, as two sentences; "" for images, and
    where nothing is known.
    """
    ending = path.suffix.lower().lstrip(".")
    if ending in _SLIDES:
        return (
            "it is a whole slide. Export the wanted region, or a level that fits in memory, as "
            "TIFF or PNG."
        )
    head = _head(path)
    if _kind_of_content(head):
        return ""
    cause = _foreign(head, path)
    return f"{cause[0]}. {cause[1]}." if cause else ""


def unpack_gzip(head: bytes, count: int = _HEAD) -> bytes:
    """The first bytes of what a gzip file holds; fewer, or none, where it is cut or damaged."""
    try:
        return zlib.decompressobj(31).decompress(head, count)
    except zlib.error:
        return b""


def header_sizes(head: bytes) -> tuple[int, int]:
    """The first number of a file in both byte orders: 348 for NIfTI-1 and Analyze, 540 for
    NIfTI-2.
    """
    return int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")


def is_nifti_pair(head: bytes) -> bool:
    """True for the header of a pair: its pixels lie in a file of their own."""
    return head[344:347] == b"ni1" or head[4:7] == b"ni2"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_HEAD)
    except OSError:  # a folder, a file that is gone or may not be read: its name is all there is
        return b""


def _kind_of_content(head: bytes) -> str:
    by_signature = (
        kind for place, signature, kind in _SIGNATURES if head.startswith(signature, place)
    )
    by_test = (kind for kind, test in _TESTS if test(head))
    return next(by_signature, "") or next(by_test, "")


def _is_bmp(head: bytes) -> bool:
    """By the sizes that the second header can have: two letters alone begin texts too."""
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in {
        12,
        16,
        40,
        52,
        56,
        64,
        108,
        124,
    }


def _is_archive(head: bytes) -> bool:
    """A zip archive whose first member is an array."""
    return head[:4] == b"PK\x03\x04" and head[
        30 : 30 + int.from_bytes(head[26:28], "little")
    ].endswith(b".npy")


def _is_nifti(head: bytes) -> bool:
    head = unpack_gzip(head) if head[:2] == b"\x1f\x8b" else head
    sizes = header_sizes(head)
    return (348 in sizes and head[344:348] in {b"n+1\0", b"ni1\0"}) or (
        540 in sizes and head[4:8] in {b"n+2\0", b"ni2\0"}
    )


def _is_bare_dicom(head: bytes) -> bool:
    """A data set without its preamble: it begins with group 2 or 8, little endian, explicit or
    implicit.
    """
    if head[:4] == b"\x02\0\0\0":
        return head[4:6] == b"UL"
    if head[:2] != b"\x08\0" or head[3:4] != b"\0":
        return False
    return head[4:6] in _FIRST_VR or 0 < int.from_bytes(head[4:8], "little") <= 64


_TESTS: tuple[tuple[str, Callable[[bytes], object]], ...] = (
    ("JPEG", lambda head: head[:3] == b"\xff\xd8\xff" and head[3:4] != b"\xf7"),
    ("WebP", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    ("AVIF", lambda head: head[4:8] == b"ftyp" and re.search(rb"avi[fs]", head[8:40])),
    ("BMP", _is_bmp),
    (ARCHIVE, _is_archive),
    ("NIfTI", _is_nifti),
    ("PNM", _PNM.match),
    ("MetaImage", lambda head: _META.match(head) and _META_DIMENSIONS.search(head)),
    ("DICOM", _is_bare_dicom),
)


def _foreign(head: bytes, path: Path) -> tuple[str, str] | None:
    """What the file is, and what to do."""
    zipped = head[:2] == b"\x1f\x8b"
    if (zipped and kind_of_ending(path) == "NIfTI") or (not head and not _is_empty(path)):
        return None  # damaged, or not to be opened: its reader knows more
    if (unpack_gzip(head) if zipped else head)[:4] == b"\0\0\0\x01" and path.suffix.lower() in {
        ".mgh",
        ".mgz",
    }:
        return "it is a volume of FreeSurfer", "Convert it to NIfTI (mri_convert)"
    listed = (
        (cause, remedy)
        for place, signature, cause, remedy in _FOREIGN
        if head.startswith(signature, place)
    )
    tested = ((cause, remedy) for test, cause, remedy in _FOREIGN_TESTS if test(head))
    return next(listed, None) or next(tested, None) or (_AS_TEXT if _is_text(head) else None)


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _begin(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()


def _is_web_page(head: bytes) -> bool:
    return (
        _begin(head).startswith((b"<!doctype html", b"<head", b"<script"))
        or b"<html" in head.lower()
    )


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)


_ANALYZE = (
    "it has the header of Analyze 7.5, which does not tell left from right, or a damaged header "
    "of NIfTI"
)
_AS_TEXT = ("it is text", "Give the image itself, or leave it out")
_FOREIGN_TESTS: tuple[tuple[Callable[[bytes], object], str, str], ...] = (
    (lambda head: not head, "the file is empty (0 bytes)", "Copy or download it again"),
    (
        lambda head: not head.strip(b"\0"),
        "the file holds zeros in place of its content",
        "Copy or download it again",
    ),
    (
        lambda head: head[4:8] == b"ftyp" and head[8:12] in _HEIF,
        "it is HEIC, a photo of a phone",
        "Export it as JPEG or PNG",
    ),
    (lambda head: head[4:8] == b"ftyp", "it is a video (MP4 or MOV)", _FRAMES),
    (lambda head: head[:4] == b"RIFF", "it is a video or a sound (RIFF)", _FRAMES),
    (lambda head: 348 in header_sizes(head), _ANALYZE, "Convert it from its source to NIfTI"),
    (lambda head: b"<svg" in head.lower(), "it is a drawing (SVG)", "Export it as PNG"),
    (
        _is_web_page,
        "it is a web page saved in place of a download, such as a login page",
        "Download the file again, signed in",
    ),
    (
        lambda head: b"annex/objects/" in head[:400],
        "it is a git-annex pointer, not the file itself",
        "Run `git annex get` for it",
    ),
    (
        lambda head: _begin(head).startswith(b"<") and _is_text(head),
        "it is XML",
        "Give the image itself, or leave it out",
    ),
    (
        lambda head: _begin(head).startswith((b"{", b"[")) and _is_text(head),
        "it is JSON, as servers send in place of a download",
        "Download the file again, or leave it out",
    ),
)
