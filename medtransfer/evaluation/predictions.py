"""The predictions table: schema, reading, writing, and the aligned scores that statistics work on."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from medtransfer.errors import LeakageError, PredictionsError, list_faults

COLUMNS = ("arm", "seed", "fold", "part", "image", "patient", "label", "target", "probability", "logit")
# Probabilities of exactly 0 or 1 have no logit; beyond this no cohort of images can tell them apart.
CLIP = 1e-6
# Of runs on small draws from the training patients: patients per class, and the number of the draw; 0 for the whole.
CURVE = ("size", "episode")
_DEFAULTS: dict[str, Any] = {"arm": "model", "seed": 0, "fold": 0, "part": "test", "label": "target"}

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Test predictions of one arm, aligned: the same images in every seed.

    Attributes:
        arm: its name.
        seeds: in order of the first axis below.
        images, patients: (image,), ids.
        target: (image,), 0 or 1.
        fold: (image,), the fold each image was tested in.
        logit: (seed, image).
        recalibrated: (seed, image), logits divided by the temperature of their seed and fold; None without tune rows.
        temperatures: temperature by (seed, fold).
    """

    arm: str
    seeds: tuple[int, ...]
    images: NDArray[np.object_]
    patients: NDArray[np.object_]
    target: NDArray[np.int64]
    fold: NDArray[np.int64]
    logit: Float
    recalibrated: Float | None = None
    temperatures: dict[tuple[int, int], float] | None = None

    def take(self, rows: NDArray[Any]) -> Scores:
        """The same arm on some of its images."""
        recalibrated = None if self.recalibrated is None else self.recalibrated[:, rows]
        return replace(
            self,
            images=self.images[rows],
            patients=self.patients[rows],
            target=self.target[rows],
            fold=self.fold[rows],
            logit=self.logit[:, rows],
            recalibrated=recalibrated,
        )


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Reads a predictions CSV and checks it; see `check_predictions`.

    Raises:
        PredictionsError: no such file, no CSV, or a faulty table.
    """
    path = Path(path)
    try:
        # As text: pandas' own parser of numbers is not always exact to the last bit, Python's is.
        table = pd.read_csv(path, dtype=str, index_col=False, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PredictionsError(f"{path}: no such file. Give a CSV with patient, target and probability.") from error
    except (OSError, UnicodeDecodeError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise PredictionsError(f"{path}: not a readable CSV ({error}).") from error
    return check_predictions(table, str(path))


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Writes the table with every digit of every number."""
    write_aside(path, table[_columns(table)].to_csv(index=False, lineterminator="\n"))


def _columns(table: pd.DataFrame) -> list[str]:
    return [*COLUMNS, *(column for column in CURVE if column in table.columns)]


def write_aside(path: Path, content: str | bytes) -> None:
    """Writes beside the file, then renames, so that no reader ever sees half of it, not even after a power cut."""
    # A name no other process or host takes.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_predictions(table: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """Fills in what may be left out and checks the rest.

    `patient`, `target` and `probability` (or `logit`) are required. Left out, `arm` is "model", `seed`
    and `fold` 0, `part` "test", `label` "target", and `image` the patient with a running number. `size` and `episode`
    tell rows of a learning curve; both are 0 for the others.

    Raises:
        PredictionsError: with every fault and its row (the header is row 1).
        LeakageError: a patient is tested in two folds of one arm and seed.
    """
    _require_columns(table, source)
    table = table.copy().reset_index(drop=True)
    faults: list[str] = []
    curve = [column for column in CURVE if column in table.columns]
    if len(curve) == 1:
        raise PredictionsError(f"{source}: column {curve[0]} stands alone; a learning curve has {' and '.join(CURVE)}.")
    for column in ("target", "probability", "logit", "seed", "fold", *curve):
        if column in table.columns:
            table[column] = _numbers(table[column], column, faults)
    for column, default in _DEFAULTS.items():
        if column not in table.columns:
            table[column] = default
    for column in ("arm", "patient", "part", "label"):
        faults += [f"row {i + 2}: {column} is empty" for i in np.flatnonzero(table[column].isna())]
    if faults:
        raise PredictionsError(list_faults(f"{source}: {len(faults)} fault(s)", faults, "Mend these rows and run again."))
    for column in ("arm", "patient", "part", "label"):
        table[column] = table[column].astype(str)
    if "image" not in table.columns:
        number = table.groupby(["arm", "seed", "fold", "part", "patient", *curve]).cumcount().astype(str)
        table["image"] = table["patient"] + "#" + number
    table["image"] = table["image"].astype(str)
    faults = _check_values(table)
    if faults:
        raise PredictionsError(list_faults(f"{source}: {len(faults)} fault(s)", faults, "Mend these rows and run again."))
    for column in ("target", "seed", "fold", *curve):
        table[column] = table[column].astype(np.int64)
    for _, rows in table.groupby(curve, sort=False) if curve else [((), table)]:
        _refuse_leaks(rows, source)
    return table[_columns(table)]


def _numbers(column: pd.Series, name: str, faults: list[str]) -> pd.Series:
    numbers = np.full(len(column), np.nan)
    for i, value in enumerate(column):
        with suppress(TypeError, ValueError):
            numbers[i] = float(value)
        if not np.isfinite(numbers[i]):
            faults.append(f"row {i + 2}: {name} is {'empty' if pd.isna(value) else repr(value)}, not a number")
    return pd.Series(numbers, index=column.index)


def _require_columns(table: pd.DataFrame, source: str) -> None:
    missing = [c for c in ("patient", "target") if c not in table.columns]
    if "probability" not in table.columns and "logit" not in table.columns:
        missing.append("probability")
    if missing:
        raise PredictionsError(f"{source}: no column {', '.join(missing)}. Columns here: {', '.join(map(str, table.columns))}.")
    if table.empty:
        raise PredictionsError(f"{source}: no rows below the header.")


def _check_values(table: pd.DataFrame) -> list[str]:
    """Fills in probability or logit and lists the faults of all values."""
    faults: list[str] = []
    _fill_scores(table, faults)
    faults += [f"row {i + 2}: target is {table['target'][i]:g}; use 0 or 1" for i in np.flatnonzero(~table["target"].isin([0, 1]))]
    parts = {"train", "tune", "test"}
    faults += [f"row {i + 2}: part is {table['part'][i]!r}; use train, tune or test" for i in np.flatnonzero(~table["part"].isin(parts))]
    curve = [column for column in CURVE if column in table.columns]
    for column in ("seed", "fold", *curve):
        faults += [f"row {i + 2}: {column} is {table[column][i]:g}, not a whole number" for i in np.flatnonzero(table[column] % 1 != 0)]
    # An image is tested once per arm and seed, in whatever fold; it may serve several folds for tuning.
    key = ["arm", "seed", "part", "image", "label", *curve]
    twice = table.duplicated([*key, "fold"]) | (table.duplicated(key) & (table["part"] == "test"))
    faults += [f"row {i + 2}: image {table['image'][i]} is there twice" for i in np.flatnonzero(twice)]
    return faults


def _fill_scores(table: pd.DataFrame, faults: list[str]) -> None:
    if "probability" not in table.columns:
        table["probability"] = expit(table["logit"].to_numpy(float))
    probability = table["probability"].to_numpy(float)
    outside = np.flatnonzero((probability < 0) | (probability > 1))
    faults += [f"row {i + 2}: probability is {probability[i]:g}, outside 0 to 1" for i in outside]
    if "logit" not in table.columns:
        table["logit"] = logit(np.clip(probability, CLIP, 1 - CLIP))
        return
    differs = np.abs(expit(table["logit"].to_numpy(float)) - probability) > 1e-4
    faults += [
        f"row {i + 2}: probability {probability[i]:g} and logit {table['logit'][i]:g} disagree; remove column logit if it is another score"
        for i in np.flatnonzero(differs)
    ]


def _refuse_leaks(table: pd.DataFrame, source: str) -> None:
    parts = table.groupby(["arm", "seed", "fold", "patient"], sort=False)["part"].nunique()
    mixed = parts[parts > 1].reset_index()
    if len(mixed):
        names = [
            f"arm {a}, seed {s}, fold {f}, patient {p}" for a, s, f, p in mixed[["arm", "seed", "fold", "patient"]].itertuples(index=False)
        ]
        raise LeakageError(
            list_faults(
                f"{source}: {len(names)} patient(s) are in more than one part of a fold",
                names,
                "Test patients must be neither trained nor tuned on.",
            )
        )
    test = table[table["part"] == "test"]
    folds = test.groupby(["arm", "seed", "patient"], sort=False)["fold"].nunique()
    rows = folds[folds > 1].reset_index()
    shared = [
        f"arm {arm}, seed {seed}, patient {patient}" for arm, seed, patient in zip(rows["arm"], rows["seed"], rows["patient"], strict=True)
    ]
    if shared:
        raise LeakageError(
            list_faults(
                f"{source}: {len(shared)} patient(s) are tested in more than one fold, so other images of theirs were trained on",
                shared,
                "Split by patient, so that each is tested in one fold.",
            )
        )


def align_scores(table: pd.DataFrame) -> tuple[list[Scores], list[str]]:
    """Test rows -> one `Scores` per arm, over the images that all arms share.

    Returns:
        Scores in order of appearance, and warnings about images left out.

    Raises:
        PredictionsError: several labels, no test rows, seeds with different images, targets that
            differ between arms, or only one class.
    """
    labels = list(dict.fromkeys(table["label"]))
    if len(labels) > 1:
        raise PredictionsError(f"labels {', '.join(labels)}: one label is evaluated at a time. Keep the rows of one.")
    test = table[table["part"] == "test"]
    if test.empty:
        raise PredictionsError("no row has part = test. Performance is measured on test rows only.")
    targets = test.groupby("image")["target"].nunique()
    if (targets > 1).any():
        names = [str(name) for name in targets.index[targets > 1]]
        raise PredictionsError(list_faults("images with more than one target", names, "An image has one true class."))
    scores = [_align_arm(str(arm), rows) for arm, rows in test.groupby("arm", sort=False)]
    common = set.intersection(*(set(s.images) for s in scores))
    if not common:
        raise PredictionsError("the arms share no test image, so they cannot be compared. Evaluate them one by one.")
    warnings = []
    for s in scores:
        if len(s.images) > len(common):
            warnings.append(f"{len(s.images) - len(common)} images of arm {s.arm} are left out: not every arm has them.")
    scores = [s.take(np.flatnonzero([name in common for name in s.images])) for s in scores]
    if len(set(scores[0].target)) < 2:
        raise PredictionsError(f"every test image has target {scores[0].target[0]}. Both classes are needed.")
    return scores, warnings


def _align_arm(arm: str, rows: pd.DataFrame) -> Scores:
    seeds = tuple(sorted(int(seed) for seed in rows["seed"].unique()))
    wide = rows.pivot_table(index="image", columns="seed", values="logit", sort=True, aggfunc="first")
    if wide.isna().to_numpy().any():
        name = str(wide.index[wide.isna().any(axis=1)][0])
        raise PredictionsError(f"arm {arm}: image {name} is not tested in every seed. Every seed needs the same test images.")
    first = rows.drop_duplicates("image").set_index("image").loc[wide.index]
    return Scores(
        arm,
        seeds,
        wide.index.to_numpy(object),
        first["patient"].to_numpy(object),
        first["target"].to_numpy(np.int64),
        first["fold"].to_numpy(np.int64),
        np.ascontiguousarray(wide[list(seeds)].to_numpy(np.float64).T),
    )
