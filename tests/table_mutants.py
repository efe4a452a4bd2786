"""Damaged tables and annotations: seeded mutations of sound ones, for the fuzz test and the fuzz
benchmark.

Nothing may come of them but a cohort (or a report) whose account shows what was done, or an error
that names the file. A mutation that removes, renames or doubles one entry says what the account has
to show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import medtransfer as mt
import numpy as np
from medtransfer.data.cohort.cohort import Cohort
from medtransfer.errors import MedTransferError
from medtransfer.evaluation.tables.candidates import read_candidates, read_lesions
from PIL import Image

SLOWEST_SECONDS = 5.0
IMAGES = [f"i{n}.png" for n in range(8)]
POSITIVE = IMAGES[:5]
KINDS = (
    "predictions.csv",
    "manifest.csv",
    "boxes.csv",
    "coco.json",
    "yolo",
    "voc",
    "candidates.csv",
    "lesions.csv",
)
_BYTES = (
    b"\0",
    b'"',
    b";",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"\xff",
    b"\xe9",
    b"'",
    b"=",
    b" ",
    b"9",
    b"-",
    b".",
    b"e",
    b"{",
    b"}",
    b"<",
    b"&",
)


@dataclass(frozen=True)
class TableMutant:
    """One damaged source.

    Attributes:
        kind: of `KINDS`. content: of the file; of yolo and voc that of the first image's. change:
            what was done.
        entry: what became of one entry: removed, renamed, doubled; "" where bytes were changed.
    """

    kind: str
    content: bytes
    change: str
    entry: str = ""


def sound(kind: str) -> list[str]:
    """The entries of a sound source, a line (or an element) each; the header of a table first."""
    rng = np.random.default_rng(0)
    corners = [(image, 4 + n, 6, 20 + n, 26) for n, image in enumerate(POSITIVE)]
    numbered = [(image, f"p{n}", str(n % 2)) for n, image in enumerate(IMAGES)]
    box = "<bndbox><xmin>{}</xmin><ymin>8</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    marks = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [x, y, c - x, d - y]}
        for n, (_, x, y, c, d) in enumerate(corners)
    ]
    boxes = ["image,x0,y0,x1,y1", *(",".join(map(str, row)) for row in corners)]
    return {
        "predictions.csv": [
            "image,patient,target,probability",
            *(f"{','.join(row)},{rng.uniform():.6f}" for row in numbered),
        ],
        "manifest.csv": ["image,patient,malignant", *(",".join(row) for row in numbered)],
        "boxes.csv": boxes,
        "lesions.csv": boxes,
        "candidates.csv": [f"{boxes[0]},probability", *(f"{row},0.5" for row in boxes[1:])],
        "coco.json": [json.dumps(mark) for mark in marks],
        "yolo": ["0 0.3 0.4 0.2 0.2", "1 0.6 0.4 0.1 0.2"],
        "voc": [f"<object><name>x</name>{box.format(n)}</object>" for n in (4, 9)],
    }[kind]


def join(kind: str, entries: list[str]) -> bytes:
    """The content of a source."""
    if kind == "coco.json":
        images = [{"id": n, "file_name": image} for n, image in enumerate(IMAGES)]
        text = json.dumps({"images": images, "categories": [{"id": 1, "name": "x"}]})[:-1]
        return f'{text}, "annotations": [{", ".join(entries)}]}}'.encode()
    if kind == "voc":
        return f"<annotation>{''.join(entries)}</annotation>".encode()
    return ("\n".join(entries) + "\n").encode()


def table_mutants(seed: int, count: int) -> Iterator[TableMutant]:
    """As many mutants, each of one source, half with one entry changed and half with bytes
    changed.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        entries = sound(kind)
        first = 1 if kind.endswith(".csv") else 0
        place = int(rng.integers(first, len(entries)))
        if rng.random() < 0.5:
            entry = str(rng.choice(["removed", "renamed", "doubled"]))
            if entry == "removed":
                entries.pop(place)
            elif entry == "doubled":
                entries.insert(place, entries[place])
            elif kind.endswith(".csv"):
                name, _, rest = entries[place].partition(",")
                new = str(
                    rng.choice(
                        [
                            f"x{name}",
                            name.upper(),
                            name.replace(".png", ".jpg"),
                            f"other/{name}",
                            name.replace("i", "i 0"),
                            "gone.png",
                        ]
                    )
                )
                entries[place] = f"{new},{rest}"
            elif kind == "coco.json":
                entries[place] = entries[place].replace('"image_id": ', '"image_id": 9')
            else:
                entry = "doubled"
                entries.insert(place, entries[place])
            yield TableMutant(
                kind,
                join(kind, entries),
                f"entry {place} {entry}: {entries[min(place, len(entries) - 1)][:60]}",
                entry,
            )
            continue
        content = bytearray(join(kind, entries))
        for _ in range(int(rng.integers(1, 6))):
            at = int(rng.integers(0, len(content)))
            how = int(rng.integers(0, 4))
            if how == 0:
                content[at : at + 1] = _BYTES[int(rng.integers(len(_BYTES)))]
            elif how == 1:
                del content[at : at + int(rng.integers(1, 20))]
            elif how == 2:
                content[at:at] = _BYTES[int(rng.integers(len(_BYTES)))] * int(rng.integers(1, 4))
            else:
                content[at] = int(rng.integers(256))
            content = content or bytearray(b"x")
        yield TableMutant(kind, bytes(content), "bytes changed")


def write_images(folder: Path) -> None:
    """The pictures that the sources are about."""
    for n, image in enumerate(IMAGES):
        pixels = np.random.default_rng(n).integers(0, 255, (48, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / image)


def try_table(mutant: TableMutant, folder: Path) -> str:
    """What is wrong with what comes of a mutant, "" where nothing is; `folder` holds the images of
    `write_images`.
    """
    begun = time.monotonic()
    name = {"yolo": "i0.txt", "voc": "i0.xml"}.get(mutant.kind, mutant.kind)
    path = folder / name
    path.write_bytes(mutant.content)
    try:
        fault = _read(mutant, folder, path)
    except MedTransferError as error:
        fault = (
            ""
            if name.split(".")[0] in str(error) or str(folder) in str(error)
            else f"an error that names no file: {error}"
        )
    except Exception as error:  # the fault that is looked for
        fault = f"{type(error).__name__}: {error}"
    finally:
        path.unlink()
    if not fault and time.monotonic() - begun > SLOWEST_SECONDS:
        fault = f"took {time.monotonic() - begun:.1f} s"
    return f"{mutant.kind} ({mutant.change}): {fault}" if fault else ""


def _read(mutant: TableMutant, folder: Path, path: Path) -> str:
    entries = len(sound(mutant.kind)) - mutant.kind.endswith(".csv")
    if mutant.kind == "predictions.csv":
        report = mt.evaluate(path, bootstrap=100).to_dict()
        accounts = report["accounts"]
    elif mutant.kind in {"candidates.csv", "lesions.csv"}:
        table = (read_candidates if mutant.kind == "candidates.csv" else read_lesions)(path)
        twice = len(table.attrs.get("twice", []))
        accounts = [
            {"given": len(table) + twice, "used": len(table), "left_out": [{"count": twice}]}
        ]
    else:
        if mutant.kind == "manifest.csv":
            cohort = Cohort.from_csv(path, folder, ["malignant"])
        else:
            cohort = Cohort.from_boxes(folder, str(path) if "." in mutant.kind else mutant.kind)
        accounts = [account.to_dict() for account in cohort.accounts]
    for account in accounts:
        if account["given"] != account["used"] + sum(part["count"] for part in account["left_out"]):
            return f"the account does not add up: {account}"
    given = sum(
        account["given"]
        for account in accounts
        if account.get("what") in {None, "rows", "annotations", "boxes"}
    )
    change = {"removed": -1, "doubled": 1}.get(mutant.entry, 0)
    if mutant.entry and given != entries + change:
        return f"{given} entries are accounted for, {entries + change} were given"
    return ""
