"""What was decoded once: facts and network-ready pixels, on disk, by content.

An entry is named by the bytes of the file, the settings, and the code and libraries that make it,
so that a change of any of them makes another entry. Entries are written aside and renamed: a
reader, a second writer or a killed process never leaves half of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
import uuid
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
from medtransfer.files import name_space

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
_LEFT_BEHIND = 7 * 24 * 3600.0


def cache_folder() -> Path:
    """Where decoded images are kept: `$MEDTRANSFER_CACHE`, else the user's cache folder, else a
    temporary one.

    Never inside a study: a study folder is handed to others, the pixels of patients are not. May be
    removed at any time.
    """
    chosen = os.environ.get("MEDTRANSFER_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(chosen) if chosen else Path(home) / "medtransfer"
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
    """Where activations of frozen stages are kept while a study lasts; what other days left behind
    is removed.

    One folder for each start of this machine: after a power cut nobody knows what had reached the
    disk.
    """
    home = cache_folder() / "features"
    folder = home / f"{platform.node()}-{int(psutil.boot_time())}"
    for old in home.glob("*/*"):
        with suppress(OSError):
            if (
                time.time() - max(path.stat().st_mtime for path in (old, *old.glob("*")))
                > _LEFT_BEHIND
            ):
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
    """The array of an entry, mapped from disk; None where there is none, or it was cut short."""
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    except (OSError, ValueError, EOFError):
        return None


def write_entry(path: Path, array: NDArray[Any]) -> None:
    """Writes aside, then renames."""
    _write(path, lambda stream: np.save(stream, array), array.nbytes)


def read_facts(folder: Path, file_digest: str) -> dict[str, Any] | None:
    """What was noted of a file, its small pictures among it; None where nothing was."""
    path = entry_path(folder, file_digest, "facts").with_suffix(".npz")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name != "facts"}
            return {**json.loads(str(archive["facts"])), **arrays}
    except Exception:
        return None


def write_facts(folder: Path, file_digest: str, facts: dict[str, Any]) -> None:
    """Keeps what was noted of a file: plain values and arrays."""
    arrays = {name: value for name, value in facts.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in facts.items() if name not in arrays}
    path = entry_path(folder, file_digest, "facts").with_suffix(".npz")
    size = sum(array.nbytes for array in arrays.values())
    content: dict[str, Any] = {"facts": np.array(json.dumps(plain)), **arrays}
    _write(path, lambda stream: np.savez(stream, **content), size)


def _write(path: Path, save: Any, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name no other process or host takes, where the cache lies on a shared disk.
    part = path.with_name(f".{path.stem[:16]}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as stream:
            save(stream)
        part.replace(path)
    except OSError as error:
        raise name_space(error, path, size) from error
    finally:
        part.unlink(missing_ok=True)


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
