"""What a torch file claims to hold, against what it has room for, before any of it is believed."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from medtransfer.errors import WeightsError

_MAGIC = 0x1950A86A20F9469CFC6C
# Of a torch file that was packed again, and of tensors that share their numbers.
_MOST_GROWTH = 16


def room_of(path: Path) -> int:
    """Bytes of tensors that a file may hold: its size, or that of its members where they are
    packed.
    """
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        return size
    with zipfile.ZipFile(path) as file:
        return max(size, sum(info.file_size for info in file.infolist()))


def check_claims(path: Path) -> None:
    """Compares the storages that a torch file names with those it holds; torch itself takes their
    sizes on trust.

    Raises:
        WeightsError: it claims more than it has room for.
        Exception: whatever a damaged file fails with.
    """
    if not zipfile.is_zipfile(path):
        _check_older(path)
        return
    with zipfile.ZipFile(path) as file:
        infos = file.infolist()
        names = [info.filename.casefold() for info in infos]
        if len(set(names)) < len(names):
            raise WeightsError(
                "names one of its parts twice and cannot be trusted. Download it again."
            )
        size, total = path.stat().st_size, sum(info.file_size for info in infos)
        stored = sum(info.file_size for info in infos if info.compress_type == zipfile.ZIP_STORED)
        if stored > size or total > _MOST_GROWTH * size:
            raise _too_large("its parts", total, size)
        root = names[0].partition("/")[0]
        held = {
            info.filename.partition("/data/")[2]: info.file_size
            for info in infos
            if "/data/" in info.filename
        }
        index = next(info for info in infos if info.filename.casefold() == f"{root}/data.pkl")
        with file.open(index) as stream:
            claims = _claims_of(stream)
    for key, claimed in claims.items():
        if claimed > held.get(key, 0):
            raise _too_large(f"the storage {key}", claimed, held.get(key, 0))


def check_tensors(path: Path, named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuses tensors that repeat their numbers (strides of 0, storages in common) to more than the
    file has room for.

    Raises:
        WeightsError: naming the tensor.
    """
    room, total = room_of(path), 0
    for name, value in named:
        claimed = value.numel() * value.element_size()
        total += claimed
        if claimed > room or total > _MOST_GROWTH * room:
            raise _too_large(name or "a tensor", claimed if claimed > room else total, room)


def _too_large(what: str, claimed: int, room: int) -> WeightsError:
    return WeightsError(
        f"{what} would take {claimed} bytes, and the file has room for {room}: damaged or made to "
        "harm. Download it again."
    )


def _check_older(path: Path) -> None:
    """Before torch 1.6: three small pickles, the tensors' pickle, and the storages behind it."""
    with path.open("rb") as stream:
        if _Reader(stream).load() != _MAGIC:
            raise pickle.UnpicklingError("unsupported global: a pickle that torch has not written")
        for _ in range(2):
            _Reader(stream).load()
        claimed = sum(_claims_of(stream).values())
    if claimed > path.stat().st_size:
        raise _too_large("its tensors", claimed, path.stat().st_size)


def _claims_of(stream: IO[bytes]) -> dict[str, int]:
    reader = _Reader(stream)
    reader.load()
    return reader.claims


class _Inert(dict[Any, Any]):
    """Stands for any object of a pickle: takes what it is given, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, _: Any) -> None: ...

    def append(self, _: Any) -> None:
        """As of a list."""

    def extend(self, _: Any) -> None:
        """As of a list."""

    def add(self, _: Any) -> None:
        """As of a set."""

    __hash__ = object.__hash__  # type: ignore[assignment]


# In Python, as the reader in C takes memory for the numbers of its notes on trust.
class _Reader(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    """Reads a pickle without running or building anything, and notes the storages that it names."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.claims: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        size = _SIZES.get(name) if module in {"torch", "torch.storage"} else None
        return _Inert if size is None else size

    def persistent_load(self, pid: Any) -> _Inert:
        # ("storage", class, key, place, number of elements), and in older files a view of it. Older
        # models name their source too.
        if isinstance(pid, tuple) and pid and pid[0] != "storage":
            return _Inert()
        if (
            not isinstance(pid, tuple)
            or len(pid) < 5
            or not isinstance(pid[1], int)
            or not isinstance(pid[4], int)
            or pid[4] < 0
        ):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        key = str(pid[2])
        self.claims[key] = max(self.claims.get(key, 0), pid[1] * pid[4])
        return _Inert()


# Bytes of one element, by the class of storage that a file names.
_SIZES = {
    **dict.fromkeys(("UntypedStorage", "ByteStorage", "CharStorage", "BoolStorage"), 1),
    **dict.fromkeys(("QUInt8Storage", "QInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
