"""What a source of images holds, before it is called a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medtransfer.errors import CohortError
from medtransfer.text.account import Account, make_account


@dataclass(frozen=True)
class ReadOptions:
    """What is said of a source of images beside where it is.

    Attributes:
        salt: for hashing ids from DICOM headers; drawn where left out.
        columns: of a manifest, others to keep, for subgroups or to leave out by; no other column is
            copied into a study.
        axes: what the coordinates of boxes count: `file`, `ras` or `mm`; see `frames.Frame`.
        outside: images may lie outside of the root, or behind links that lead out of it.
    """

    salt: str | None = None
    columns: Sequence[str] = ()
    axes: str | None = None
    outside: bool = False


@dataclass(frozen=True, eq=False)
class Contents:
    """The images of a manifest, a folder or an archive; see `Cohort` for the attributes, which have
    the same names there.
    """

    images: pd.DataFrame
    labels: tuple[str, ...]
    root: Path
    patients_known: bool = True
    by_study: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    salt: str = field(default="", repr=False)
    accounts: tuple[Account, ...] = ()
    notes: tuple[str, ...] = ()
    alike: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Choice:
    """Some of the images of a table, and what became of the others.

    Attributes:
        images: those that stay, numbered anew.
        ignored: the ids of the others, each with the reason.
        accounts: of the images, where any was left out.
    """

    images: pd.DataFrame
    ignored: tuple[tuple[str, str], ...]
    accounts: tuple[Account, ...]


def choose_images(images: pd.DataFrame, stays: Sequence[bool], reason: str, folder: str) -> Choice:
    """Some of the images of a cohort.

    Args:
        images: with the column `image`.
        stays: of each image, whether it is among them.
        reason: why the others are left out.
        folder: names the cohort in the account.
    """
    ignored = [
        (image, reason) for image, stay in zip(images["image"], stays, strict=True) if not stay
    ]
    if not ignored:
        return Choice(images, (), ())
    account = make_account(
        "images",
        folder,
        len(images) - len(ignored),
        [(name, why, False) for name, why in ignored],
    )
    remaining = images[list(stays)].reset_index(drop=True)
    return Choice(remaining, tuple(ignored), (account,))


def require_classes(
    images: pd.DataFrame, labels: Sequence[str], where: str, needed: Sequence[int] = (0, 1)
) -> None:
    """Refuses labels of which a class that is needed is absent.

    Args:
        images: with a column per label.
        labels: of 0 and 1.
        where: names what was read, for the message.
        needed: the classes.

    Raises:
        CohortError: naming the label.
    """
    for label in labels:
        counts = images[label].value_counts()
        if not set(needed) <= set(counts.index):
            raise CohortError(
                f"{where}: every image has {label} = {counts.index[0]:g}. Both classes are needed "
                "to learn and to evaluate."
            )
