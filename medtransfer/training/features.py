"""The frozen prefix, computed once: activations at the cut, kept on disk and replayed in place of
images.

One folder holds what a prefix gives for the images of one cohort, whatever fold, seed or arm asks
for it: a file per activation and view, and a digest per image that says whether its activations are
there and what their bytes are. It is filled as far as it is needed, by as many processes as there
are; two of them that compute the same image write the same bytes.

Nothing is read without its digest: whatever a killed process, a power cut or a faulty disk leaves
behind is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.errors import FileError, StudyError
from medtransfer.files import read_json, write_json
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.chain import Layout
from medtransfer.models.chain.fold import fold_norms
from medtransfer.training.batches import Source
from medtransfer.training.device import Engine
from medtransfer.training.interruption import EndAskedError, asked

# Progress is shown where there are more batches than this.
_MANY = 10
# Bytes of the digest of an image; zeros stand for an image whose activations are missing.
_DIGEST = 16

Row = NDArray[np.uint8]


class Keep(Protocol):
    """Gives a source of activations behind a cut, see `FeatureSource`, or of the images where none
    are kept.
    """

    def __call__(
        self, network: Backbone, cut: str, taps: Sequence[str], pooled: bool = False
    ) -> Source:
        """See `FeatureSource`."""
        ...


@dataclass(frozen=True)
class Store:
    """Where activations are kept, and of which images.

    Attributes:
        folder: of all stores of a study.
        count: rows of the cohort.
        decided: all that decides what comes out, besides the backbone and the arguments of
            `FeatureSource`.
        seed: of the random draws that the views of the images are.
        at_once: images, or volumes, that run through the prefix together.
    """

    folder: Path
    count: int
    decided: Sequence[str] = ()
    seed: int = 0
    at_once: int = 32


class FeatureSource:
    """What the stages up to a cut make of images, in place of the images.

    Activations are kept in the type they are computed in, so that nothing is lost. View v of an
    image is random draw v.

    Args:
        backbone: with `cut` within its frozen stages; these must not change while this is used.
        images: the source that is replaced.
        cut: name of a stage, or "image".
        taps: activations the head reads; of those before the cut the mean over space is kept, which
            is all it reads.
        engine: device and precision.
        store: where they are kept.
        pooled: nothing runs behind the cut, so that of it too the mean over space is enough.
        report: progress, and how many images were damaged.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Source,
        cut: str,
        taps: Sequence[str],
        engine: Engine,
        store: Store,
        pooled: bool = False,
        report: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        self.backbone, self.images, self.cut = backbone, images, cut
        self.engine, self.pooled, self.report = engine, pooled, report
        self.count, self.seed, self.at_once = store.count, store.seed, store.at_once
        frozen = backbone.names[: backbone.names.index(cut) + 1] if cut != "image" else []
        self.before = [tap for tap in taps if tap in frozen and tap != cut]
        self.layouts = {stage.name: stage.layout for stage in backbone.stages}
        about = [cut, *self.before, str(pooled), engine.precision, engine.layout, *store.decided]
        self.folder = store.folder / _name_store(backbone, len(frozen), about)
        # Digests of rows that are there, by view; saves asking the disk.
        self._digests: dict[int | None, NDArray[np.uint8]] = {}
        self._contents: dict[str, Any] | None = None
        self._folded: Backbone | None = None

    def prepare(self, rows: Sequence[int], view: int | None) -> None:
        """Computes what is missing of these rows.

        Raises:
            StudyError: not enough room on the disk.
            KeyboardInterrupt: an end was asked for; what is computed stays.
        """
        indices = np.unique(np.asarray(rows, np.int64))
        if self._missing(indices, view).any():
            missing = indices[self._missing(indices, view, ask=True)]
            pieces = [
                missing[at : at + self.at_once] for at in range(0, len(missing), self.at_once)
            ]
            # Processes that fill the same store begin at different places, to share the work.
            start = int(np.random.default_rng(os.getpid()).integers(len(pieces))) if pieces else 0
            for piece in [*pieces[start:], *pieces[:start]]:
                rest = piece[self._missing(piece, view, ask=True)]
                if len(rest):
                    self._fill(rest.tolist(), view)
                    if len(pieces) > _MANY:
                        self.report(
                            "frozen stages, images",
                            int((~self._missing(indices, view)).sum()),
                            len(indices),
                        )
                if asked() and self.engine.share[1] == 1:
                    raise EndAskedError

    def load(self, rows: Sequence[int], view: int | None = None) -> dict[str, Any]:
        """One batch, from the disk.

        Raises:
            StudyError: the disk does not give back what was written to it.
        """
        indices = np.asarray(rows, np.int64)
        if self._missing(indices, view).any():
            self.prepare(rows, view)
        values, damaged = self._read(indices, view)
        if damaged.any():
            # Another process may have written them since their digests were read.
            self._missing(indices, view, ask=True)
            values, damaged = self._read(indices, view)
        if damaged.any():
            again = np.unique(indices[damaged])
            self.report(f"kept activations that were damaged ({self.folder})", 0, len(again))
            self._repair(again, view)
            self.report("damaged activations, computed again", len(again), len(again))
            values, damaged = self._read(indices, view)
        if damaged.any():
            raise StudyError(
                f"{self.folder}: the disk does not give back the activations that are written to "
                "it. Set MEDTRANSFER_CACHE to a folder on another disk, or set train.cache_gb=0, "
                "which keeps none."
            )
        rest = {key: values.pop(key) for key in ("present", "targets")}
        return {"features": values, **rest, "rows": torch.tensor(list(rows), dtype=torch.int64)}

    def _missing(
        self, rows: NDArray[np.int64], view: int | None, ask: bool = False
    ) -> NDArray[np.bool_]:
        if ask or view not in self._digests:
            try:
                written = np.fromfile(self._path("digests", view), np.uint8)
            except OSError:
                written = np.zeros(0, np.uint8)
            written = written[: self.count * _DIGEST]
            digests = np.zeros(self.count * _DIGEST, np.uint8)
            digests[: len(written)] = written
            self._digests[view] = digests.reshape(self.count, _DIGEST)
        missing: NDArray[np.bool_] = np.logical_not(self._digests[view][rows].any(1))
        return missing

    def _repair(self, rows: NDArray[np.int64], view: int | None) -> None:
        """Computes again what is damaged."""
        if self._read_contents() is None:
            (self.folder / "contents.json").unlink(missing_ok=True)
        for at in range(0, len(rows), self.at_once):
            self._fill(rows[at : at + self.at_once].tolist(), view)

    @torch.inference_mode()
    def _fill(self, rows: list[int], view: int | None) -> None:
        training = self.backbone.training
        self.backbone.eval()
        try:
            batch = self.images.load(rows, view)
            images = {name: _pad(x, self.at_once) for name, x in batch["features"].items()}
            moved = self.engine.move(images)
            prefix = self._prefix(moved["image"])  # folded in float32, or its proof would fail
            with self.engine.autocast():
                taps = prefix(moved, [*self.before, self.cut])
            values = {name: self._reduce(name, x)[: len(rows)].cpu() for name, x in taps.items()}
            self._write(
                rows, view, {**values, "present": batch["present"], "targets": batch["targets"]}
            )
        finally:
            self.backbone.train(training)

    def _prefix(self, images: Tensor) -> Backbone:
        """The network that runs: in reduced precision, which rounds at every layer, with its batch
        norms folded.
        """
        if self.engine.precision == "fp32" or self.cut == "image":
            return self.backbone
        if self._folded is None:
            image = images[:1] if images.ndim == self.backbone.ndim + 2 else images[0, :1]
            self._folded = fold_norms(self.backbone, self.backbone.names.index(self.cut) + 1, image)
            self.engine.place(self._folded)
        return self._folded

    def _reduce(self, name: str, activation: Tensor) -> Tensor:
        """What is kept of an activation; the channels of planes last, as convolutions like them
        best.
        """
        if name in self.before or self.pooled:
            activation = _mean_in_place(activation, self.layouts[name])
        return (
            activation.permute(0, 2, 3, 1).contiguous()
            if activation.ndim == 4 and self.engine.layout == "channels_last"
            else activation
        )

    def _write(self, rows: list[int], view: int | None, values: dict[str, Tensor]) -> None:
        contents = {
            name: {"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch.")}
            for name, x in values.items()
        }
        written = {name: _bytes(x) for name, x in values.items()}
        digests = [_digest(written, place) for place in range(len(rows))]
        try:
            if not (self.folder / "contents.json").is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self.folder / "contents.json", {"contents": contents}, sealed=True)
            for name, arrays in written.items():
                self._write_rows(name, rows, view, arrays)
            # Last: a killed process leaves rows that are computed again.
            self._write_rows("digests", rows, view, digests)
        except OSError as error:
            raise StudyError(
                f"{self.folder.parent}: no room for cached activations ({error.strerror}). Free "
                "some, set MEDTRANSFER_CACHE to another "
                "folder, or set train.cache_gb=0, which keeps none."
            ) from error
        self._digests[view][rows] = digests

    def _write_rows(
        self, name: str, rows: list[int], view: int | None, values: Sequence[Row] | Row
    ) -> None:
        with self._open(name, view) as stream:
            for row, value in zip(rows, values, strict=True):
                stream.seek(row * len(value))
                stream.write(value)

    def _read_contents(self) -> dict[str, Any] | None:
        """Shape and kind of the activations; None where that is missing or damaged."""
        if self._contents is None:
            try:
                content = read_json(self.folder / "contents.json", sealed=True)
            except (FileError, FileNotFoundError):
                return None
            self._contents = content.get("contents")
        return self._contents

    def _read(
        self, rows: NDArray[np.int64], view: int | None
    ) -> tuple[dict[str, Tensor], NDArray[np.bool_]]:
        """What is kept of some rows, by name, and which of them are damaged."""
        contents = self._read_contents()
        if contents is None:
            return {}, np.ones(len(rows), bool)
        values = {
            name: self._read_rows(name, rows, view, about) for name, about in contents.items()
        }
        read = {name: _bytes(x) for name, x in values.items()}
        digests = self._digests[view][rows]
        damaged = [
            not np.array_equal(_digest(read, place), digests[place]) for place in range(len(rows))
        ]
        if self.engine.layout == "channels_last":
            values = {
                name: x.permute(0, 3, 1, 2) if x.ndim == 4 else x for name, x in values.items()
            }
        return values, np.asarray(damaged)

    def _read_rows(
        self, name: str, rows: NDArray[np.int64], view: int | None, about: Mapping[str, Any]
    ) -> Tensor:
        """Rows of one file; zeros where it ends before them."""
        values = torch.zeros(
            (len(rows), *about["shape"]),
            dtype=getattr(torch, about["dtype"]),
            pin_memory=self.engine.device.type == "cuda",
        )
        try:
            with self._path(name, view).open("rb", buffering=0) as stream:
                for row, value in zip(rows.tolist(), _bytes(values), strict=True):
                    stream.seek(row * len(value))
                    stream.readinto(value)
        except FileNotFoundError:
            pass  # reads as an empty file
        return values

    def _path(self, name: str, view: int | None) -> Path:
        return self.folder / f"{'plain' if view is None else f'{self.seed}-{view}'}.{name}"

    def _open(self, name: str, view: int | None) -> BinaryIO:
        path = self._path(name, view)
        # Neither emptied where it is there, nor written at its end alone.
        return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")


def _pad(images: Tensor, size: int) -> Tensor:
    """As many images each time: the last bit of a matrix product depends on its size, and what an
    image gives must not depend on others.
    """
    return (
        torch.cat([images, images[-1:].expand(size - len(images), *images.shape[1:])])
        if len(images) < size
        else images
    )


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    """The bytes of each row, not copied."""
    return values.contiguous().view(len(values), -1).view(torch.uint8).numpy()


def _digest(values: Mapping[str, Row], place: int) -> Row:
    """Digest of the bytes of one row of all activations."""
    result = hashlib.blake2b(digest_size=_DIGEST)
    for name in sorted(values):
        result.update(values[name][place])
    return np.frombuffer(result.digest(), np.uint8)


def _name_store(backbone: Backbone, stages: int, decided: Sequence[str]) -> str:
    """Name of a store: the tensors of the stages that run, and all else that decides what comes out
    of them.
    """
    result = hashlib.sha256(json.dumps([backbone.name, backbone.names[:stages], *decided]).encode())
    for index in range(stages):
        for name, value in sorted(backbone.stage_state(index).items()):
            result.update(name.encode())
            result.update(_bytes(value.detach().cpu().reshape(1, -1)).tobytes())
    return result.hexdigest()[:32]


def _mean_in_place(activation: Tensor, layout: Layout) -> Tensor:
    """The mean over space as an activation of one position, with the axis of slices where there is
    one; the head's mean of it is itself.
    """
    first = activation.ndim - len(layout) + 1  # the axis behind images, or images and slices
    if layout == "NC":
        return activation
    space = (
        range(first, activation.ndim - 1)
        if layout in {"NLC", "NHWC"}
        else range(first + 1, activation.ndim)
    )
    return activation.float().mean(tuple(space), keepdim=True)
