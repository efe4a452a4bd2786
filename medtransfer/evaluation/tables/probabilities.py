"""From what a table states of an image (probability, logit or score) to what is ranked and what is
measured.

Ranks are those of the values as given. A probability of exactly 0 or 1 has no logarithm: there, and
nowhere else, the smallest double that has one stands in for it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from medtransfer.evaluation.tables.arrays import Float

# What an arm gives that is no probability, on any scale, higher for positives: ranks alone are
# taken from it.
SCORE = "score"
# The smallest double that has a logarithm.
SMALLEST = 5e-324
# What rounding to single precision takes off a probability, and what a table without digits may be
# off.
ROUNDING, _OFF = 1e-6, 1e-4


def exact_logit(probability: Float) -> Float:
    """The logit of probabilities from 0 to 1, exact down to the smallest double; exactly 0 and 1
    give -744.4 and 744.4.
    """
    limit = -float(np.log(SMALLEST))
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(logit(probability), -limit, limit), np.float64)


def log_losses(logits: Float, labels: NDArray[Any]) -> Float:
    """Log-loss of each image in nats, from the logits so that no probability is rounded to 0 or 1.

    Args:
        logits: (..., image), float64.
        labels: (image,) or as the logits, 0 or 1.

    Returns:
        (..., image), float64.
    """
    signed = np.where(np.asarray(labels) == 1, -logits, logits)
    return np.asarray(np.logaddexp(0.0, signed), np.float64)


def squared_errors(logits: Float, labels: NDArray[Any]) -> Float:
    """Squared error of the probability of each image, whose mean is the Brier score (Brier 1950);
    arguments as `log_losses`.
    """
    return np.asarray((expit(logits) - labels) ** 2, np.float64)


def read_numbers(
    column: pd.Series, rows: list[int], faults: list[str], empty: bool = False
) -> pd.Series:
    """A column as finite numbers; any other cell is a fault with its row, but for empty cells where
    these are allowed.
    """
    numbers = np.full(len(column), np.nan)
    for i, value in enumerate(column):
        if pd.isna(value) and empty:
            continue
        with suppress(TypeError, ValueError):
            numbers[i] = float(value)
        if not np.isfinite(numbers[i]):
            grade = (
                isinstance(value, str)
                and column.name == SCORE
                and re.fullmatch(r"\d+\s?[a-zA-Z]", value.strip())
            )
            hint = (
                "; write grades as numbers in their order, such as 4.1, 4.2 and 4.3 for 4a, 4b "
                "and 4c"
                if grade
                else ""
            )
            faults.append(
                f"row {rows[i]}: {column.name} is {'empty' if pd.isna(value) else repr(value)}, "
                f"not a number{hint}"
            )
    return pd.Series(numbers, index=column.index, name=column.name)


def read_scores(
    table: pd.DataFrame, rows: list[int], faults: list[str]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table with `probability` and `logit` as numbers for every row.

    An arm without probabilities and logits is ranked by its column `score`, of any scale: its
    `probability` is NaN and its `logit` the score. Values outside of 0 to 1 by no more than single
    precision, and a probability that its logit explains within the digits that were written, are
    taken as rounding.

    Args:
        table: columns `arm`, and of `probability`, `logit`, `score` at least one, as text or
            numbers.
        rows: of the file, for messages.
        faults: to which the faults of the columns are added.

    Returns:
        The table, and how many values were taken as rounded, by a sentence that says how.
    """
    columns = {
        name: table[name] for name in ("probability", "logit", SCORE) if name in table.columns
    }
    filled = {name: column.notna() for name, column in columns.items()}
    no_row = pd.Series(False, index=table.index)
    stated = filled.get("probability", no_row) | filled.get("logit", no_row)
    scored = (
        ~stated.groupby(table["arm"], sort=False).transform("any") if SCORE in columns else no_row
    )
    numbers: dict[str, pd.Series] = {}
    gives = {
        name: rows_of.groupby(table["arm"], sort=False).transform("any")
        for name, rows_of in filled.items()
    }
    # Of probability and logit one is enough, in all rows of an arm; where it has neither, the first
    # is missing.
    neither = ~gives.get("probability", no_row) & ~gives.get("logit", no_row)
    first_name = next(name for name in columns)
    for name, column in columns.items():
        needed = (
            scored if name == SCORE else ~scored & (gives[name] | (neither & (name == first_name)))
        )
        parsed = read_numbers(column.where(needed, 0.0), rows, faults)
        numbers[name] = parsed.where(needed)
    rounded: dict[str, int] = {}
    if faults:
        return table, rounded
    missing = pd.Series(np.nan, index=table.index)
    probability = _fit_probabilities(
        numbers.get("probability", missing).to_numpy(float), rows, faults, rounded
    )
    z = numbers.get("logit", missing).to_numpy(float)
    digits = [columns.get(name, missing) for name in ("probability", "logit")]
    _refuse_disagreement(probability, z, digits, rows, faults, rounded)
    has_probability = np.isfinite(probability)
    # Where both columns say the same, the one with more digits gives the ranks.
    coarse = (
        has_probability
        & np.isfinite(z)
        & (
            len(np.unique(z[has_probability & np.isfinite(z)]))
            < len(np.unique(probability[has_probability & np.isfinite(z)]))
        )
    )
    z = np.where(
        has_probability & (~np.isfinite(z) | coarse),
        exact_logit(np.where(has_probability, probability, 0.5)),
        z,
    )
    probability = np.where(has_probability, probability, expit(z))
    ranked = scored.to_numpy()
    score = numbers.get(SCORE, missing).to_numpy(float)
    return table.assign(
        probability=np.where(ranked, np.nan, probability), logit=np.where(ranked, score, z)
    ), rounded


def _fit_probabilities(
    probability: Float, rows: list[int], faults: list[str], rounded: dict[str, int]
) -> Float:
    """Values outside of 0 to 1 by rounding become 0 or 1; others are faults."""
    finite = probability[np.isfinite(probability)]
    outside = np.flatnonzero((probability < 0) | (probability > 1))
    far = [i for i in outside if not -ROUNDING <= probability[i] <= 1 + ROUNDING]
    if 2 * len(far) > len(finite) and finite.min() >= 0 and 10 < finite.max() <= 100:
        faults.append(
            f"probabilities reach {finite.max():g}: are they per cent? Divide them by 100. Ratings "
            f"belong into a column {SCORE}, which may "
            "be of any scale"
        )
        return probability
    faults += [
        f"row {rows[i]}: probability is {probability[i]:g}, outside 0 to 1; a column {SCORE} may "
        "be of any scale"
        for i in far
    ]
    if len(outside) > len(far):
        rounded["outside 0 to 1 by no more than single precision, and taken as 0 or 1"] = len(
            outside
        ) - len(far)
    return np.clip(probability, 0.0, 1.0)


def _refuse_disagreement(
    probability: Float,
    z: Float,
    texts: list[pd.Series],
    rows: list[int],
    faults: list[str],
    rounded: dict[str, int],
) -> None:
    both = np.flatnonzero(np.isfinite(probability) & np.isfinite(z))
    if not len(both):
        return
    steps = [np.array([_step(value) for value in text.iloc[both]]) for text in texts]
    # A probability moves by at most a quarter of what its logit moves.
    explained = np.maximum(_OFF, 0.51 * steps[0] + 0.13 * steps[1])
    gap = np.abs(expit(z[both]) - probability[both])
    faults += [
        f"row {rows[i]}: probability {probability[i]:g} and logit {z[i]:g} disagree; remove "
        "column logit if it is another score"
        for i in both[gap > explained]
    ]
    if several := int(((gap > _OFF) & (gap <= explained)).sum()):
        rounded["as far from their logit as the digits written explain"] = several


def _step(value: Any) -> float:
    """One unit of the last digit written."""
    text = value.strip() if isinstance(value, str) else repr(float(value))
    match = re.fullmatch(r"[+-]?\d*\.?(\d*)(?:[eE]([+-]?\d+))?", text)
    return 10.0 ** (int(match.group(2) or 0) - len(match.group(1))) if match else 0.0
