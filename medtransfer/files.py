"""Files: written whole or not at all, and read in whatever encoding."""

from __future__ import annotations

import codecs
import errno
import os
import shutil
import uuid
from pathlib import Path

from medtransfer.errors import StudyError


def write_aside(path: Path, content: str | bytes) -> None:
    """Writes beside the file, then renames, so that no reader ever sees half of it, not even after
    a power cut.

    Raises:
        OSError: where it cannot be written; of a full disk it names the file, the space needed and
            the space there is.
    """
    # A name no other process or host takes.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise name_space(error, path, len(data)) from error
    finally:
        part.unlink(missing_ok=True)


def decode_text(content: bytes) -> tuple[str, str]:
    """The text of a file, and its encoding where that is not UTF-8.

    UTF-8, UTF-16 and UTF-32 are known by their marks, UTF-16 of mostly ASCII without one too; what
    is none of these is read as Windows-1252 (or Latin-1), which has a letter for every byte.

    Raises:
        UnicodeDecodeError: a mark of an encoding that the text is not in.
    """
    marks = (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    )
    encoding = next((name for mark, name in marks if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:64]:
        # Without a mark: every other byte of ASCII text is zero, and none of the others.
        even, odd = content[0:64:2].count(0), content[1:64:2].count(0)
        if min(even, odd) == 0 and 3 * max(even, odd) > len(content[:64]) // 2:
            encoding = "utf-16-le" if odd else "utf-16-be"
    if encoding != "utf-8":
        return content.decode(encoding), "" if encoding == "utf-8-sig" else encoding.upper()
    try:
        return content.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("cp1252"), "Windows-1252 as it is not UTF-8"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1 as it is not UTF-8"


def name_space(error: OSError, path: Path, size: int) -> OSError:
    """The error of a write, with the file, and of a full disk with the space it needs and the space
    there is.

    Args:
        error: as it was raised. path: of the file that was to be written. size: of its content in
            bytes.
    """
    if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return (
            error
            if error.filename
            else OSError(error.errno, error.strerror or str(error), str(path))
        )
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    what = (
        f"{error.strerror}: it needs {_megabytes(size)}, and {_megabytes(free)} are free on this "
        "disk"
    )
    return OSError(error.errno, what, str(path))


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.3g} MB" if size < 2**30 else f"{size / 2**30:.3g} GB"


def refuse_unwritable(folder: Path) -> None:
    """Refuses a folder for results that cannot be made or written, before the work for them begins.

    Raises:
        StudyError: it is a file, lies in one, or is not writable.
    """
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder}: is a file. Choose another --output.")
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StudyError(f"{parent}: cannot be written. Choose another --output.")
