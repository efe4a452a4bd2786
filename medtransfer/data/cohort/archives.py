"""An archive of MedMNIST as the table of a cohort; see `medmnist`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medtransfer.data.images.medmnist import PARTS, read_labels
from medtransfer.errors import CohortError


def read_archive(path: Path, positive: str | None) -> tuple[pd.DataFrame, str]:
    """The images of an archive.

    Args:
        path: the `.npz` file. positive: the class that counts as 1, by name or number; None where
            it is known.

    Returns:
        `image`, `patient`, `path`, `split` (train, tune, test) and `value` (1 for that class, else
        0); and the name of that class.

    Raises:
        CohortError: no such archive, or a class that it does not have.
    """
    labels, names = read_labels(path)
    if positive is not None and positive.isdigit() and int(positive) < len(names):
        positive = names[int(positive)]
    if positive is None:
        positive = (
            "malignant"
            if "malignant" in names
            else names[1]
            if len(names) == 2 and not names[1].isdigit()
            else None
        )
    if positive is None or positive not in names:
        raise CohortError(
            f"{path}: positive is {positive!r}; name one of the classes {', '.join(names)}."
        )
    rows = [
        {
            "image": f"{path.name}#{part}/{row}",
            "path": f"{path.resolve()}#{part}/{row}",
            "split": PARTS[part],
            "value": value,
        }
        for part, values in labels.items()
        for row, value in enumerate(values)
    ]
    images = pd.DataFrame(rows)
    images.insert(1, "patient", images["image"])
    images["value"] = (images["value"] == names.index(positive)).astype(float)
    return images, positive
