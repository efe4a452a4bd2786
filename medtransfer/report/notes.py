"""Sentences about the runs of a study: how training ended, over-fitting, small cohorts; and what is
read from their folders.
"""

from __future__ import annotations

from typing import Any

from medtransfer.records.study_folder import StudyFolder

# Log-loss, or 1 - average precision, on tune images against training images: a gap beyond both is
# worth a warning.
_GAP_RATIO, _GAP = 2.0, 0.1


def _read_endings(study: StudyFolder, arm: str) -> list[dict[str, Any]]:
    """Of those that say how they ended; one of an earlier version, that was not done again, does
    not, and has no part in the report.
    """
    return [run for run in study.summaries_of(arm) if "levelled" in run]


def read_histories(study: StudyFolder, arms: list[str]) -> dict[str, list[list[dict[str, float]]]]:
    """By arm, the epochs of every run, without damaged files."""
    read = {arm: [run.read_history() for run in study.runs_of(arm)] for arm in arms}
    return {arm: [epochs for epochs in runs if epochs] for arm, runs in read.items() if any(runs)}


def read_searches(study: StudyFolder, arm: str) -> list[dict[str, Any]]:
    """What the search for the depth saw, fold by fold."""
    found = [{"fold": fold, **entry} for fold, entry in study.searches_of(arm)]
    return [entry for entry in found if "reason" in entry]


def note_small_cohorts(study: StudyFolder, plans: dict[str, Any]) -> list[str]:
    """Per arm that was planned as a probe on few patients: why, and what simpler heads reach on the
    same features.
    """
    notes = []
    for arm, plan in plans.items():
        if plan["strategy"] != "linear_probe" or plan["evidence"] != "weak":
            continue
        runs = study.summaries_of(arm)
        checks = [found for run in runs if (found := run["probe"].get("checks"))]
        note = f"{arm}: {plan['reason']}"
        if checks:
            means = {name: sum(found[name] for found in checks) / len(checks) for name in checks[0]}
            note += (
                " Within the training parts, by repeated cross-validation, its linear head "
                f"reaches AUC {means['logistic']:.2f}, the "
                f"nearest class mean {means['prototype']:.2f}, nearest neighbours "
                f"{means['neighbours']:.2f}: a check, not a result."
            )
        notes.append(note)
    return notes


def note_overfitting(study: StudyFolder, arms: list[str]) -> list[str]:
    """Per arm, a warning where its networks know their training images much better than others."""
    notes = []
    for arm in arms:
        runs = [run for run in study.summaries_of(arm) if "kept" in run]
        gaps = [(run["kept"]["train"], run["kept"]["tune"]) for run in runs]
        learnt = [
            (train, tune)
            for train, tune in gaps
            if tune > _GAP_RATIO * train and tune - train > _GAP
        ]
        if len(learnt) > len(gaps) / 2:
            train, tune = (sum(column) / len(learnt) for column in zip(*learnt, strict=True))
            boxes = "anchors" in runs[0].get("task", {})  # of which 1 - average precision is kept
            what = f"average precision is {1 - train:.2f}" if boxes else f"log-loss is {train:.2f}"
            extreme = (
                "" if boxes else "Its probabilities are too extreme until they are recalibrated; "
            )
            remedy = f"{extreme}more patients, more frozen stages or L2-SP would narrow the gap."
            notes.append(
                f"{arm} is over-fitted in {len(learnt)} of {len(gaps)} runs: its {what} on images "
                "it was trained on and "
                f"{1 - tune if boxes else tune:.2f} on others. {remedy[0].upper()}{remedy[1:]}"
            )
    return notes


def list_unfinished(study: StudyFolder, arms: list[str]) -> list[str]:
    """The arms that were still improving when their training ended, in more than half of their
    runs.
    """
    return [
        arm
        for arm in arms
        if (runs := _read_endings(study, arm)) and 2 * sum(map(_unfinished, runs)) > len(runs)
    ]


def _unfinished(run: dict[str, Any]) -> bool:
    """Until level: four times the budget was not enough. Else: the last quarter of the budget still
    lowered the tune loss.
    """
    return bool(
        run["improving"] if run["levelled"] is None else not run["levelled"] and not run["diverged"]
    )


def measure_spent(study: StudyFolder, arms: list[str]) -> dict[str, list[float]]:
    """Of the arms that were trained until level, how many times the budget each run took."""
    level = {
        arm: [
            run
            for run in _read_endings(study, arm)
            if run["levelled"] is not None and run["budget_epochs"]
        ]
        for arm in arms
    }
    return {
        arm: [round(run["epochs"] / run["budget_epochs"], 2) for run in runs]
        for arm, runs in level.items()
        if runs
    }


def note_training(study: StudyFolder, arms: list[str]) -> list[str]:
    """Per arm, how training ended; says so where the budget ended before the model was done."""
    notes = []
    for arm in arms:
        runs = _read_endings(study, arm)
        if not runs:
            continue
        epochs = [run["epochs"] for run in runs]
        unfinished = sum(map(_unfinished, runs))
        seconds = sum(run["seconds"] for run in runs)
        kept = ", ".join(str(run["best_epoch"]) for run in runs)
        several = len(runs) > 1
        length = (
            f"{min(epochs)}" if min(epochs) == max(epochs) else f"{min(epochs)} to {max(epochs)}"
        )
        spread = f"{length} epochs, weights kept from epoch{'s' if several else ''} {kept}"
        note = (
            f"{arm}: {len(runs)} run{'s' if several else ''} of {spread}; {seconds:.0f} s of "
            "training."
        )
        if spent := measure_spent(study, [arm]).get(arm):
            times = ", ".join(f"{number:g}" for number in spent)
            note += (
                f" Trained until level, at most for four budgets of {runs[0]['budget_epochs']} "
                f"epochs: for {times} of them."
            )
            if unfinished:
                note += (
                    f" In {unfinished} of {len(runs)} runs it had not levelled off when four "
                    "times the budget were spent."
                )
        elif unfinished:
            note += (
                f" In {unfinished} of {len(runs)} runs the last quarter still lowered the tune "
                "loss by more than 2 %: this arm might "
            )
            note += "gain from a larger budget (arms.NAME.budget: level)."
        notes.append(note)
    return notes
