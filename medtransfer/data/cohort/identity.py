"""Who is one patient: ids that look alike, such as 7 and 007, and patients who share images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medtransfer.data.cohort.clusters import cluster_pairs
from medtransfer.data.cohort.owners import find_owner, is_placeholder
from medtransfer.errors import CohortError, list_faults
from medtransfer.text.names import look_alike_key, show


def group_patients(images: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> NDArray[np.object_]:
    """The group of each image: patients that share near-duplicates are one, named by its first
    patient.

    Args:
        images: `image`, `patient`. pairs: ids of images that show the same.
    """
    codes, patients = pd.factorize(images["patient"])
    patient_of = dict(zip(images["image"], codes, strict=True))
    names = np.asarray(patients, dtype=object).copy()
    for group in cluster_pairs(len(patients), [(patient_of[a], patient_of[b]) for a, b in pairs]):
        names[list(group)] = patients[group[0]]
    return np.asarray(names[codes], object)


def compare_with_headers(images: pd.DataFrame) -> list[str]:
    """Where the patients that a manifest names are not those of the DICOM headers, in sentences
    that name images and no ids of headers.

    Args:
        images: `image`, `path`, `patient`, of DICOM files.
    """
    owners = [find_owner(path) for path in images["path"]]
    table = images.assign(owner=[patient for patient, _ in owners])[
        [bool(patient) for patient, _ in owners]
    ]
    # The word of an anonymiser for all, or one for each file, names nobody.
    if table.empty or is_placeholder(owners) or (table["owner"].nunique() == len(table) > 1):
        return []
    sentences = []
    for one, several, text in (
        (
            "owner",
            "patient",
            (
                "one patient by their headers, and several in the manifest: they may be on "
                "both sides "
                "of a split"
            ),
        ),
        ("patient", "owner", "one patient in the manifest, and several by their headers"),
    ):
        counts = table.groupby(one, sort=False)[several].nunique()
        if len(groups := counts.index[counts > 1]):
            first = table[table[one] == groups[0]].drop_duplicates(several)["image"].tolist()
            sentences.append(
                f"images of {len(groups)} patient(s), such as {show(first[0])} and "
                f"{show(first[1])}, are of {text}. Find out which is "
                "right."
            )
    return sentences


def describe_look_alikes(
    alike: Sequence[tuple[str, ...]], of_headers: bool
) -> tuple[str, list[str]]:
    """Who they are, and each group in words.

    Args:
        alike: groups of ids; of DICOM headers, whose ids are not to be shown, of images.
            of_headers: which of these.
    """
    whose = (
        "images whose headers name patients by ids that look alike"
        if of_headers
        else "patients whose ids look alike"
    )
    return f"{len(alike)} group(s) of {whose}", [" and ".join(map(show, group)) for group in alike]


def refuse_look_alikes(alike: Sequence[tuple[str, ...]], of_headers: bool, where: str) -> None:
    """Asks whether they are one patient each.

    Raises:
        CohortError: with all groups.
    """
    whose, names = describe_look_alikes(alike, of_headers)
    remedy = (
        "Write each patient in one way; or set cohort.look_alikes=same, or different where they "
        "are different people."
    )
    raise CohortError(list_faults(f"{where}: {whose}", names, remedy))


def join_look_alikes(
    images: pd.DataFrame, alike: Sequence[tuple[str, ...]], of_headers: bool
) -> tuple[pd.DataFrame, str]:
    """The images with one patient in place of each group, who is called as the first; and a
    sentence that says so.
    """
    if of_headers:
        patient = dict(zip(images["image"], images["patient"], strict=True))
        same = {
            patient[image]: patient[group[0]]
            for group in alike
            for image in group
            if image in patient and group[0] in patient
        }
    else:
        first: dict[str, str] = {}
        same = {name: first.setdefault(look_alike_key(name), name) for name in images["patient"]}
    whose, names = describe_look_alikes(alike, of_headers)
    joined = images.assign(patient=[same.get(name, name) for name in images["patient"]])
    return joined, f"{whose}, such as {names[0]}, are taken as one patient each"
