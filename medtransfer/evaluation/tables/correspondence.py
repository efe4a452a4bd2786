"""Whether the predictions, the candidates and the lesions of a detector are about the same images,
and whose these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from medtransfer.errors import PredictionsError, list_faults
from medtransfer.evaluation.tables.candidates import coordinates
from medtransfer.evaluation.tables.order import digest_groups, digest_patients, digest_rows
from medtransfer.text.account import Account, make_account
from medtransfer.text.names import letters, show

# Beyond this share of contradictions between targets and boxes, one of them is upside down.
_MOST = 0.5


def account_of(
    tested: pd.DataFrame,
    detections: pd.DataFrame,
    boxes: pd.DataFrame,
    candidates: str,
    lesions: str,
) -> list[Account]:
    """The accounts of the candidates and the lesions; those of images that no arm was tested on do
    not count.
    """
    test = set(tested.loc[tested["part"] == "test", "image"])
    images = set(tested["image"])
    unused = [
        (
            name,
            "of an image in another part" if name in images else "of an image without a prediction",
            False,
        )
        for name in boxes["image"]
        if name not in test
    ]
    duplicates = boxes.attrs.get("twice", [])
    trained = [
        (name, "of part train, which is not evaluated", False)
        for name in detections.loc[detections["part"] == "train", "image"]
    ]
    return [
        make_account("rows", candidates, len(detections) - len(trained), trained),
        make_account(
            "lesions",
            lesions,
            len(boxes) - len(unused),
            [*unused, *((name, "there twice", False) for name in duplicates)],
        ),
    ]


def refuse_strangers(
    detections: pd.DataFrame, tested: pd.DataFrame, test: pd.DataFrame, boxes: pd.DataFrame
) -> None:
    """Refuses candidates that belong to no prediction: they would be left out without a word, and
    an arm would seem blind.
    """
    faults = []
    for name in ("arm", "image"):
        unknown_names = sorted(set(detections[name].astype(str)) - set(tested[name].astype(str)))
        if unknown_names:
            faults.append(
                f"{len(unknown_names)} {name}(s) of the candidates are not in the predictions, "
                f"such as {unknown_names[0]}"
            )
    names = set(tested["image"].astype(str))
    by_letters = {letters(name): name for name in names}
    misspelt = sorted(
        name for name in set(boxes["image"].astype(str)) - names if letters(name) in by_letters
    )
    faults += [
        f"lesions are of image {show(name)}; is it {show(by_letters[letters(name)])} of the "
        "predictions?"
        for name in misspelt
    ]
    if "target" in test.columns and len(test):
        boxed = test["image"].isin(set(boxes["image"]))
        if boxed.any() and (boxed != (test["target"] == 1)).mean() > _MOST:
            faults.append(
                "most images with a lesion have target 0 in the predictions, and those without "
                "have 1: is the target that of a lesion?"
            )
    if "patient" in detections.columns and "patient" in tested.columns:
        owners_of = (
            detections[["image", "patient"]]
            .drop_duplicates()
            .merge(tested[["image", "patient"]].drop_duplicates(), on="image")
        )
        contradicting = owners_of[
            (owners_of["patient_x"] != "")
            & (owners_of["patient_x"].astype(str) != owners_of["patient_y"].astype(str))
        ]
        faults += [
            f"image {show(image)} is of patient {show(one)} in the candidates, of {show(two)} in "
            "the predictions"
            for image, one, two in contradicting.astype(str).itertuples(index=False)
        ]
    pairs = [
        set(zip(table["arm"], table["seed"].astype(int), strict=True))
        for table in (test, detections)
    ]
    without_candidates = sorted(pairs[0] - pairs[1]) if len(detections) and not faults else []
    faults += [f"{arm}, seed {seed}, has no candidate at all" for arm, seed in without_candidates]
    if ("z0" in detections.columns) != ("z0" in boxes.columns) and len(detections):
        faults.append("of candidates and lesions one has z0 and z1 and the other has not")
    if faults:
        raise PredictionsError(
            list_faults("candidates and predictions do not fit each other", faults)
        )


def owners(test: pd.DataFrame, arms: Sequence[str]) -> dict[str, str]:
    """Patient of each image; the same images for all arms and seeds."""
    sets = {
        key: frozenset(rows["image"]) for key, rows in test.groupby(["arm", "seed"], sort=False)
    }
    if len(set(sets.values())) > 1:
        sizes = ", ".join(
            f"{arm}, seed {seed}: {len(images)}" for (arm, seed), images in sets.items()
        )
        raise PredictionsError(
            f"the arms were tested on different images ({sizes}). Compare them on the same ones."
        )
    rows = test[test["arm"] == arms[0]].drop_duplicates("image")
    return dict(zip(rows["image"], rows["patient"].astype(str), strict=True))


def sort_owners(
    owner: Mapping[str, str], detections: pd.DataFrame, boxes: pd.DataFrame
) -> dict[str, str]:
    """The owner of each image, in an order that follows from the lesions and the candidates and not
    from names; see `order`.
    """
    model = ["arm", "seed", "fold", "part"]
    place = (
        detections.groupby(model, sort=False)["logit"].rank("dense")
        if len(detections)
        else detections["logit"]
    )
    tables = [
        (boxes, [*coordinates(boxes)]),
        (detections.assign(_place=place), [*model, *coordinates(detections), "_place"]),
    ]
    digests = [
        digest_groups(table["image"], digest_rows(table, columns)) for table, columns in tables
    ]
    names = list(owner)
    of_images = [of.reindex(names, fill_value=np.uint64(0)).to_numpy(np.uint64) for of in digests]
    with np.errstate(over="ignore"):
        images, patients = digest_patients(
            names, list(owner.values()), of_images[0] + np.uint64(3) * of_images[1]
        )
    return {
        name: owner[name]
        for name in sorted(
            names, key=lambda name: (patients[owner[name]], owner[name], images[name], name)
        )
    }
