"""Files of weights -> what they hold, by their first bytes. No code in a file is ever run, and no
memory is taken on its word.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import json
import lzma
import pathlib
import pickle
import re
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from medtransfer.errors import WeightsError
from medtransfer.models.weights.claims import check_claims, room_of

KERAS = (".h5", ".hdf5")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".model", ".weights", *KERAS)
_PACKERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
# Weights hardly pack; what grows more than this is no packed file of weights.
_MOST_GROWTH = 20
_AGAIN = "Download it again."
# In the metadata of the files that are written here.
_DIGEST = "digest"
# Files that are no weights, by their beginning: what they are, and what mends it.
_STRANGERS: tuple[tuple[str, str, str], ...] = (
    (
        r"version https://git-lfs",
        "it is a pointer of Git LFS, which stands for the file",
        "Run `git lfs pull` in its repository.",
    ),
    (
        r"(?i)\s*(?:\xef\xbb\xbf)?<(?:!doctype|html|head|body|\?xml)",
        "it is a web page that was saved in place of the file",
        "Download it again, from the link of the file itself.",
    ),
    (
        r"\x93NUMPY",
        "it is an array of NumPy",
        "Save the network's tensors: torch.save(model.state_dict(), PATH).",
    ),
    (
        r"GGUF|(?s:.{4}TFL3)",
        "it is a network of GGUF or TensorFlow Lite",
        "Give the weights of timm or torchvision.",
    ),
    (
        r"7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd",
        "it is a packed file",
        "Unpack it, and give the file inside.",
    ),
)
_CODE = (
    "and is refused, as it could run code. Where you trust it, save its tensors alone where it "
    "was made: "
    "torch.save(model.state_dict(), PATH)."
)


def kind_of(path: Path) -> str:
    """`safetensors`, `torch`, `keras`, `archive` (of one file), or "" for what only its ending can
    say.
    """
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras"
    if start.startswith(tuple(_PACKERS)):
        return "archive"
    if start.startswith(b"PK\x03\x04"):
        return "archive" if _is_archive(path) else "torch"
    # Eight bytes of length, and a header in JSON that the file has room for.
    if (
        len(start) > 8
        and start[8:9] == b"{"
        and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8
    ):
        return "safetensors"
    return "torch" if re.match(rb"\x80[\x02-\x05]", start) else ""


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return not any(name.endswith("/data.pkl") for name in file.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False  # damaged: torch says so


def read_content(path: Path) -> Any:
    """Reads whatever tensors a file holds, in the dictionaries it holds them in.

    Safetensors, torch (zipped or older) and Keras's HDF5, told by their first bytes, whatever the
    ending; or one of them in a zip, gzip, bzip2 or xz. Keras tensors are named `layer/kernel` and
    so on, and keep Keras's axes.

    Raises:
        WeightsError: damaged, no file of weights, with code in it, or claiming more than it has
            room for.
    """
    with unpacked(path) as (file, kind):
        try:
            if kind == "keras":
                return _read_keras(path, file)
            if kind == "safetensors":
                return _read_safetensors(file)
            return _read_torch(file)
        except WeightsError as error:
            raise WeightsError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
        except Exception as error:  # a damaged file fails in any way
            raise WeightsError(f"{path}: {_diagnosis(file, error)}") from error


def seal_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with a digest of both, which `read_content` then checks.

    Args:
        tensors: on the CPU, contiguous, by name.
        metadata: what the file says of itself.
    """
    return {**metadata, _DIGEST: _digest_tensors(tensors, metadata)}


def _digest_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(file, "pt") as content:
        metadata = dict(content.metadata() or {})
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    # Where there is none, its name may be what was damaged.
    digest = metadata.pop(_DIGEST, None) or next(
        (v for v in metadata.values() if len(v) == 64), None
    )
    if digest is not None and digest != _digest_tensors(tensors, metadata):
        raise WeightsError("is damaged; its tensors do not fit their digest. Copy it again.")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty for other files."""
    with unpacked(path) as (file, kind):
        if kind != "safetensors":
            return {}
        try:
            with safetensors.safe_open(file, "pt") as content:
                return dict(content.metadata() or {})
        except Exception as error:  # a damaged file fails in any way
            raise WeightsError(f"{path}: {_diagnosis(file, error)}") from error


def is_keras(path: Path) -> bool:
    """Whether a file is one of Keras: by its content, or where that says nothing by its ending."""
    if not path.is_file():
        return path.suffix in KERAS
    with unpacked(path) as (_, kind):
        return kind == "keras" and path.stat().st_size > 0


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, str]]:
    """The file, or the only file of an archive in a folder that is removed afterwards, and its
    kind.
    """
    try:
        kind = kind_of(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}). Check that it is there and may be read."
        ) from error
    if kind != "archive":
        # What has no mark of its own is what its name says.
        yield (
            path,
            kind
            or (
                "keras"
                if path.suffix in KERAS and not _stranger(path)
                else path.suffix.removeprefix(".")
            ),
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            inside = _unpack(path, Path(folder))
            kind = kind_of(inside)
        except WeightsError:
            raise
        except Exception as error:  # a damaged archive fails in any way
            raise WeightsError(
                f"{path}: not a readable weights file (its archive is damaged: "
                f"{_first_line(error)}). {_AGAIN}"
            ) from error
        if kind == "archive":
            raise WeightsError(
                f"{path}: is an archive in an archive. Unpack it, and give the file inside."
            )
        yield inside, kind


def _unpack(path: Path, folder: Path) -> Path:
    limit = _MOST_GROWTH * path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
    packer = next((opener for mark, opener in _PACKERS.items() if start.startswith(mark)), None)
    if packer is not None:
        inside = folder / "content"
        with packer(path) as packed:
            _copy(packed, inside, path, limit)
        return inside
    with zipfile.ZipFile(path) as file:
        files = [
            info
            for info in file.infolist()
            if not info.is_dir() and not re.search(r"(^|/)(__MACOSX/|\.)", info.filename)
        ]
        likely = [info for info in files if Path(info.filename).suffix.lower() in _ENDINGS] or (
            files if len(files) == 1 else []
        )
        if len(likely) != 1:
            names = ", ".join(Path(info.filename).name for info in (likely or files)[:4])
            held = f"{len(likely)} files of weights" if likely else "no file of weights"
            raise WeightsError(
                f"{path}: is a zip with {held} ({names or 'empty'}). Unpack it, and give the path "
                "of one file."
            )
        inside = folder / f"content{Path(likely[0].filename).suffix}"
        with file.open(likely[0]) as packed:
            _copy(packed, inside, path, limit)
    return inside


def _copy(source: IO[bytes], target: Path, path: Path, limit: int) -> None:
    written = 0
    with target.open("wb") as stream:
        while part := source.read(1 << 20):
            written += len(part)
            if written > limit:
                raise WeightsError(
                    f"{path}: unpacks to more than {_MOST_GROWTH} times its size. Unpack it, and "
                    "give the file inside."
                )
            stream.write(part)


# Classes of settings and figures that people keep beside the tensors. They hold values and run
# nothing.
def _inert() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    numbers = [
        (scalar, f"numpy.{place}.multiarray.scalar") for place in ("core", "_core")
    ]  # numpy 1 and 2
    types = [
        kind
        for kind in vars(np.dtypes).values()
        if isinstance(kind, type) and issubclass(kind, np.dtype)
    ]
    # A path of another system, too, is but a name here.
    kinds = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    paths = [
        (pathlib.PurePath, f"{module}.{kind}")
        for module in ("pathlib", "pathlib._local")
        for kind in kinds
    ]
    tables = [
        (_plain_table, "collections.defaultdict"),
        list,
        dict,
        int,
        float,
    ]  # with the kinds of its values
    return [argparse.Namespace, slice, np.dtype, *numbers, *types, *paths, *tables]


def _plain_table(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _read_torch(path: Path) -> Any:
    check_claims(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals(_inert()):
        warnings.simplefilter("ignore")  # remarks on the pickle protocol; what matters is raised
        with path.open("rb") as stream:  # torch goes by the ending of a path
            return torch.load(stream, map_location="cpu", weights_only=True)


def _diagnosis(path: Path, error: Exception) -> str:
    """What is wrong with a file that cannot be read, and what mends it."""
    text = str(error)
    if "TorchScript" in text:
        return f"is a TorchScript program {_CODE}"
    if isinstance(error, pickle.UnpicklingError) and re.search(
        r"(?i)unsupported (global|class)|GLOBAL \S+\.\S+", text
    ):
        named = re.search(r"GLOBAL ([\w.]+\.\w+)", text)
        return (
            f"holds more than tensors{f', of the class {named.group(1)},' if named else ''} {_CODE}"
        )
    found = _stranger(path)
    if found is not None:
        return f"not a readable weights file ({found[0]}). {found[1]}"
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(24)
    what = f"{size} bytes, beginning with {start!r}" if size else "it is empty"
    if lacking := _missing_bytes(path):
        what = f"{lacking} bytes are missing at its end"
    elif start.startswith(b"PK") and not _has_index(path):
        what = "bytes are missing at its end"
    return f"not a readable weights file ({what}). {_AGAIN}"


def _stranger(path: Path) -> tuple[str, str] | None:
    with path.open("rb") as stream:
        start = stream.read(512)
    text = start.decode("latin-1")
    for pattern, what, remedy in _STRANGERS:
        if re.match(pattern, text):
            return what, remedy
    return (
        ("it is a tar archive", "Unpack it, and give the file inside.")
        if start[257:262] == b"ustar"
        else None
    )


def _missing_bytes(path: Path) -> int:
    """How many bytes a safetensors file lacks of those in its header; 0 where that cannot be
    told.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length < size else {}
        ends = [
            int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"
        ]
        return max(0, 8 + length + max(ends) - size) if ends else 0
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        OverflowError,
    ):
        return 0


def _has_index(path: Path) -> bool:
    """Whether the index at the end of a zip is there."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it is, and makes no sense
        return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_keras(path: Path, file: Path) -> dict[str, Tensor]:
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(
            f"{path}: reading Keras files needs h5py: pip install 'medtransfer[keras]'"
        ) from error
    tensors: dict[str, Tensor] = {}
    room = _MOST_GROWTH * room_of(file)

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            # A data set that was never written, or is packed, may claim any size.
            if item.nbytes > room - sum(value.nbytes for value in tensors.values()):
                raise WeightsError(
                    f"{name} claims {item.nbytes} bytes, more than the file has room for. {_AGAIN}"
                )
            # model_weights/conv1_conv/conv1_conv/kernel:0 -> conv1_conv/kernel; DenseNet's layers
            # hold a slash: conv1/bn/gamma.
            parts = [part for part in name.split("/") if part != "model_weights"]
            half = parts[: (len(parts) - 1) // 2]
            layer = half if half and parts[:-1] == half + half else parts[:-1]
            tensors["/".join([*layer, parts[-1].partition(":")[0]])] = torch.from_numpy(
                np.asarray(item[()])
            )

    try:
        with h5py.File(file, "r") as stream:
            stream.visititems(collect)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file fails in any way
        reason = _diagnosis(file, error).replace(
            "not a readable weights file", "not a readable Keras .h5 file"
        )
        raise WeightsError(f"{path}: {reason}") from error
    if not tensors:
        raise WeightsError(f"{path}: holds no weights. {_AGAIN}")
    return tensors
