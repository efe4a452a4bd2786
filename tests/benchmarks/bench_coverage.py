"""How often 95 % intervals hold the truth, and how often a difference is claimed where there is none.

Cohorts are drawn from a binormal model with patients whose images resemble each other; the truth is that of a very large cohort.
Usage: bench_coverage.py [cohorts=1000].
"""

from __future__ import annotations

import sys
import time

import numpy as np
from medtransfer.evaluation import influence
from medtransfer.evaluation.discrimination import auc_interval

SIZES, PREVALENCES, IMAGES = (60, 200, 1000), (0.1, 0.3, 0.5), (1, 8)
LARGE = 2_000_000
# Separation of the classes; share of the noise that images of a patient have in common, and that both arms have in common.
APART, SHARED_BY_PATIENT, SHARED_BY_ARMS = 1.5, 0.5, 0.64
OVER_CONFIDENT = 1.3
# Standard deviation of the separation between trainings: about 1.6 points of AUC, as of full fine-tuning on few images.
BETWEEN_SEEDS = 0.09
METRICS = {"auc": influence.auc, "slope": influence.slope, "brier": influence.brier}


def draw(rng, patients: int, prevalence: float, images: int, seeds: int = 1):
    """Targets, patients, and logits (arm, seed, image) of two arms of equal worth."""
    positive = rng.random(patients) < prevalence
    patient = np.repeat(np.arange(patients), images)
    target = positive[patient].astype(int)

    def noise():
        own = rng.normal(size=len(patient))
        return np.sqrt(SHARED_BY_PATIENT) * rng.normal(size=patients)[patient] + np.sqrt(1 - SHARED_BY_PATIENT) * own

    common = np.sqrt(SHARED_BY_ARMS) * noise()
    prior = np.log(prevalence / (1 - prevalence))
    logits = np.empty((2, seeds, len(patient)))
    for arm in range(2):
        for seed in range(seeds):
            apart = APART + (BETWEEN_SEEDS * rng.normal() if seeds > 1 else 0.0)
            x = apart * target + common + np.sqrt(1 - SHARED_BY_ARMS) * noise()
            logits[arm, seed] = OVER_CONFIDENT * (prior + APART * x - APART**2 / 2)
    return target, patient, logits


def measure(logits, target, patient, estimator):
    return influence.estimate(logits, target, np.ones(len(target)), patient, int(patient.max()) + 1, estimator)


def cover(cohorts: int) -> None:
    print(
        "share of intervals that hold the truth, %: patients, prevalence, images each: AUC, slope, Brier, difference in AUC; not estimable"
    )
    worst = []
    for patients in SIZES:
        for prevalence in PREVALENCES:
            for images in IMAGES:
                target, patient, logits = draw(np.random.default_rng(1), LARGE // images, prevalence, images)
                truth = {name: estimator(logits[0, 0], target, np.ones(len(target)))[0] for name, estimator in METRICS.items()}
                rng = np.random.default_rng([patients, int(100 * prevalence), images])
                held, missing = {name: [] for name in (*METRICS, "difference")}, 0
                for _ in range(cohorts):
                    target, patient, logits = draw(rng, patients, prevalence, images)
                    found = [{name: measure(arm, target, patient, estimator) for name, estimator in METRICS.items()} for arm in logits]
                    intervals = {name: e.interval(least=0.0 if name == "brier" else -np.inf) for name, e in found[0].items()}
                    intervals["auc"] = auc_interval(found[0]["auc"])
                    intervals["difference"] = (found[0]["auc"] - found[1]["auc"]).interval()
                    for name, interval in intervals.items():
                        if interval["low"] is None:
                            missing += 1
                        else:
                            held[name].append(interval["low"] <= truth.get(name, 0.0) <= interval["high"])
                shares = {name: 100 * np.mean(values) for name, values in held.items()}
                worst += shares.values()
                print(
                    f"{patients:>5} {prevalence:.1f} {images}: {', '.join(f'{share:.1f}' for share in shares.values())}; {missing}",
                    flush=True,
                )
    print(f"from {min(worst):.1f} to {max(worst):.1f}; {np.mean([93 <= share <= 97 for share in worst]):.0%} of them within 93 to 97")


def claim(studies: int) -> None:
    """Both arms are trained with the same skill on the mean; seeds and patients differ."""
    for patients in (60, 200):
        for seeds in (2, 3, 5):
            rng, said = np.random.default_rng([patients, seeds]), 0
            for _ in range(studies):
                target, patient, logits = draw(rng, patients, 0.3, 1, seeds)
                difference = measure(logits[0], target, patient, influence.auc) - measure(logits[1], target, patient, influence.auc)
                interval = difference.interval()
                said += interval["low"] is not None and interval["low"] > 0
            print(
                f"{patients} patients, {seeds} seeds, no difference: “better” is said in {100 * said / studies:.1f} % of studies",
                flush=True,
            )


def main() -> None:
    cohorts = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    begun = time.perf_counter()
    cover(cohorts)
    claim(cohorts)
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
