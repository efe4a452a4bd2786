"""What a trained model is, in words that a file can hold: all that its tensors do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from pydantic import ValidationError

from medtransfer.data.grid.settings import ImageSettings
from medtransfer.errors import FileError
from medtransfer.files import digest_bytes, read_json, write_json
from medtransfer.models.chain.backbone import Recipe, WeightsRecord
from medtransfer.models.plan.plan import FreezePlan
from medtransfer.records.run_folder import RunFolder
from medtransfer.tasks.kinds import describe_task, read_task
from medtransfer.tasks.task import Task
from medtransfer.training.predicting import Model

_LIBRARIES = ("medtransfer", "torch", "timm", "monai", "numpy")


@dataclass(frozen=True)
class Description:
    """What a trained model is.

    Attributes:
        arm: its name in the study.
        fold: whose training part it has seen.
        seed: of its training.
        backbone: `name`, `channels` of the input, and `size`, for architectures that are built for
            one.
        recipe: the input that the backbone takes.
        source: where its weights came from before training.
        plan: what of it was trained.
        task: what it learnt, with class weights or anchors.
        image: how pixels become the input.
        slab: neighbouring slices that are the channels of each.
        engine: `device`, `precision` and `layout` that it was trained in.
        meaning: by label, what 1 stands for.
        reference: distribution of the input of its cohort: modality, shape, spacing, intensity.
        decisions: by label, `recalibration` (a map of logits) and `thresholds`
            of the report of its study; empty before there was one.
        versions: of the libraries it was made with.
    """

    arm: str
    fold: int
    seed: int
    backbone: dict[str, Any]
    recipe: Recipe
    source: WeightsRecord
    plan: FreezePlan
    task: Task
    image: ImageSettings
    slab: int
    engine: dict[str, str]
    meaning: dict[str, str] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: RunFolder, digests: Mapping[str, str] | None = None) -> None:
        """Writes `model.json`, with the digests of the tensors beside it.

        Args:
            folder: of the run.
            digests: those that were recorded when the tensors were written; None where that was
                just now.
        """
        plain = {name: getattr(self, name) for name in _PLAIN}
        if digests is None:
            digests = {path.name: digest_bytes(path) for path in folder.tensors if path.is_file()}
        content = {
            **plain,
            "recipe": asdict(self.recipe),
            "source": asdict(self.source),
            "plan": self.plan.to_dict(),
            "task": describe_task(self.task),
            "image": self.image.model_dump(mode="json"),
            "files": dict(digests),
        }
        write_json(folder.model, content, sealed=True)


_PLAIN = (
    "arm",
    "fold",
    "seed",
    "backbone",
    "slab",
    "engine",
    "meaning",
    "reference",
    "decisions",
    "versions",
)


def describe_answer(description: Description) -> str:
    """What a model answers, in words."""
    labels = description.task.labels
    meant = [f"{label}: {description.meaning.get(label, label)}" for label in labels]
    return f"{description.backbone['name']}; {', '.join(meant)}"


def describe(model: Model, plan: FreezePlan, **about: Any) -> Description:
    """The description of a network that was just trained.

    Args:
        model: as it was trained, with a task that took all it needs from the training part.
        plan: of the training.
        **about: the other fields of `Description`.
    """
    backbone, engine = model.backbone, model.engine
    return Description(
        backbone={
            "name": backbone.name,
            "channels": len(backbone.recipe.mean),
            "size": backbone.size,
        },
        recipe=backbone.recipe,
        source=backbone.weights,
        plan=plan,
        task=model.task,
        engine={
            "device": engine.device.type,
            "precision": engine.precision,
            "layout": engine.layout,
        },
        versions={name: metadata.version(name) for name in _LIBRARIES},
        **about,
    )


def read_description(folder: RunFolder) -> tuple[Description, dict[str, str]]:
    """What `Description.write` wrote, and the digests of the tensors beside it.

    Raises:
        FileError: the file is damaged, or of another format.
        FileNotFoundError: there is none.
    """
    content = read_json(folder.model, sealed=True)
    try:
        recipe, source = content["recipe"], content["source"]
        description = Description(
            recipe=Recipe(tuple(recipe["mean"]), tuple(recipe["std"]), int(recipe["size"])),
            source=WeightsRecord(**{name: _frozen(value) for name, value in source.items()}),
            plan=FreezePlan(**content["plan"]),
            task=read_task(content["task"]),
            image=ImageSettings.model_validate(content["image"]),
            **{name: content[name] for name in _PLAIN},
        )
        files: Mapping[str, str] = content["files"]
        return description, dict(files)
    except FileError as error:
        raise FileError(f"{folder.model}: {error}") from error
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise FileError(f"{folder.model}: does not describe a trained model ({reason}).") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
