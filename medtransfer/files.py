"""Files: written whole or not at all, read in whatever encoding, and believed only with their
digest.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtransfer.errors import FileError

# Of every JSON and YAML file that is written; a file without it is older than the first format.
FORMAT = 1


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


def digest_of(values: Any) -> str:
    """SHA-256 of plain values: of their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_bytes(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any], sealed: bool = False) -> None:
    """Writes a JSON object with the number of its format.

    Args:
        path: of the file.
        content: plain values.
        sealed: also write the digest of the content, which `read_json` then checks.
    """
    whole = {"format": FORMAT, **content}
    if sealed:
        # As it is read back: JSON has no tuples, and its keys are texts.
        whole["digest"] = digest_of(json.loads(json.dumps(whole)))
    write_aside(path, json.dumps(whole, indent=1))


def read_json(path: Path, sealed: bool = False) -> dict[str, Any]:
    """The JSON object that `write_json` wrote, without its format and digest.

    Args:
        path: of the file.
        sealed: the digest of the content is checked; files older than the first format have none.

    Raises:
        FileError: no JSON object, of another format, or changed since it was written.
        FileNotFoundError: there is no such file.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is damaged; it is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise FileError(f"{path}: is damaged; it holds no object, but {str(content)[:40]!r}.")
    refuse_format(content.get("format"), path)
    digest = content.pop("digest", None) if sealed else None
    if sealed and (digest is not None or "format" in content) and digest != digest_of(content):
        raise FileError(f"{path}: is damaged; its content does not fit its digest.")
    content.pop("format", None)
    return content


def refuse_format(number: object, path: Path) -> None:
    """Stops at a file of a later format, or of none.

    Args:
        number: what the file says; None where it says nothing, as those before the first format.
        path: of the file.
    """
    if number is not None and (number != FORMAT or isinstance(number, bool)):
        raise FileError(
            f"{path}: is of format {str(number)[:40]}, and this version of medtransfer reads "
            f"format {FORMAT}. Use the version that wrote it, or a later one."
        )


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
