"""Deliberate faults, put into a copy of the package one at a time: every one of them must fail a
test.

Usage: bench_mutants.py [WORDS...]: those whose name holds one of the words; all of them where left
out.

Each fault names the test files that are asked. They are first run as they are, so that a failure
afterwards is the fault's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """One text in the place of another.

    Attributes:
        name: what goes wrong.
        file: the module, below `medtransfer/`.
        old: text that stands in it once.
        new: text that takes its place.
        tests: files or tests below `tests/`, one of which must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    # Statistics.
    Fault(
        "ties of the AUC counted as wins",
        "evaluation/intervals/influence.py",
        "np.cumsum(negative) - negative / 2",
        "np.cumsum(negative)",
        ("evaluation/intervals/test_influence.py",),
    ),
    Fault(
        "the sign of a comparison",
        "evaluation/intervals/estimate.py",
        "negative=sides[1][0] - sides[1][1]",
        "negative=sides[1][0] + sides[1][1]",
        ("evaluation/analyses/test_comparison.py",),
    ),
    Fault(
        "no variance between seeds",
        "evaluation/intervals/variance.py",
        "return (*(self.shared if self.between else self.models_alone), *self.between)",
        "return self.models_alone",
        ("evaluation/intervals/test_estimate.py",),
    ),
    Fault(
        "what seeds share with patients counted twice",
        "evaluation/intervals/variance.py",
        "self.shared if self.between else self.models_alone",
        "self.models_alone",
        ("evaluation/intervals/test_estimate.py",),
    ),
    Fault(
        "a half less of DeLong's variance",
        "evaluation/intervals/estimate.py",
        "return square * patients / (patients - 1)",
        "return 0.5 * square * patients / (patients - 1)",
        ("evaluation/intervals/test_influence.py", "evaluation/intervals/test_estimate.py"),
    ),
    Fault(
        "scores of all models ranked together",
        "evaluation/intervals/influence.py",
        "if len(model) and (model == model[0]).all():",
        "if len(model):",
        ("evaluation/intervals/test_influence.py",),
    ),
    Fault(
        "candidates of all models ranked together",
        "evaluation/analyses/detections.py",
        'for fold, tests in of_seed.groupby("fold", sort=True):',
        "for fold, tests in [(0, of_seed)]:",
        ("evaluation/analyses/test_detections.py", "evaluation/analyses/test_lesions.py"),
    ),
    Fault(
        "a verdict on the models for one on trainings",
        "evaluation/analyses/comparison.py",
        "return difference.trained_again or difference.models_alone",
        "return difference.models_alone",
        ("evaluation/sentences/test_verdict.py",),
    ),
    Fault(
        "one slope for models that are shifted",
        "evaluation/intervals/influence.py",
        "code = np.unique(model, return_inverse=True)[1]",
        "code = np.zeros(len(model), int)",
        ("evaluation/intervals/test_influence.py",),
    ),
    Fault(
        "the sign of the intercept",
        "evaluation/intervals/influence.py",
        "return value, weight * (target - p) / information",
        "return -value, weight * (target - p) / information",
        ("evaluation/intervals/test_influence.py",),
    ),
    Fault(
        "recalibrated the wrong way round",
        "evaluation/metrics/recalibration.py",
        "residual = weight * (expit(z) - truth)",
        "residual = weight * (truth - expit(z))",
        ("evaluation/metrics/test_recalibration.py",),
    ),
    Fault(
        "cooled about 0, not about the prevalence",
        "evaluation/metrics/recalibration.py",
        "centre = float(np.log(share / (1 - share)))",
        "centre = 0.0",
        ("evaluation/metrics/test_recalibration.py",),
    ),
    Fault(
        "a model learns from patients that it tests",
        "evaluation/tables/tuning.py",
        'allowed = ~tune["patient"].isin(set(scores.patients[inside])).to_numpy()',
        "allowed = np.ones(len(tune), bool)",
        ("evaluation/tables/test_tuning.py", "evaluation/metrics/test_recalibration.py"),
    ),
    Fault(
        "prediction sets one tune patient short",
        "evaluation/analyses/conformal.py",
        ">= (count + 1) * coverage - 1e-9",
        ">= (count - 3) * coverage - 1e-9",
        ("evaluation/analyses/test_conformal.py",),
    ),
    Fault(
        "a threshold that is missed on average",
        "evaluation/metrics/utility.py",
        "beyond + 1 <= (count + 1) * (1 - least) + 1e-9",
        "beyond <= count * (1 - least) + 1e-9",
        ("evaluation/metrics/test_utility.py",),
    ),
    Fault(
        "the second class by the alphabet is positive",
        "data/classes.py",
        "return positives[0] if len(names) == 2 and len(positives) == 1 and len(negatives) == 1 "
        "else None",
        "return names[-1]",
        ("data/cohort/test_sources.py",),
    ),
    Fault(
        "what counts as 0 in the study counts as 1 elsewhere",
        "data/classes.py",
        "if like is not None and _likeness(name, like) > max(_ALIKE, _likeness(name, meaning)):",
        "if False:",
        ("data/cohort/test_sources.py",),
    ),
    Fault(
        "patients in the order of how confident a model is",
        "evaluation/tables/scores.py",
        "np.bincount(code, logit) / np.bincount(code)",
        "np.log(np.bincount(code, expit(logit))) - np.log(np.bincount(code, expit(-logit)))",
        ("evaluation/tables/test_scores.py",),
    ),
    Fault(
        "one seed stands for the variance between seeds",
        "evaluation/intervals/variance.py",
        "return tuple(part for parts in arms for part in parts) if all(arms) else ()",
        "return tuple(part for parts in arms for part in parts)",
        ("evaluation/analyses/test_comparison.py",),
    ),
    Fault(
        "trainings vary less than patients",
        "evaluation/intervals/variance.py",
        "return max(parts, alone, key=_half_width) if parts else ()",
        "return parts",
        ("evaluation/intervals/test_variance.py",),
    ),
    Fault(
        "errors of seeds cancel",
        "evaluation/metrics/calibration.py",
        "between = min(1.0, min(p_values) * len(p_values) / (1 - _OF_LEVEL))",
        "between = 1.0",
        ("evaluation/sentences/test_trust.py",),
    ),
    Fault(
        "sizes for a cohort of as many cases as controls",
        "evaluation/analyses/sample_size.py",
        "float(np.average(w * logit**power, weights=weight))",
        "float(np.average(w * logit**power))",
        ("evaluation/analyses/test_sample_size.py",),
    ),
    Fault(
        "a lesion found twice",
        "evaluation/metrics/matching.py",
        "open_ = (fits[candidate] & free)[places]",
        "open_ = fits[candidate]",
        ("evaluation/metrics/test_matching.py",),
    ),
    # Cohort and files.
    Fault(
        "a tune patient is trained on",
        "data/split.py",
        "(np.flatnonzero(column == part) for part in PARTS)",
        '(np.flatnonzero((column == part) | (part == "train") & (column == "tune")) for part in '
        "PARTS)",
        (
            "data/cohort/test_split.py",
            "data/cohort/test_folds.py",
        ),
    ),
    Fault(
        "folds divide images, not patients",
        "data/split.py",
        "splitter.split(label, _strata(label, folds, needed), groups)",
        "splitter.split(label, _strata(label, folds, needed), np.arange(len(label)))",
        (
            "data/cohort/test_split.py",
            "data/cohort/test_folds.py",
        ),
    ),
    Fault(
        "a leak of the manifest's split is passed over",
        "data/split.py",
        "if len(names) > 1:\n                    faults.append",
        "if len(names) > 2:\n                    faults.append",
        ("data/cohort/test_split.py", "data/cohort/test_folds.py", "study/test_refusals.py"),
    ),
    Fault(
        "a stale entry of the cache",
        "data/cache.py",
        'f"{file_digest}|{setting}|{_maker()}"',
        'f"{file_digest}|{_maker()}"',
        (
            "data/grid/test_cache.py",
            "data/audit/test_inspection.py",
        ),
    ),
    Fault(
        "ids of patients without their salt",
        "data/listing.py",
        'f"{salt}|{name_of[node]}"',
        'f"{name_of[node]}"',
        ("data/cohort", "study/test_record.py"),
    ),
    Fault(
        "MONOCHROME1 as it is",
        "data/dicom_pixels.py",
        'inverted = file.text("PhotometricInterpretation") == "MONOCHROME1"',
        "inverted = False",
        ("data/images/dicom",),
    ),
    Fault(
        "slices sorted the wrong way",
        "data/series.py",
        'ranks = np.argsort(distance, kind="stable")',
        'ranks = np.argsort(-distance, kind="stable")',
        ("data/images/dicom/test_image.py",),
    ),
    Fault(
        "mirrored copies are not looked for",
        "data/similarity.py",
        "flips = [(), (1,), (2,), (1, 2)] if dimensions == 2 else [()]",
        "flips = [()]",
        ("data/audit/test_similarity.py",),
    ),
    Fault(
        "boxes of rows and columns exchanged",
        "data/placement.py",
        "return np.array([columns, rows, columns, rows], dtype=float)",
        "return np.array([rows, columns, rows, columns], dtype=float)",
        (
            "data/annotations",
            "data/cohort/test_box_grid.py",
            "data/grid",
            "data/grid",
            "data/images/test_windows.py",
        ),
    ),
    # Networks and training.
    Fault(
        "a frozen stage trains",
        "models/backbone.py",
        "stage < len(self.stages) and stage not in self.resting",
        "stage < len(self.stages)",
        ("models/test_backbone.py::test_frozen_is_frozen_parameters_and_buffers",),
    ),
    Fault(
        "frozen batch norm moves",
        "models/backbone.py",
        "for module in self._still:\n            module.eval()",
        "for module in self._still:\n            module.train(mode)",
        ("models/test_backbone.py::test_train_mode_leaves_frozen_stages_in_eval_mode",),
    ),
    Fault(
        "random weights pass for trained ones",
        "models/proof.py",
        "passed = moved >= 0.5 and rank > _MORE_THAN_RANDOM * rank_random",
        "passed = True",
        ("models/test_weights.py",),
    ),
    Fault(
        "a label flipped in the loss",
        "tasks/classification.py",
        "binary_cross_entropy_with_logits(outputs.float(), targets, reduction",
        "binary_cross_entropy_with_logits(outputs.float(), 1 - targets, reduction",
        ("tasks/test_classification.py", "training/test_training.py"),
    ),
    Fault(
        "probabilities of another prevalence",
        "tasks/classification.py",
        "- np.log(self.positive_weights)",
        "+ np.log(self.positive_weights)",
        ("tasks/test_classification.py",),
    ),
    Fault(
        "a resumed epoch begins with its first batch",
        "training/trainer.py",
        "batches.start_epoch(epoch, progress.step - (epoch - 1) * len(batches))",
        "batches.start_epoch(epoch)",
        ("training/test_resume.py",),
    ),
    Fault(
        "a checkpoint without the optimiser",
        "training/trainer.py",
        'self.optimizer.load_state_dict(state["optimizer"])',
        "pass",
        ("training/test_resume.py",),
    ),
    Fault(
        "L2-SP pushes away",
        "training/averages.py",
        "away, alpha=strength)",
        "away, alpha=-strength)",
        ("training/test_averages.py",),
    ),
    Fault(
        "the averaged weights stand still",
        "training/averages.py",
        "torch._foreach_lerp_(self._means, self._current, 1 - min(_DECAY, (1 + step) / "
        "(_FORGETTING + step)))",
        "pass",
        ("training/test_averages.py",),
    ),
    Fault(
        "kept activations of the wrong view",
        "training/batches.py",
        "view = self._epoch % self.views if self.views else self._epoch",
        "view = 0 if self.views else self._epoch",
        ("training/test_features.py",),
    ),
    Fault(
        "kept activations of other weights",
        "training/features.py",
        "_digest(backbone, len(frozen), [cut,",
        "_digest(backbone, 0, [cut,",
        ("training/test_features.py",),
    ),
    Fault(
        "overlapping candidates stay",
        "tasks/detection.py",
        "over = (shared > most *",
        "over = (shared > 2 * most *",
        ("tasks/test_detection.py",),
    ),
    # Studies.
    Fault(
        "a run is known again whatever its plan",
        "record.py",
        '"plan": prepared.plans[arm].decisive(),',
        '"plan": {},',
        ("study/test_continue.py",),
    ),
    Fault(
        "two processes do one run",
        "jobs.py",
        "with FileLock(lock, timeout=-1 if wait or engine.share[1] > 1 else 0):",
        "with nullcontext():",
        ("processes/test_jobs.py",),
    ),
    Fault(
        "arms with unequal budgets",
        "prepare.py",
        "steps = max(1, round(longest * arm.times)) if train.epochs is None else train.epochs * "
        "batches",
        "steps = max(1, plan.steps) if train.epochs is None else train.epochs * batches",
        ("study/test_continue.py",),
    ),
    Fault(
        "a draw of a learning curve is tested on its training patients",
        "episodes.py",
        "return Fold(index, train, tune, fold.test)",
        "return Fold(index, train, tune, np.sort(np.concatenate([fold.test, train])))",
        ("study/test_search.py",),
    ),
    Fault(
        "pictures stay in a report without them",
        "outcome.py",
        "(output / GALLERY).unlink(missing_ok=True)",
        "pass",
        ("study/test_record.py",),
    ),
    Fault(
        "SIGTERM stays caught after a verb",
        "cli.py",
        "signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)",
        "pass",
        ("processes/test_interruption.py",),
    ),
    Fault(
        "an end that is asked for is not heard",
        "training/interruption.py",
        "return _first is not None or",
        "return False and _first is not None or",
        ("training/test_trainer.py", "processes/test_interruption.py"),
    ),
    # A fair scratch arm.
    Fault(
        "averages that do not forget where they began",
        "training/averages.py",
        "min(_DECAY, (1 + step) / (_FORGETTING + step))",
        "_DECAY",
        ("training/test_averages.py",),
    ),
    Fault(
        "averaged weights with the statistics of others",
        "training/averages.py",
        "adapt_norms(self.backbone, batches, engine, self.backbone.moving_norms())",
        "pass",
        ("training/test_averages.py",),
    ),
    Fault(
        "frozen statistics taken anew",
        "training/averages.py",
        "engine, self.backbone.moving_norms())",
        "engine)",
        ("training/test_averages.py",),
    ),
    Fault(
        "a training that is level goes on",
        "training/loop.py",
        "while len(progress.history) <= ends[-1] and not has_levelled(progress.ends):",
        "while len(progress.history) <= ends[-1]:",
        ("training/test_level.py",),
    ),
    Fault(
        "the lowest of many noisy tune losses decides",
        "training/loop.py",
        "if lower or (epoch in ends and (1 - GAIN) * loss <= progress.lowest):",
        "if lower:",
        ("training/test_level.py",),
    ),
    Fault(
        "a model left as it was at the budget",
        "runs.py",
        "    tables = predict()\n    load_state(last, *modules)",
        "    tables = predict()",
        ("training/test_level.py",),
    ),
    Fault(
        "warm restarts that never begin again",
        "models/schedule.py",
        "step, steps = step - begin, end - begin",
        "step, steps = step, ends[-1]",
        ("models/test_schedule.py",),
    ),
    Fault(
        "what an arm became is compared as if at the budget",
        "evaluation/analyses/budgets.py",
        "early = table[BUDGET] == AT_BUDGET",
        'early = table[BUDGET] == "level"',
        ("evaluation/analyses/test_budgets.py",),
    ),
    Fault(
        "comparisons at the budget correct those that count",
        "evaluation/analyses/comparison.py",
        "if not at_budget or set(pair) & set(levelled)",
        "if True",
        ("evaluation/analyses/test_budgets.py",),
    ),
    Fault(
        "a seed that changes nothing counts",
        "evaluation/tables/scores.py",
        "if any(rows.equals(earlier) for earlier in different):",
        "if False:",
        ("evaluation/analyses/test_budgets.py",),
    ),
    Fault(
        "the smallest class alone is the size",
        "models/freeze.py",
        "round(math.exp(sum(map(math.log, counts.values())) / len(counts)), 6)",
        "min(counts.values())",
        ("models/test_freeze.py",),
    ),
    Fault(
        "steps fall for many images",
        "models/freeze.py",
        "_GROWTH = 40, 2000, 0.75",
        "_GROWTH = 40, 2000, -0.1",
        ("models/test_freeze.py",),
    ),
    Fault(
        "one view for all seeds",
        "arms.py",
        "images = self.source(backbone, engine, seed)",
        "images = self.source(backbone, engine)",
        ("study/test_fairness.py",),
    ),
    Fault(
        "draws that change roles",
        "episodes.py",
        "roles = _tune_roles(prepared.config.protocol.tune, size)",
        "roles = [True] * max(1, size // 5) + [False] * (size - max(1, size // 5))",
        ("study/test_fairness.py",),
    ),
    Fault(
        "a label of a side is mirrored",
        "data/laterality.py",
        '("none" if labels_of_a_side(cohort) else "left_right") if flip == "auto" else flip',
        '"left_right" if flip == "auto" else flip',
        ("data/cohort/test_laterality.py",),
    ),
    Fault(
        "reduced precision for its speed alone",
        "machine.py",
        'if config.train.precision == "auto" and not same_answers(difference):',
        "if False:",
        ("study/test_fairness.py",),
    ),
    Fault(
        "a probe in reduced precision",
        "runs.py",
        'engine = engine.in_fp32() if plan.strategy == "linear_probe" else engine',
        "pass",
        ("training/test_training.py",),
    ),
    # Files and tables as people have them.
    Fault(
        "probabilities clipped before they are ranked",
        "evaluation/tables/probabilities.py",
        "np.clip(logit(probability), -limit, limit)",
        "np.clip(logit(probability), -13.8, 13.8)",
        ("evaluation/tables/test_probabilities.py",),
    ),
    Fault(
        "candidates of one score let through in the order of rows",
        "evaluation/metrics/matching.py",
        "np.append(np.flatnonzero(np.diff(score)), len(score) - 1)",
        "np.append(np.arange(len(score) - 1), len(score) - 1)",
        ("evaluation/metrics/test_matching.py",),
    ),
    Fault(
        "the bootstrap numbers patients by the order of rows",
        "evaluation/tables/order.py",
        'by = ["_arm", "label", "seed", "fold", "part", "_patient", "_image", "patient", "image"]',
        'by = ["_arm", "label", "seed", "fold", "part"]',
        ("evaluation/tables/test_order.py",),
    ),
    Fault(
        "a score taken for a logit",
        "evaluation/tables/scores.py",
        'scored=bool(rows["probability"].isna().all()) if "probability" in rows.columns else False',
        "scored=False",
        ("evaluation/tables/test_probabilities.py",),
    ),
    Fault(
        "patients who look alike on both sides",
        "evaluation/tables/predictions.py",
        "        if not apart:",
        "        if apart:",
        ("evaluation/tables/test_predictions.py",),
    ),
    Fault(
        "blanks around names",
        "names.py",
        'text = name.strip().strip("\\ufeff").strip()',
        "text = name",
        ("text/test_tables.py",),
    ),
    Fault(
        "formulas in CSV",
        "tables.py",
        "if isinstance(cell, str) and _FORMULA.match(cell) else cell",
        'if isinstance(cell, str) and cell == "" else cell',
        ("text/test_tables.py",),
    ),
    Fault(
        "thousands for decimals",
        "tables.py",
        "if all(_THOUSANDS.fullmatch(cell)",
        "if not all(_DECIMAL.fullmatch(cell)",
        ("text/test_tables.py",),
    ),
    Fault(
        "crowds are negatives",
        "data/coco.py",
        "sorted(crowded - boxed)",
        "sorted(crowded & boxed)",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
    Fault(
        "names in other letters dropped",
        "data/file_names.py",
        "return [i for i in self._by_plain.get",
        "return [] or [i for i in {}.get",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
    Fault(
        "masks by above zero",
        "data/masks.py",
        "connected(grey > middle)",
        "connected(grey > 0)",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
    Fault(
        "a mask's affine compared with nothing",
        "data/masks.py",
        "(gap := _gap(mask, image)) <= 0.5",
        "(gap := _gap(mask, image)) < 1e9",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
    Fault(
        "boxes of the file not turned",
        "data/boxes.py",
        "if way > 0 else frame.stored_shape[axis] - in_file[::-1, axis]",
        "if way else in_file[:, axis]",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
    Fault(
        "poses read as outlines",
        "data/outlines.py",
        "if not all(posed(shares) for _, shares in long):",
        "if True:",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
    Fault(
        "files outside the root",
        "data/manifest.py",
        "if not outside and not file.is_relative_to",
        "if outside and not file.is_relative_to",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
    Fault(
        "what is left out is not asked about",
        "account.py",
        "            if part.asks\n",
        "            if not part.asks\n",
        (
            "data/annotations",
            "data/cohort",
        ),
    ),
)


def copy_checkout(folder: Path) -> None:
    """What the tests need of the checkout; the packages stay where they are."""
    for name in ("medtransfer", "tests", "configs", "notebooks", ".github"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, folder / name)


def run_tests(folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """pytest on some files of the copy, which comes before the installed package; ends at the first
    failure.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        *(f"tests/{name}" for name in tests),
    ]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def first_failure(output: str) -> str:
    """The test that failed, from the summary."""
    return next(
        (
            line.split(" - ")[0]
            for line in output.splitlines()
            if line.startswith(("FAILED", "ERROR"))
        ),
        "",
    )


def main() -> int:
    """The number of faults that no test has noticed."""
    chosen = [
        fault
        for fault in FAULTS
        if not sys.argv[1:] or any(word in fault.name for word in sys.argv[1:])
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        folder.mkdir()
        copy_checkout(folder)
        for fault in chosen:
            count = (
                (folder / "medtransfer" / fault.file).read_text(encoding="utf-8").count(fault.old)
            )
            if count != 1:
                raise SystemExit(
                    f"{fault.name}: {fault.file} holds its text {count} times; correct this script."
                )
        asked = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
        begun = time.perf_counter()
        done = run_tests(folder, asked)
        print(
            f"without a fault: {len(asked)} files, {time.perf_counter() - begun:.0f} s, "
            f"{done.stdout.splitlines()[-1]}",
            flush=True,
        )
        if done.returncode:
            raise SystemExit(f"they fail as they are: {done.stdout[-3000:]}{done.stderr[-1000:]}")
        missed = []
        for number, fault in enumerate(chosen, 1):
            path = folder / "medtransfer" / fault.file
            whole = path.read_text(encoding="utf-8")
            path.write_text(whole.replace(fault.old, fault.new), encoding="utf-8")
            begun = time.perf_counter()
            done = run_tests(folder, fault.tests)
            path.write_text(whole, encoding="utf-8")
            if done.returncode not in {0, 1}:
                raise SystemExit(
                    f"{fault.name}: pytest ended with {done.returncode}: "
                    f"{done.stdout[-3000:]}{done.stderr[-1000:]}"
                )
            missed += [fault.name] if done.returncode == 0 else []
            failure = first_failure(done.stdout) or "NOT NOTICED"
            print(
                f"{number:2} of {len(chosen)}: {fault.name}: {failure} "
                f"({time.perf_counter() - begun:.0f} s)",
                flush=True,
            )
    print(
        f"{len(chosen) - len(missed)} of {len(chosen)} faults were noticed"
        + "".join(f"; not: {name}" for name in missed)
    )
    return len(missed)


if __name__ == "__main__":
    sys.exit(min(1, main()))
