"""Which tasks there are, by the words of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from medtransfer.errors import FileError
from medtransfer.models.heads.linear import Pooling
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.detection import Detection
from medtransfer.tasks.task import Task


def make_task(
    kind: str, labels: Sequence[str], space: Sequence[int], pooling: Pooling = "mean"
) -> Task:
    """The task of a configuration, before anything is taken from a cohort.

    Args:
        kind: the word of the configuration.
        labels: of the cohort.
        space: pixels that the network sees along rows and columns, or slices, rows and columns.
        pooling: of the slices of a volume that a network of planes sees.
    """
    if kind == Detection.kind:
        return Detection(tuple(labels), tuple(space))
    return Classification(tuple(labels), pooling=pooling)


def choose_kind(needed_classes: Sequence[int]) -> str:
    """The word of a configuration for a cohort that has boxes alone, or labels.

    Args:
        needed_classes: that every part of the cohort must hold: 1 alone where lesions are to be
            found, so that images without any are not needed.
    """
    return Classification.kind if 0 in needed_classes else Detection.kind


def describe_task(task: Task) -> dict[str, Any]:
    """Plain values, from which `read_task` makes the same task."""
    values = {field.name: getattr(task, field.name) for field in fields(task)}  # type: ignore[arg-type]
    return {"kind": task.kind, **values}


def read_task(values: Mapping[str, Any]) -> Task:
    """The task that `describe_task` described.

    Raises:
        FileError: no task of a kind that is known.
    """
    known: dict[str, Any] = {kind.kind: kind for kind in (Classification, Detection)}
    given = {name: _frozen(value) for name, value in values.items() if name != "kind"}
    try:
        task: Task = known[values["kind"]](**given)
    except (KeyError, TypeError) as error:
        kind = str(values.get("kind"))[:40]
        raise FileError(f"is no task that this version of medtransfer knows ({kind}).") from error
    return task


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
