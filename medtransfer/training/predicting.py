"""The only prediction loop, and what is measured with it while a network trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from numpy.typing import NDArray
from torch import Tensor, nn

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.heads.linear import Head
from medtransfer.tasks.task import Batch, Task
from medtransfer.training.batches import collect
from medtransfer.training.device import Engine


@dataclass(frozen=True, eq=False)
class Model:
    """A network and what it is for.

    Attributes:
        backbone: the chain of stages.
        head: reads its activations.
        task: what is learnt.
        engine: the device and the precision in which the network runs.
    """

    backbone: Backbone
    head: Head
    task: Task
    engine: Engine

    @property
    def modules(self) -> tuple[Backbone, Head]:
        """Backbone and head."""
        return self.backbone, self.head


class Network(nn.Module):
    """Backbone and head as one module: activations to what the head gives, in the engine's
    precision as far as either lets it.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, engine: Engine) -> None:
        super().__init__()
        self.backbone, self.head, self.engine = backbone, head, engine

    @property
    def unread(self) -> bool:
        """Whether the head reads nothing of the last stage, so that this has no gradient."""
        return self.backbone.names[-1] not in cast(Head, self.head).taps

    def forward(self, features: dict[str, Tensor], present: Tensor) -> Any:
        """Activations by name, and the slices that count -> what the head gives, such as logits
        (batch, label).
        """
        with self.engine.autocast():
            taps = self.backbone(self.engine.move(features), cast(Head, self.head).taps)
            return self.head(taps, present)


def predict(model: Model, batches: Iterable[Batch]) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the task keeps of every image, corrected, float64, and the targets; in the order of the
    batches.
    """
    task, network = model.task, Network(*model.modules, model.engine).eval()
    predictions, targets, _ = collect(
        batches,
        model.engine,
        lambda batch: task.predict(network(batch["features"], batch["present"])),
    )
    return task.correct(predictions), targets


def measure(model: Model, batches: Iterable[Batch]) -> dict[str, float]:
    """How well a part is predicted: `loss`, by which epochs are chosen, `raw`, and more; see
    `Task.score`.
    """
    return model.task.score(*predict(model, batches))
