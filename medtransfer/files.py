"""Files written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path


def write_aside(path: Path, content: str | bytes) -> None:
    """Writes beside the file, then renames, so that no reader ever sees half of it, not even after a power cut.

    Raises:
        OSError: where it cannot be written; of a full disk it names the file, the space needed and the space there is.
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


def name_space(error: OSError, path: Path, size: int) -> OSError:
    """The error of a write, with the file, and of a full disk with the space it needs and the space there is.

    Args:
        error: as it was raised. path: of the file that was to be written. size: of its content in bytes.
    """
    if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return error if error.filename else OSError(error.errno, error.strerror or str(error), str(path))
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    what = f"{error.strerror}: it needs {_megabytes(size)}, and {_megabytes(free)} are free on this disk"
    return OSError(error.errno, what, str(path))


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.3g} MB" if size < 2**30 else f"{size / 2**30:.3g} GB"
