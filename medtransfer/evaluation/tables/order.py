"""An order of patients and images that follows from what is said of them, not from their names or
the order of rows.

A bootstrap draws patients by number, and a sum in floating point depends on its order: numbered by
content, tables with other names or shuffled rows give the same figures to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Digest = NDArray[np.uint64]
# Names, values whose places stand for them, and what sorts rows into evaluations of their own.
_NOT_CONTENT = {"image", "patient", "logit", "probability", "budget", "size", "episode"}


def digest_rows(table: pd.DataFrame, columns: Sequence[str]) -> Digest:
    """A number for the content of each row in these columns, whatever the order of the columns."""
    if not len(table):
        return np.zeros(0, np.uint64)
    plain = table[sorted(columns)].reset_index(drop=True)
    # A whole number says the same whatever type holds it.
    numbers = plain.select_dtypes("number").columns
    plain[numbers] = plain[numbers].astype(np.float64)
    return np.asarray(pd.util.hash_pandas_object(plain, index=False), np.uint64)


def digest_groups(names: Any, digests: Digest) -> pd.Series:
    """A number for all rows of each name together, whatever their order: the sum of the scrambled
    numbers of the rows.
    """
    codes, different = pd.factorize(np.asarray(names, object))
    total = np.zeros(len(different), np.uint64)
    np.add.at(total, codes, _mix(digests))
    return pd.Series(total, index=different)


def digest_patients(images: Any, patients: Any, digests: Digest) -> tuple[pd.Series, pd.Series]:
    """A number for the content of each image and of each patient; an image belongs to its first
    patient.
    """
    by_image = digest_groups(images, digests)
    owner = pd.DataFrame(
        {"image": np.asarray(images, object), "patient": np.asarray(patients, object)}
    ).drop_duplicates("image")
    return by_image, digest_groups(
        owner["patient"], by_image.loc[owner["image"]].to_numpy(np.uint64)
    )


@dataclass(frozen=True, eq=False)
class Order:
    """Numbers of images and patients, by name, that follow from their content."""

    images: pd.Series
    patients: pd.Series


def order_of(table: pd.DataFrame) -> Order:
    """The order of the images and patients of predictions: by their targets, and by the ranks of
    their scores within each model.

    Places, not scores: what changes no ranking changes no draw either.
    """
    model = ["arm", "label", "seed", "fold", "part"]
    place = table.groupby(model, sort=False)["logit"].rank("dense")
    content = [column for column in table.columns if column not in _NOT_CONTENT]
    digests = digest_rows(table.assign(_place=place), [*content, "_place"])
    return Order(*digest_patients(table["image"], table["patient"], digests))


def sort_by_content(table: pd.DataFrame, order: Order, arms: Sequence[str] = ()) -> pd.DataFrame:
    """The rows by arm, label, seed, fold and part, and within these by the order of patients, then
    of images.

    Args:
        table: predictions.
        order: of these or of others; images and patients that it does not hold come last, by name.
        arms: the first ones; others follow by name.
    """
    place = {
        arm: number
        for number, arm in enumerate(dict.fromkeys((*arms, *sorted(table["arm"].unique()))))
    }
    last = np.uint64(np.iinfo(np.uint64).max)
    keys: dict[str, Any] = {
        "_arm": table["arm"].map(place),
        "_patient": order.patients.reindex(table["patient"], fill_value=last).to_numpy(),
        "_image": order.images.reindex(table["image"], fill_value=last).to_numpy(),
    }
    by = ["_arm", "label", "seed", "fold", "part", "_patient", "_image", "patient", "image"]
    return (
        table.assign(**keys)
        .sort_values(by, kind="stable")
        .drop(columns=list(keys))
        .reset_index(drop=True)
    )


def _mix(values: Digest) -> Digest:
    """Scrambles numbers so that sums of them tell groups apart (the finaliser of SplitMix64;
    Steele, Lea & Flood 2014).
    """
    with np.errstate(over="ignore"):
        mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)
