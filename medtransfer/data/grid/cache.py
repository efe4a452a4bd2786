"""What was decoded once: facts and network-ready pixels, on disk, by content.

An entry is named by the bytes of the file, the settings, and the code and libraries that make it,
so that a change of any of them makes another entry. Entries are written aside and renamed, so that
a second writer or a killed process never leaves half of one. Each ends with the digest of its
content, which is compared whenever it is read: disks and power cuts damage files in silence.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import shutil
import tempfile
import time
import warnings
from contextlib import suppress
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from medtransfer.data.images.volumes import detached_pixels, pixels_of_another
from medtransfer.files import write_aside

# Libraries that decide what an entry holds; the last two are used by pydicom where they are
# installed.
_LIBRARIES = (
    "imagecodecs",
    "monai",
    "nibabel",
    "numpy",
    "pillow",
    "pydicom",
    "pyjpegls",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "scikit-image",
    "scipy",
    "simpleitk",
    "tifffile",
    "torch",
    "python-gdcm",
    "pylibjpeg-libjpeg",
)
# Seconds after which activations that no study cleared away are of no use to anyone.
_STALE = 7 * 24 * 3600.0
_DIGEST_SIZE = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Where decoded images are kept: `$MEDTRANSFER_CACHE`, else the user's cache folder, else a
    temporary one.

    Never inside a study: a study folder is handed to others, the pixels of patients are not. May be
    removed at any time.
    """
    named = os.environ.get("MEDTRANSFER_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(named) if named else Path(home) / "medtransfer"
    try:
        _make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        temporary = (
            Path(tempfile.gettempdir())
            / f"medtransfer-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        )
        _make_private(temporary)
        warnings.warn(
            f"{folder} cannot be written ({error.strerror}); images are cached in {temporary}.",
            stacklevel=2,
        )
        return temporary


def feature_folder() -> Path:
    """Where activations of frozen stages are kept while a study lasts; those of studies that ended
    without clearing them away are removed after a week.

    Each start of this machine has a folder of its own, as activations are written without waiting
    for the disk, and a power cut may have lost some of them.
    """
    home = cache_folder() / "features"
    folder = home / f"{platform.node()}-{int(psutil.boot_time())}"
    for old in home.glob("*/*"):
        with suppress(OSError):
            if time.time() - max(path.stat().st_mtime for path in (old, *old.glob("*"))) > _STALE:
                shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _make_private(folder: Path) -> None:
    """Pixels of patients are for the user alone; a folder of another one is not used."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid() and os.getuid() != 0:
        raise PermissionError(errno.EACCES, "belongs to another user", str(folder))
    (folder / "images").mkdir(exist_ok=True)


def digest_file(path: Path, member: str = "") -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of a folder's files; with what stands
    behind `#`.
    """
    result = hashlib.sha256(member.encode())
    base = path if path.is_dir() else path.parent
    files = (
        sorted(p for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else [path, *detached_pixels(path)]
    )
    header = pixels_of_another(path)
    files += [header] if header is not None else []
    for file in files:
        stat = file.stat()
        result.update(os.fsencode(os.path.relpath(file, base)) + b"\0")
        result.update(_digest_bytes(file, stat.st_mtime_ns, stat.st_size))
    return result.hexdigest()


@lru_cache(maxsize=100_000)
def _digest_bytes(path: Path, changed: int, size: int) -> bytes:  # noqa: ARG001
    """Read once for the many images of an archive."""
    result = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            result.update(block)
    return result.digest()


def entry_path(folder: Path, file_digest: str, setting: str) -> Path:
    """Name of the entry for a file and a setting."""
    name = hashlib.sha256(f"{file_digest}|{setting}|{_maker()}".encode()).hexdigest()
    return folder / "images" / name[:2] / f"{name}.npy"


def read_entry(path: Path) -> NDArray[Any] | None:
    """The array of an entry; None where there is none, or it is damaged, which a warning says."""
    content = _read(path)
    if content is None:
        return None
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    if not np.isfinite(array).all():
        _warn_of_damage(path)
        return None
    return array


def write_entry(path: Path, array: NDArray[Any]) -> None:
    """Writes an array with its digest, whole or not at all."""
    stream = io.BytesIO()
    np.save(stream, array)
    _write(path, stream.getvalue())


def read_facts(folder: Path, file_digest: str) -> dict[str, Any] | None:
    """What was noted of a file, its small pictures among it; None where nothing was, or the note is
    damaged, which a warning says.
    """
    content = _read(_facts_path(folder, file_digest))
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "facts"}
        return {**json.loads(str(archive["facts"])), **arrays}


def write_facts(folder: Path, file_digest: str, facts: dict[str, Any]) -> None:
    """Keeps what was noted of a file: plain values and arrays."""
    arrays = {name: value for name, value in facts.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in facts.items() if name not in arrays}
    content: dict[str, Any] = {"facts": np.array(json.dumps(plain)), **arrays}
    stream = io.BytesIO()
    np.savez(stream, **content)
    _write(_facts_path(folder, file_digest), stream.getvalue())


def _facts_path(folder: Path, file_digest: str) -> Path:
    return entry_path(folder, file_digest, "facts").with_suffix(".npz")


def _read(path: Path) -> memoryview | None:
    """The content of a file that `_write` wrote; None where there is none or it is damaged."""
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError:  # a disk that fails on this file
        data = memoryview(b"")
    content, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        _warn_of_damage(path)
        return None
    return content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, content + hashlib.sha256(content).digest())


def _warn_of_damage(path: Path) -> None:
    warnings.warn(
        f"{path}: this entry of the image cache is damaged. It is not used, and is made anew from "
        "its image. Damage without a power cut or a full disk points to a failing disk.",
        stacklevel=3,
    )


@cache
def _maker() -> str:
    """Digest of the modules and versions that make an entry."""
    result = hashlib.sha256()
    data = Path(__file__).parents[1]
    for room in ("images", "grid"):  # whole packages, so that no module can be forgotten
        for path in sorted((data / room).rglob("*.py")):
            result.update(path.read_bytes())
    for name in _LIBRARIES:
        try:
            result.update(f"{name} {metadata.version(name)}".encode())
        except metadata.PackageNotFoundError:
            result.update(f"{name} none".encode())
    return result.hexdigest()
