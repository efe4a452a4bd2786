"""The frozen prefix, computed once: activations at the cut, kept on disk and replayed in place of
images.

One folder holds what a prefix gives for the images of one cohort, whatever fold, seed or arm asks
for it: a file per activation and view, and a byte per image that says whether it is there. It is
filled as far as it is needed, by as many processes as there are; two of them that compute the same
image write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.errors import StudyError
from medtransfer.files import write_aside
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.chain import Layout
from medtransfer.models.chain.fold import fold_norms
from medtransfer.training.batches import Source
from medtransfer.training.device import Engine
from medtransfer.training.interruption import EndAskedError, asked

# Batches from which on their progress is shown.
_MANY = 10


class Keep(Protocol):
    """Gives a source of activations behind a cut, see `FeatureSource`, or of the images where none
    are kept.
    """

    def __call__(
        self, network: Backbone, cut: str, taps: Sequence[str], pooled: bool = False
    ) -> Source:
        """See `FeatureSource`."""
        ...


class FeatureSource:
    """What the stages up to a cut make of images, in place of the images.

    Activations are kept in the type they are computed in, so that nothing is lost. View v of an
    image is random draw v.

    Args:
        backbone: with `cut` within its frozen stages; these must not change while this is used.
        images: the source that is replaced.
        count: rows of the cohort.
        cut: name of a stage, or "image".
        taps: activations the head reads; of those before the cut the mean over space is kept, which
            is all it reads.
        engine: device and precision.
        folder: of all stores of a study.
        decided: all that decides what comes out, besides the backbone and the arguments above.
        pooled: nothing runs behind the cut, so that of it too the mean over space is enough.
        at_once: images, or volumes, that run through the prefix together.
        report: progress.
        seed: of the random draws that the views of `images` are.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Source,
        count: int,
        cut: str,
        taps: Sequence[str],
        engine: Engine,
        folder: Path,
        decided: Sequence[str] = (),
        pooled: bool = False,
        at_once: int = 32,
        report: Callable[[str, int, int], None] = lambda *_: None,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self.backbone, self.images, self.count, self.cut = backbone, images, count, cut
        self.engine, self.pooled, self.at_once, self.report = engine, pooled, at_once, report
        frozen = backbone.names[: backbone.names.index(cut) + 1] if cut != "image" else []
        self.before = [tap for tap in taps if tap in frozen and tap != cut]
        self.layouts = {stage.name: stage.layout for stage in backbone.stages}
        self.folder = folder / _digest(
            backbone,
            len(frozen),
            [cut, *self.before, str(pooled), engine.precision, engine.layout, *decided],
        )
        # Rows that are known to be there, by view; saves asking the disk.
        self._there: dict[int | None, NDArray[np.bool_]] = {}
        self._kept: dict[str, Any] | None = None
        self._folded: Backbone | None = None

    def prepare(self, rows: Sequence[int], view: int | None) -> None:
        """Computes what is missing of these rows.

        Raises:
            StudyError: not enough room on the disk.
            KeyboardInterrupt: an end was asked for; what is computed stays.
        """
        wanted = np.unique(np.asarray(rows, np.int64))
        if self._missing(wanted, view).any():
            missing = wanted[self._missing(wanted, view, ask=True)]
            pieces = [
                missing[at : at + self.at_once] for at in range(0, len(missing), self.at_once)
            ]
            # Processes that fill the same store begin at different places.
            start = int(np.random.default_rng(os.getpid()).integers(len(pieces))) if pieces else 0
            for piece in [*pieces[start:], *pieces[:start]]:
                left = piece[self._missing(piece, view, ask=True)]
                if len(left):
                    self._fill(left.tolist(), view)
                    if len(pieces) > _MANY:
                        self.report(
                            "frozen stages, images",
                            int((~self._missing(wanted, view)).sum()),
                            len(wanted),
                        )
                if asked() and self.engine.share[1] == 1:
                    raise EndAskedError

    def load(self, rows: Sequence[int], view: int | None = None) -> dict[str, Any]:
        """One batch, from the disk."""
        if self._missing(np.asarray(rows, np.int64), view).any():
            self.prepare(rows, view)
        read = {name: self._read(name, rows, view) for name in self._contents()}
        rest = {key: read.pop(key) for key in ("present", "targets")}
        return {"features": read, **rest, "rows": torch.tensor(list(rows), dtype=torch.int64)}

    def _missing(
        self, rows: NDArray[np.int64], view: int | None, ask: bool = False
    ) -> NDArray[np.bool_]:
        if ask or view not in self._there:
            try:
                kept = np.fromfile(self._path("there", view), np.uint8)
            except OSError:
                kept = np.zeros(0, np.uint8)
            there = np.zeros(self.count, bool)
            there[: len(kept)] = kept[: self.count] == 1
            self._there[view] = there
        return ~self._there[view][rows]

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
                found = prefix(moved, [*self.before, self.cut])
            values = {name: self._reduce(name, x)[: len(rows)].cpu() for name, x in found.items()}
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
        try:
            if not (self.folder / "contents.json").is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                contents = {
                    name: {"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch.")}
                    for name, x in values.items()
                }
                write_aside(self.folder / "contents.json", json.dumps(contents))
            for name, x in values.items():
                with self._open(name, view) as stream:
                    for row, value in zip(rows, _bytes(x), strict=True):
                        stream.seek(row * len(value))
                        stream.write(value)
            # Last: a killed process leaves rows that are computed again.
            with self._open("there", view) as stream:
                for row in rows:
                    stream.seek(row)
                    stream.write(b"\1")
        except OSError as error:
            raise StudyError(
                f"{self.folder.parent}: no room for cached activations ({error.strerror}). Free "
                "some, set MEDTRANSFER_CACHE to another "
                "folder, or set train.cache_gb=0, which keeps none."
            ) from error
        self._there[view][rows] = True

    def _contents(self) -> dict[str, Any]:
        if self._kept is None:
            self._kept = json.loads((self.folder / "contents.json").read_text(encoding="utf-8"))
        return self._kept

    def _read(self, name: str, rows: Sequence[int], view: int | None) -> Tensor:
        kept = self._contents()[name]
        values = torch.empty(
            (len(rows), *kept["shape"]),
            dtype=getattr(torch, kept["dtype"]),
            pin_memory=self.engine.device.type == "cuda",
        )
        with self._path(name, view).open("rb", buffering=0) as stream:
            for row, value in zip(rows, _bytes(values), strict=True):
                stream.seek(row * len(value))
                if stream.readinto(value) != len(value):
                    raise StudyError(
                        f"{self._path(name, view)}: these activations were cut short. Remove "
                        f"{self.folder} and run the same command again."
                    )
        planes = values.ndim == 4 and self.engine.layout == "channels_last"
        return values.permute(0, 3, 1, 2) if planes else values

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


def _digest(backbone: Backbone, stages: int, decided: Sequence[str]) -> str:
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
