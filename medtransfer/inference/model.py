"""A trained model, opened from its folder alone: without its study, its cohort or a hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit

from medtransfer.data.audit.inspection import inspect_paths
from medtransfer.data.cohort.box_grid import drop_padding, list_candidates, place_images
from medtransfer.data.cohort.listing import list_images
from medtransfer.data.grid.fixed import fixed_of
from medtransfer.data.grid.source import ImageSource, NetworkInput
from medtransfer.errors import FileError, ImageError, WeightsError, list_faults
from medtransfer.evaluation.metrics.recalibration import Map
from medtransfer.files import digest_bytes
from medtransfer.inference.description import Description, describe_answer, read_description
from medtransfer.inference.typicality import Reach
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.catalog.formulas import NAME as FEATURES
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head, LinearHead
from medtransfer.records.run_folder import RunFolder
from medtransfer.training.batches import Loader
from medtransfer.training.checkpoint import load_weights
from medtransfer.training.device import Engine, refuse_device, uses_cuda
from medtransfer.training.predicting import Model, predict
from medtransfer.training.probe import pooled_features
from medtransfer.training.timing import make_engine

# Planes that are predicted at once.
_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network with all that it needs to meet an image.

    Attributes:
        folder: where it lies.
        description: what it is.
        model: its network as it was trained, what it learnt, and the device and precision that it
            computes in.
    """

    folder: RunFolder
    description: Description
    model: Model

    def __repr__(self) -> str:
        return f"Model of arm {self.name} ({describe_answer(self.description)})"

    @staticmethod
    def open(path: str | Path, device: str = "auto") -> TrainedModel:
        """Opens the folder of a training.

        Args:
            path: the folder, wherever it was moved to; it holds `model.json` and
                `weights.safetensors`.
            device: `auto`, `cpu` or `cuda`. A model that was trained in reduced precision computes
                in that on the kind of device it was trained on.

        Raises:
            ConfigError: no such device.
            WeightsError: no trained model there, or a file that is damaged or missing.
        """
        folder = RunFolder(Path(path))
        refuse_device(device)
        description, digests = read_model(folder)
        with torch.random.fork_rng(devices=[]):  # nobody's random numbers change by opening a model
            backbone = _build(description)
            backbone.truncate(description.plan.dropped_stages)
            head = description.task.make_head(backbone)
        load_weights(folder.weights, backbone, head, digests[folder.weights.name])
        trained = description.engine
        # As numbers of another kind of device differ in any precision but full.
        alike = (trained["device"] == "cuda") == uses_cuda(device)
        precision = trained["precision"] if alike else "fp32"
        engine = make_engine(device, precision, layout=trained["layout"])
        engine = replace(engine, share=(0, 1))  # whoever else trains along
        engine.place(backbone)
        head.to(engine.device)
        backbone.eval()
        head.eval()
        model = Model(backbone, head, description.task, engine)
        return TrainedModel(folder, description, model)

    @property
    def name(self) -> str:
        """Arm, fold and seed."""
        about = self.description
        return f"{about.arm}, fold {about.fold}, seed {about.seed}"

    @property
    def backbone(self) -> Backbone:
        """Its network."""
        return self.model.backbone

    @property
    def head(self) -> Head:
        """On top of the network."""
        return self.model.head

    @property
    def engine(self) -> Engine:
        """Device and precision that it computes in."""
        return self.model.engine

    @property
    def labels(self) -> tuple[str, ...]:
        """What it tells apart."""
        return self.description.task.labels

    @cached_property
    def reach(self) -> Reach | None:
        """How far its training images reach; None where its head is not linear."""
        path = self.folder.typicality
        return Reach.load(path) if path.is_file() else None

    def in_fp32(self) -> TrainedModel:
        """The same model in full precision, such as for heat maps."""
        return replace(self, model=replace(self.model, engine=self.engine.in_fp32()))

    def source(self, entries: Sequence[Path], targets: NDArray[Any] | None = None) -> ImageSource:
        """Images of the cache, as the network is given them.

        Args:
            entries: files of the image cache, made with `fixed_of(description.image)`.
            targets: (image, label); zeros where left out.
        """
        if targets is None:
            targets = np.zeros((len(entries), len(self.labels)), np.float32)
        recipe, image = self.backbone.recipe, self.description.image
        return ImageSource(
            entries,
            targets,
            NetworkInput(
                recipe.mean, recipe.std, self.backbone.ndim, image.plane, self.description.slab
            ),
            device=self.engine.device,
        )

    def batches(
        self, source: ImageSource, rows: Sequence[int] | NDArray[np.int64] | None = None
    ) -> Loader:
        """Images as they are, in order; all of them where no rows are named."""
        ndim = len(source.shape)
        most = max(1, _AT_ONCE // (1 if ndim == 2 else self.description.image.slices))
        step = self.description.task.batch_size(ndim)
        at_once = self.description.task.at_once(step, most)
        return Loader(source, range(len(source)) if rows is None else rows, at_once)

    def logits(
        self, entries: Sequence[Path], targets: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """What the task keeps of each image of the cache, corrected for class weights, and the
        targets.

        Args:
            entries: files of the image cache.
            targets: see `source`.
        """
        batches = self.batches(self.source(entries, targets))
        return predict(self.model, batches)

    def predict(self, images: str | Path | Sequence[str | Path]) -> pd.DataFrame:
        """Predicts images that the model has not met.

        Args:
            images: files, or a folder of them. A DICOM series or a volume is one image.

        Returns:
            A row per image and label: `image`, `label`, `probability`, `logit`; `recalibrated`, the
            probability after the recalibration of its study where that was reported; `typical`, the
            share of tune images at least as unlike the training images; and `error`, why an image
            has no prediction, else "". For a detector a row per candidate.
        """
        return pd.concat(list(self.predict_lazily(images)), ignore_index=True)

    def predict_lazily(
        self, images: str | Path | Sequence[str | Path], at_once: int = 256
    ) -> Iterator[pd.DataFrame]:
        """The rows of `predict`, a table for so many images at a time.

        Raises:
            ImageError: there is no image.
        """
        named, left_out = list_files(images)
        fixed = fixed_of(self.description.image)
        if left_out:
            faults = pd.DataFrame(left_out, columns=["image", "error"])
            yield _unread(faults, self.labels)
        for start in range(0, len(named), at_once):
            names, paths = zip(*named[start : start + at_once], strict=True)
            facts = inspect_paths(paths, fixed=fixed).assign(image=names)
            fit = facts["error"] == ""
            wrong = facts.loc[fit, "shape"].map(len) < self.backbone.ndim
            facts.loc[wrong.index[wrong], "error"] = "is a plane; the model takes volumes"
            readable = facts[facts["error"] == ""]
            tables = [_unread(facts[facts["error"] != ""], self.labels)]
            for _, group in readable.groupby(readable["shape"].map(len), sort=False):
                tables.append(self._predict_group(group))
            yield pd.concat([table for table in tables if len(table)], ignore_index=True)

    def _predict_group(self, facts: pd.DataFrame) -> pd.DataFrame:
        """Rows of readable images, all planes or all volumes."""
        entries = [Path(entry) for entry in facts["entry"]]
        values, targets = self.logits(entries)
        names = facts["image"].tolist()
        task = self.description.task
        if task.finds_boxes:
            image = self.description.image
            placements = place_images(fixed_of(image), facts)
            inside = drop_padding(values, placements, image.plane)
            rows = list_candidates(inside, names, names, placements, image.plane)
            return rows.drop(columns="patient").assign(label=self.labels[0], error="")
        rows = task.decode(values, targets, names, names).drop(columns=["patient", "target"])
        rows = self._recalibrate(rows)
        if self.reach is not None:
            source = self.source(entries)
            pooled = pooled_features(
                self.backbone, cast(LinearHead, self.head), self.batches(source), self.engine
            )
            typical = dict(zip(names, self.reach.typicality(pooled.values), strict=True))
            rows["typical"] = rows["image"].map(typical)
        return rows.assign(error="")

    def _recalibrate(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows with the recalibration of the study, where its report fitted one."""
        if not self.description.decisions:
            return rows
        recalibrated = np.full(len(rows), np.nan)
        for label, decisions in self.description.decisions.items():
            known = decisions.get("recalibration")
            if known is not None:
                of_label = (rows["label"] == label).to_numpy()
                recalibrated[of_label] = expit(
                    read_map(known).apply(rows["logit"].to_numpy(float)[of_label])
                )
        return rows.assign(recalibrated=recalibrated)


def read_model(folder: RunFolder) -> tuple[Description, dict[str, str]]:
    """The description of a trained model, and the digests of its tensors, which were compared.

    Raises:
        WeightsError: no trained model there, or a file that is damaged or missing.
    """
    try:
        description, digests = read_description(folder)
        for name, digest in digests.items():
            path = folder.path / name
            if digest_bytes(path) != digest:
                raise FileError(
                    f"{path}: is damaged; its content does not fit the digest in "
                    f"{folder.model.name}."
                )
        if folder.weights.name not in digests:
            raise FileError(f"{folder.model}: names no {folder.weights.name}.")
        return description, digests
    except FileNotFoundError as error:
        raise WeightsError(
            f"{error.filename}: is missing, so there is no trained model in {folder.path}. Name "
            f"the folder of a run, which holds {folder.model.name} and {folder.weights.name}; one "
            "of an earlier version is made anew by `medtransfer compare`."
        ) from error
    except OSError as error:
        raise WeightsError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    except FileError as error:
        raise WeightsError(f"{error} Copy the folder again, or train the model again.") from error


def list_files(
    images: str | Path | Sequence[str | Path],
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The images that a path or several paths name; a folder stands for all images in it.

    Returns:
        Names and paths of the images; and names and reasons of files in folders that could be
        images and are left out.

    Raises:
        ImageError: there is no image, or a path that does not exist.
    """
    paths = [images] if isinstance(images, (str, Path)) else list(images)
    named, left_out, faults = [], [], []
    for path in map(Path, paths):
        if path.is_dir():
            listed = list_images(path, path)
            # Of several paths each image keeps its whole path, as names may be there twice.
            whole = f"{path}/" if len(paths) > 1 else ""
            named += [(f"{whole}{image.name}", image.path) for image in listed.images]
            left_out += [(f"{whole}{name}", why) for name, why, image in listed.left_out if image]
        elif path.exists() or "#" in path.name:
            named.append((str(path), str(path)))
        else:
            faults.append(f"{path}: there is no such file or folder")
    if faults or not (named or left_out):
        where = ", ".join(map(str, paths[:3])) or "nothing was given"
        raise ImageError(list_faults(f"{where}: no image to predict", faults))
    return named, left_out


def read_map(values: dict[str, Any]) -> Map:
    """The recalibration that a report describes."""
    steps = values.get("steps")
    return Map(
        values["method"],
        dict(values.get("parameters", {})),
        None if steps is None else (np.asarray(steps[0], float), np.asarray(steps[1], float)),
    )


def _build(description: Description) -> Backbone:
    """The network, with tensors that are about to be replaced."""
    name, channels = description.backbone["name"], description.backbone["channels"]
    if name == FEATURES:
        return load_backbone(name)
    backbone = load_backbone(
        name, None, description.recipe, channels=channels, size=description.backbone["size"]
    )
    backbone.weights = description.source
    return backbone


def _unread(facts: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Rows of images that have no prediction."""
    rows = [
        {"image": image, "label": label, "probability": np.nan, "logit": np.nan, "error": error}
        for image, error in zip(facts["image"], facts["error"], strict=True)
        for label in labels
    ]
    return pd.DataFrame(rows)
