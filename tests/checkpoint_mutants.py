"""Damaged checkpoints: seeded mutations of a safetensors and a torch file, for the fuzz test and
the fuzz benchmark.

Nothing may come of them but a network that holds the file's numbers, or an error that names the
file:

    for path, change in checkpoint_mutants(seed=1, count=100, folder=tmp_path):
        assert try_checkpoint(path) == "", change
        path.unlink()
"""

from __future__ import annotations

import io
import json
import os
import resource
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from medtransfer.errors import MedTransferError
from medtransfer.models.chain.backbone import Recipe
from medtransfer.models.weights.locate import Located, fill_network
from torch import nn

SLOWEST_SECONDS = 5.0
MOST_BYTES = 1_000_000_000
# Numbers at the limits of the fields that lengths and offsets have.
_LIMITS = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
    0xFFFFFFFFFFFFFFFF,
)
_NAMES = (
    "",
    "x",
    "module",
    "module.conv1.weight",
    "conv1",
    "conv1.weight",
    "student.conv1.weight",
    "features.0.0.weight",
    "0.weight",
)


class Small(nn.Module):
    """Two convolutions with norms, and a classifier that is no part of what is filled; 9 kB of
    weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 24, 3), nn.BatchNorm2d(24)


@cache
def originals() -> dict[str, bytes]:
    """A sound file by ending: the tensors of a `Small` and of a classifier behind it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        tensors = {
            **Small().state_dict(),
            "fc.weight": torch.randn(2, 24),
            "fc.bias": torch.randn(2),
        }
    stream = io.BytesIO()
    torch.save(tensors, stream)
    older = io.BytesIO()
    torch.save({"epoch": 3, "state_dict": tensors}, older, _use_new_zipfile_serialization=False)
    return {
        "safetensors": safetensors.torch.save(tensors),
        "pth": stream.getvalue(),
        "pt": older.getvalue(),
    }


def checkpoint_mutants(seed: int, count: int, folder: Path) -> Iterator[tuple[Path, str]]:
    """Writes damaged checkpoints, one after the other, in turn of each format.

    Bytes flipped, set to limits, cut out, doubled, and the end cut off; lengths of headers changed;
    entries renamed, removed, or with another kind, shape or place; parts of the archive renamed,
    removed or with changed bytes and right checksums.

    Args:
        seed: of the changes; the same seed gives the same files.
        count: of files.
        folder: where they are written. Whoever asks for them removes them.

    Yields:
        The path of a file, and what was done to it, in words.
    """
    rng = np.random.default_rng(seed)
    sound = list(originals().items())
    changes: dict[str, list[Callable[[bytes, np.random.Generator], bytes]]] = {
        "safetensors": [change_bytes, change_length, change_entry],
        "pth": [change_bytes, change_part, change_part],
        "pt": [change_bytes],
    }
    for number in range(count):
        ending, data = sound[number % len(sound)]
        change = changes[ending][int(rng.integers(len(changes[ending])))]
        path = folder / f"{number}.{ending}"
        path.write_bytes(change(data, rng))
        yield path, f"{change.__name__} of a .{ending}"


def change_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes, mostly near the beginning or the end, where headers and indices are."""
    result = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if len(result) < 16:
            break
        place, reach = rng.uniform(), min(len(result), 2048)
        at = (
            int(rng.integers(reach))
            if place < 0.4
            else len(result) - 1 - int(rng.integers(reach if place < 0.8 else len(result)))
        )
        kind, width = int(rng.integers(6)), int(rng.choice([1, 2, 4, 8]))
        if kind == 0:
            result[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            result[at] = int(rng.integers(256))
        elif kind == 2:
            number = _LIMITS[int(rng.integers(len(_LIMITS)))] % (1 << 8 * width)
            result[at : at + width] = number.to_bytes(
                width, "little" if rng.uniform() < 0.7 else "big"
            )
        elif kind == 3:
            del result[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            result[at:at] = result[at : at + int(rng.integers(1, 64))]
        else:
            del result[int(rng.integers(len(result))) :]
    return bytes(result)


def change_length(data: bytes, rng: np.random.Generator) -> bytes:
    """Another length of the header of a safetensors file, near the right one or at a limit."""
    length = int.from_bytes(data[:8], "little")
    near = length + int(rng.integers(-9, 10))
    changed = near if rng.uniform() < 0.5 else _LIMITS[int(rng.integers(len(_LIMITS)))]
    return changed.to_bytes(8, "little") + data[8:]


def change_entry(data: bytes, rng: np.random.Generator) -> bytes:
    """One entry of the header of a safetensors file renamed, removed, doubled, or with another
    kind, shape or place.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    key = str(rng.choice([name for name in header if name != "__metadata__"]))
    entry = header[key]
    kind = int(rng.integers(6))
    if kind == 0:
        header[_another_name(key, rng)] = header.pop(key)
    elif kind == 1:
        del header[key]
    elif kind == 2:
        header[_another_name(key, rng)] = dict(entry)
    elif kind == 3:
        entry["dtype"] = str(
            rng.choice(
                [
                    "F64",
                    "F32",
                    "F16",
                    "BF16",
                    "I64",
                    "I32",
                    "I8",
                    "U8",
                    "BOOL",
                    "F8_E4M3",
                    "C64",
                    "F4",
                    "?",
                ]
            )
        )
    elif kind == 4:
        number = int(rng.choice([0, 1, 2, 3, 24, 72, 10**6, 2**31, 2**62]))
        entry["shape"] = (
            [*entry["shape"][:-1], number] if rng.uniform() < 0.5 else [*entry["shape"], number]
        )
    else:
        entry["data_offsets"][int(rng.integers(2))] = int(
            rng.choice([0, 1, 4, 8, 100, len(data), 2**31, 2**62])
        )
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + data[8 + length :]


def change_part(data: bytes, rng: np.random.Generator) -> bytes:
    """One part of the archive of a torch file renamed, removed, doubled, packed, or with changed
    bytes; its checksums are right.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
        names = old.namelist()
        index = next(name for name in names if name.endswith("data.pkl"))
        # The list of tensors every other time: it says how large they are, and where they lie.
        chosen = index if rng.uniform() < 0.5 else str(rng.choice(names))
        kind = int(rng.integers(2, 7)) if chosen == index else int(rng.integers(5))
        for name in names:
            content = old.read(name)
            if name == chosen and kind == 1:
                continue
            if name == chosen and kind >= 3:
                content = (
                    change_bytes(content, rng) if kind < 5 else _change_tensor_list(content, rng)
                )
            packing = zipfile.ZIP_DEFLATED if name == chosen and kind == 2 else zipfile.ZIP_STORED
            new.writestr(
                (_another_name(name, rng) or "x") if name == chosen and kind == 0 else name,
                content,
                packing,
            )
    return target.getvalue()


def _change_tensor_list(content: bytes, rng: np.random.Generator) -> bytes:
    """One number, or one name, of the pickle that lists the tensors: the rest of it stays
    readable.
    """
    result = bytearray(content)
    if rng.uniform() < 0.4:
        old = str(
            rng.choice(
                [
                    "conv1",
                    "conv2",
                    "bn1",
                    "bn2",
                    "weight",
                    "bias",
                    "FloatStorage",
                    "LongStorage",
                    "OrderedDict",
                ]
            )
        ).encode()
        new = (
            bytes(rng.permutation(np.frombuffer(old, np.uint8)))
            if rng.uniform() < 0.5
            else b"IntStorage  "[: len(old)].ljust(len(old))
        )
        return bytes(result).replace(old, new, 1)
    numbers = [i for i, byte in enumerate(result) if byte in b"KM"]  # of one byte and of two
    at = numbers[int(rng.integers(len(numbers)))] + 1
    width = 1 if result[at - 1] == ord("K") else 2
    result[at : at + width] = (_LIMITS[int(rng.integers(6))] % (1 << 8 * width)).to_bytes(
        width, "little"
    )
    return bytes(result)


def _another_name(name: str, rng: np.random.Generator) -> str:
    kind = int(rng.integers(3))
    if kind == 0:
        return _NAMES[int(rng.integers(len(_NAMES)))]
    return (
        f"module.{name}"
        if kind == 1
        else name[: int(rng.integers(len(name)))] + "Ä" + name[len(name) // 2 :]
    )


def try_checkpoint(path: Path) -> str:
    """Fills a network from a damaged file; "" where all is well, else what is wrong with the
    product.
    """
    begun, before = time.monotonic(), _peak()
    fault = ""
    network = Small()
    for value in network.state_dict().values():
        value.fill_(-77)
    try:
        fill_network(
            network,
            "small",
            f"file:{path}",
            Located(path, Recipe((0.5,) * 3, (0.5,) * 3, 32), path.name),
            3,
            (),
        )
        fault = _differences(network, path)
    except MedTransferError as error:
        if path.name not in str(error):
            fault = f"the error does not name the file: {error}"
        elif any(bool((value != -77).any()) for value in network.state_dict().values()):
            fault = "the network was changed, and the file refused"
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    spent, grown = time.monotonic() - begun, _peak() - before
    if spent > SLOWEST_SECONDS:
        fault = f"took {spent:.1f} s"
    if grown > MOST_BYTES:
        fault = f"took {grown / 1e9:.1f} GB"
    return f"{path.name}: {fault}" if fault else ""


def _differences(network: nn.Module, path: Path) -> str:
    """Compares with the file, read in another way; a name may have a prefix that stands before one
    of that name alone.
    """
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
        # One dictionary around the tensors, whatever became of its name.
        tensors = next((value for value in content.values() if isinstance(value, dict)), content)
    for key, value in network.state_dict().items():
        given = [tensors[name] for name in tensors if name == key] or [
            tensors[name] for name in tensors if name.endswith(f".{key}")
        ]
        if key.endswith("num_batches_tracked") and key not in tensors:
            continue  # not needed, and so not looked for behind a prefix
        if len(given) != 1:
            return f"{key} was filled, and the file holds {len(given)} of that name"
        if not torch.equal(given[0].to(value.dtype), value):
            return f"{key} is not what the file holds"
    return ""


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The format by its description: a length, a header in JSON, numbers in a row."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    kinds = {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "I64": "<i8",
        "I32": "<i4",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }
    found = {}
    for key, entry in json.loads(data[8 : 8 + length]).items():
        if key != "__metadata__" and entry["dtype"] in kinds:
            start, end = entry["data_offsets"]
            numbers = np.frombuffer(
                data[8 + length + start : 8 + length + end], kinds[entry["dtype"]]
            )
            found[key] = torch.from_numpy(numbers.reshape(entry["shape"]).copy())
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if os.uname().sysname == "Darwin" else 1024
    )
