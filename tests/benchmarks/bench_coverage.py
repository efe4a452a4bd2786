"""How often 95 % intervals hold the truth, and how often something is claimed that is not there:
whole studies of known truth.

Cohorts are drawn from a binormal model with patients whose images resemble each other.
Cross-validated arms have models whose scores differ in scale and in place, and whose skill differs
from training to training. Usage: bench_coverage.py [cohorts=1000] [part ...], parts being the names
of the functions below.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
from medtransfer.evaluation.analyses.comparison import judged_by
from medtransfer.evaluation.analyses.lesions import evaluate_boxes
from medtransfer.evaluation.analyses.several_labels import mean_estimate
from medtransfer.evaluation.analyses.sites import by_site, meta_auc, meta_difference
from medtransfer.evaluation.analyses.subgroups import describe_subgroups
from medtransfer.evaluation.evaluate import evaluate
from medtransfer.evaluation.intervals import influence
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.intervals.estimate import estimate
from medtransfer.evaluation.intervals.resample import Question, WithinModels, draw_values
from medtransfer.evaluation.metrics import calibration as cal
from medtransfer.evaluation.metrics import discrimination as dis
from medtransfer.evaluation.metrics.calibration_curve import curve_errors
from medtransfer.evaluation.metrics.discrimination import auc_interval
from medtransfer.evaluation.metrics.recalibration import adjust_prevalence, recalibrate
from medtransfer.evaluation.metrics.smooth_ece import weighted_smooth_ece
from medtransfer.evaluation.metrics.utility import lock_threshold
from medtransfer.evaluation.tables.scores import Scores
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

SIZES, PREVALENCES, IMAGES = (60, 200, 1000), (0.1, 0.3, 0.5), (1, 8)
LARGE = 2_000_000
# Separation of the classes; share of the noise that images of a patient have in common, and that
# both arms have in common.
APART, SHARED_BY_PATIENT, SHARED_BY_ARMS = 1.5, 0.5, 0.64
OVER_CONFIDENT = 1.3
# Of models: standard deviation of the separation between trainings (about 1.7 points of AUC), of
# the logarithm of their scale, and of their place.
BETWEEN_TRAININGS, SCALES, PLACES = 0.1, 0.5, 1.0
METRICS = {
    "auc": (influence.auc, "pairs"),
    "slope": (influence.slope, None),
    "brier": (influence.brier, "images"),
}


def scores_of(logits, target, patient, fold=None, arm="a") -> Scores:
    logits = np.atleast_2d(logits)
    folds = np.broadcast_to(np.zeros(len(target), int) if fold is None else fold, logits.shape)
    names = np.arange(len(target)).astype(object)
    return Scores(
        arm,
        tuple(range(len(logits))),
        names,
        patient.astype(object),
        target,
        folds,
        logits,
        np.ones(len(target)),
    )


def measure(scores: Scores, estimator=influence.auc, mass="pairs", inside=None):
    codes = np.unique(scores.patients.astype(int), return_inverse=True)[1]
    return estimate(scores, codes, int(codes.max()) + 1, estimator, mass, inside)


def draw(rng, patients: int, prevalence: float, images: int):
    """Targets, patients, and logits (arm, image) of two arms of equal worth, one model each."""
    positive = rng.random(patients) < prevalence
    patient = np.repeat(np.arange(patients), images)
    target = positive[patient].astype(int)

    def noise():
        own = rng.normal(size=len(patient))
        return (
            np.sqrt(SHARED_BY_PATIENT) * rng.normal(size=patients)[patient]
            + np.sqrt(1 - SHARED_BY_PATIENT) * own
        )

    common = np.sqrt(SHARED_BY_ARMS) * noise()
    prior = np.log(prevalence / (1 - prevalence))
    logits = np.empty((2, len(patient)))
    for arm in range(2):
        x = APART * target + common + np.sqrt(1 - SHARED_BY_ARMS) * noise()
        logits[arm] = OVER_CONFIDENT * (prior + APART * x - APART**2 / 2)
    return target, patient, logits


def cross_validate(
    rng, patients: int, prevalence: float, folds: int, seeds: int, skills=(APART, APART)
):
    """Targets, folds, scores of arms, and the true AUC of each of their models (arm, seed,
    fold).
    """
    target = (rng.permutation(patients) < max(folds, round(prevalence * patients))).astype(int)
    fold = np.empty(patients, int)
    for value in (0, 1):
        rows = np.flatnonzero(target == value)
        fold[rows] = rng.permutation(np.arange(len(rows)) % folds)
    common, arms, truth = (
        np.sqrt(SHARED_BY_ARMS) * rng.normal(size=patients),
        [],
        np.empty((len(skills), seeds, folds)),
    )
    for arm, skill in enumerate(skills):
        of_patient = rng.normal(size=patients)
        logits = np.empty((seeds, patients))
        for seed in range(seeds):
            noise = np.sqrt(1 - SHARED_BY_ARMS) * (
                np.sqrt(0.5) * of_patient + np.sqrt(0.5) * rng.normal(size=patients)
            )
            apart = skill + BETWEEN_TRAININGS * rng.normal(size=folds)
            scale, place = np.exp(SCALES * rng.normal(size=folds)), PLACES * rng.normal(size=folds)
            logits[seed] = scale[fold] * (apart[fold] * target + common + noise) + place[fold]
            truth[arm, seed] = norm.cdf(apart / np.sqrt(2))
        arms.append(scores_of(logits, target, np.arange(patients), fold, "ab"[arm]))
    return target, fold, arms, truth


def one_model(cohorts: int) -> None:
    print(
        "share of intervals that hold the truth, %: patients, prevalence, images each: AUC, "
        "slope, Brier, difference in AUC; not estimable"
    )
    worst = []
    for patients in SIZES:
        for prevalence in PREVALENCES:
            for images in IMAGES:
                target, patient, logits = draw(
                    np.random.default_rng(1), LARGE // images, prevalence, images
                )
                one = np.ones(len(target)), np.zeros(len(target), int)
                truth = {
                    name: estimator(logits[0], target, *one)[0]
                    for name, (estimator, _) in METRICS.items()
                }
                rng = np.random.default_rng([patients, int(100 * prevalence), images])
                held, missing = {name: [] for name in (*METRICS, "difference")}, 0
                for _ in range(cohorts):
                    target, patient, logits = draw(rng, patients, prevalence, images)
                    arms = [scores_of(logit, target, patient) for logit in logits]
                    found = [
                        {name: measure(arm, *of) for name, of in METRICS.items()} for arm in arms
                    ]
                    intervals = {
                        name: e.interval(least=0.0 if name == "brier" else -np.inf)
                        for name, e in found[0].items()
                    }
                    intervals["auc"] = auc_interval(found[0]["auc"])
                    intervals["difference"] = (found[0]["auc"] - found[1]["auc"]).interval()
                    for name, interval in intervals.items():
                        if interval["low"] is None:
                            missing += 1
                        else:
                            held[name].append(
                                interval["low"] <= truth.get(name, 0.0) <= interval["high"]
                            )
                shares = {name: 100 * np.mean(values) for name, values in held.items()}
                worst += shares.values()
                print(
                    f"{patients:>5} {prevalence:.1f} {images}: "
                    f"{', '.join(f'{share:.1f}' for share in shares.values())}; {missing}",
                    flush=True,
                )
    print(
        f"from {min(worst):.1f} to {max(worst):.1f}; "
        f"{np.mean([93 <= share <= 97 for share in worst]):.0%} of them within 93 to 97"
    )


def trainings(cohorts: int) -> None:
    """Rows 1 and 2, and the pooled headline: what the sentence names is held, and equal procedures
    are not told apart.
    """
    print(
        "cross-validated arms; patients, folds, seeds: AUC held (of these models with one seed, "
        "else of trainings), the same if pooled; "
    )
    print(
        "  equal procedures told apart, the same with models as given; a true difference of 0.05 "
        "found, %"
    )
    rng = np.random.default_rng(0)
    for patients, prevalence in ((60, 0.3), (200, 0.3), (200, 0.1), (600, 0.3)):
        for folds in (1, 3, 5):
            for seeds in (1, 2, 3, 5):
                held, pooled, told, given, found = [], [], [], [], []
                for study in range(2 * cohorts):
                    better = study % 2
                    skills = (APART + 0.21 * better, APART)
                    target, _, arms, truth = cross_validate(
                        rng, patients, prevalence, folds, seeds, skills
                    )
                    a, b = (measure(arm) for arm in arms)
                    interval, expected = (
                        auc_interval(b),
                        truth[1].mean() if seeds == 1 else float(norm.cdf(APART / np.sqrt(2))),
                    )
                    held.append(interval["low"] <= expected <= interval["high"])
                    together = auc_interval(
                        measure(scores_of(arms[1].logit, target, np.arange(patients)))
                    )
                    pooled.append(together["low"] <= expected <= together["high"])
                    difference = a - b
                    for parts, claims in (
                        (judged_by(difference), found if better else told),
                        (difference.models_alone, given),
                    ):
                        interval = difference.interval(parts=parts)
                        if not (claims is given and better):
                            claims.append(
                                interval["low"] is not None
                                and not interval["low"] <= 0 <= interval["high"]
                            )
                shares = [
                    100 * float(np.mean(values)) for values in (held, pooled, told, given, found)
                ]
                print(
                    f"{patients:>5} {prevalence:.1f}, {folds} folds, {seeds} seeds: "
                    f"{'; '.join(f'{share:.1f}' for share in shares)}",
                    flush=True,
                )


def few_positives(cohorts: int) -> None:
    """Row 22: intervals from draws where few patients are positive."""
    print(
        "few positives (and ten times as many negatives), 3 folds, images each: average "
        "precision, partial AUC, sensitivity held, %"
    )
    rng = np.random.default_rng(1)
    for positives, images in ((8, 1), (15, 1), (30, 1), (10, 6), (30, 6)):
        held = {"average_precision": [], "partial_auc": [], "sensitivity": []}
        metrics = {
            "average_precision": WithinModels(dis.weighted_average_precision, "positives"),
            "partial_auc": WithinModels(dis.weighted_partial_auc, "pairs"),
        }

        def cohort(count, images=images):
            target = np.repeat([1, 0], [count, 10 * count]).repeat(images)
            patient = np.arange(11 * count).repeat(images)
            fold = (np.arange(11 * count) % 3).repeat(images)
            noise = np.sqrt(0.5) * rng.normal(size=11 * count).repeat(images) + np.sqrt(
                0.5
            ) * rng.normal(size=len(target))
            return target, patient, fold, APART * target + noise

        target, patient, fold, logit = cohort(100_000 // images)
        truth = {
            name: m.metric(logit, target, np.ones((1, len(target))))[0]
            for name, m in metrics.items()
        }
        truth["sensitivity"] = float((logit[target == 1] >= 1.0).mean())
        for _ in range(cohorts):
            target, patient, fold, logit = cohort(positives)
            scores = scores_of(logit, target, patient, fold)
            draws = Draws(np.unique(patient).astype(object), 300, 0, fold[::images])
            drawn = draw_values([Question(scores, metrics)], draws)[0]
            for name in metrics:
                interval = drawn[name].interval("logit", 0.0, 1.0)
                held[name].append(
                    interval["low"] is not None
                    and interval["low"] <= truth[name] <= interval["high"]
                )
            table = pd.DataFrame(
                {
                    "patient": patient,
                    "target": target,
                    "logit": logit,
                    "fold": fold,
                    "image": np.arange(len(target)),
                }
            )
            if len(held["sensitivity"]) < min(cohorts, 200):
                report = evaluate(
                    table, bootstrap=100, threshold=float(expit(1.0)), unit="image"
                ).to_dict()
                point = report["arms"]["model"]["operating_points"][0]["sensitivity"]
                held["sensitivity"].append(point["low"] <= truth["sensitivity"] <= point["high"])
        print(
            f"{positives:>3}, {images}: "
            f"{', '.join(f'{100 * np.mean(values):.1f}' for values in held.values())}",
            flush=True,
        )


def recalibrated(cohorts: int) -> None:
    """Row 3: networks twice as confident as they should be, by one model, and by five whose scales
    and places differ; and right ones.
    """
    print(
        "after recalibration: models; prevalence, tune patients of each: mean slope, observed / "
        "expected, log-loss; of a temperature"
    )
    print("  about 0 from the model's own tune part the same")
    rng = np.random.default_rng(2)
    cases = [
        (2.0, models, prevalence, tune)
        for models in (1, 5)
        for prevalence in (0.05, 0.1, 0.3, 0.5)
        for tune in (20, 40, 100)
    ]
    cases += [(over, 5, 0.3, tune) for over in (1.0, 4.0) for tune in (20, 40, 100)]
    for over, models, prevalence, tune in cases:
        rows = [
            _recalibrate_one(rng, over, models, prevalence, tune)
            for _ in range(max(20, cohorts // 10))
        ]
        new, old = (np.mean([row[kind] for row in rows], axis=0) for kind in (0, 1))
        told = "; ".join(", ".join(f"{value:.3f}" for value in values) for values in (new, old))
        print(
            f"{models}: over-confident by {over:g}, {prevalence:.2f}, {tune:>3}: {told}", flush=True
        )


def _recalibrate_one(
    rng, over: float, models: int, prevalence: float, tune: int, tested: int = 5000
):
    from scipy.optimize import minimize_scalar

    middle, patients = (
        np.log(prevalence / (1 - prevalence)),
        round(tune * models / 0.8) if models > 1 else tune,
    )
    target = (rng.permutation(patients) < max(2, round(prevalence * patients))).astype(int)
    fold = np.empty(patients, int)
    for value in (0, 1):
        rows = np.flatnonzero(target == value)
        fold[rows] = rng.permutation(np.arange(len(rows)) % models)

    def truth(of):
        return middle + APART * (APART * of + rng.normal(size=len(of))) - APART**2 / 2

    known, frames, old = truth(target), [], []
    for model in range(models):
        scale, place = (
            (over * np.exp(SCALES * rng.normal()), 0.5 * rng.normal())
            if models > 1
            else (over, 0.0)
        )
        others = rng.permutation(
            np.flatnonzero(fold != model) if models > 1 else np.arange(patients)
        )
        count = max(1, round(prevalence * tune))
        part = np.concatenate(
            [others[target[others] == 1][:count], others[target[others] == 0][: tune - count]]
        )
        new = (rng.random(tested // models) < prevalence).astype(int)
        for name, of, logit, images in (
            ("tune", target[part], known[part], part),
            ("test", new, truth(new), -1 - model * tested - np.arange(len(new))),
        ):
            z = scale * (logit - middle) + middle + place
            frames.append(
                pd.DataFrame(
                    {
                        "fold": model,
                        "part": name,
                        "patient": images,
                        "image": images,
                        "target": of,
                        "logit": z,
                    }
                )
            )
        tuned, test = frames[-2], frames[-1]
        z, y = tuned["logit"].to_numpy(), tuned["target"].to_numpy()

        def loss(log_t, z=z, y=y):
            return np.logaddexp(0, np.where(y == 1, -z, z) * np.exp(-log_t)).sum() + 0.5 * log_t**2

        old.append(
            test["logit"].to_numpy()
            * np.exp(-minimize_scalar(loss, bounds=(-5, 5), method="bounded").x)
        )
    table = pd.concat(frames, ignore_index=True).assign(seed=0)
    test = table[table["part"] == "test"]
    scores = scores_of(
        test["logit"].to_numpy(),
        test["target"].to_numpy(),
        test["patient"].to_numpy(),
        test["fold"].to_numpy(),
    )
    found = recalibrate(scores, table[table["part"] == "tune"])
    return [_calibration(scores, logit) for logit in (found.scores.logit[0], np.concatenate(old))]


def _calibration(scores: Scores, logit):
    y = scores.target
    slope = influence.slope(logit, y, scores.weight, scores.fold[0])[0]
    return (
        slope,
        y.sum() / expit(logit).sum(),
        float(np.logaddexp(0, np.where(y == 1, -logit, logit)).mean()),
    )


def chance(cohorts: int) -> None:
    """Rows 7, 15, 23: a perfect model is not called miscalibrated."""
    print(
        "a perfect model; patients, images each: beyond the 95 % point of chance: ECE, smooth "
        "ECE, miscalibration, ICI; intercept and slope"
    )
    print("  tested together (one test at 5 % in place of several)")
    rng = np.random.default_rng(3)
    for patients, images in ((100, 1), (200, 1), (500, 1), (100, 3)):
        for of_patients in (True, False) if images > 1 else (True,):
            beyond, joint = dict.fromkeys(("ece", "smooth_ece", "miscalibration", "ici"), 0), 0
            count = max(20, cohorts // 5)
            for _ in range(count):
                z = rng.normal(-0.8, 1.4, patients).repeat(images)
                patient = np.arange(patients).repeat(images)
                target = (
                    rng.random(patients).repeat(images) < expit(z)
                    if of_patients
                    else rng.random(len(z)) < expit(z)
                ).astype(int)
                scores = scores_of(z + 1e-6 * rng.normal(size=len(z)), target, patient)
                one, logit = np.ones((1, len(z))), scores.logit[0]
                null = cal.null_errors(scores, patient, 200, rng)
                seen = {
                    "ece": cal.weighted_ece(logit, target, one, cal.bin_edges(logit))[0],
                    "smooth_ece": weighted_smooth_ece(logit, target, one)[0],
                    "miscalibration": cal.weighted_corp(logit, target, one)[0, 0],
                    "ici": curve_errors(logit, target, one[0])["ici"],
                }
                for name, value in seen.items():
                    beyond[name] += value > np.quantile(null[name], 0.95)
                joint += cal.joint_p_value(scores, patient)[0] < 0.05
            told = ", ".join(f"{100 * n / count:.1f}" for n in beyond.values())
            kind = (
                ""
                if images == 1
                else " (labels of patients)"
                if of_patients
                else " (labels of images)"
            )
            print(f"{patients:>4}, {images}{kind}: {told}; {100 * joint / count:.1f} %", flush=True)


def sites(cohorts: int) -> None:
    """Rows 5 and 6: leave-one-site-out, sites whose AUC differs by a standard deviation of
    0.046.
    """
    print(
        "sites left out one by one, patients each: mean over sites held; by patients alone; a new "
        "site; equal arms told apart, %"
    )
    rng = np.random.default_rng(4)
    for count, patients in ((5, 120), (10, 120), (10, 400)):
        mean = float(np.mean(norm.cdf((APART + 0.24 * rng.normal(size=400_000)) / np.sqrt(2))))
        held, alone, new, claimed = [], [], [], []
        for _ in range(cohorts):
            site = np.arange(count).repeat(patients)
            target = (rng.random(len(site)) < 0.3).astype(int)
            apart, common = APART + 0.24 * rng.normal(size=count), rng.normal(size=len(site))
            arms = []
            for arm in "ab":
                x = (
                    apart[site] * target
                    + np.sqrt(0.6) * common
                    + np.sqrt(0.4) * rng.normal(size=len(site))
                    + 0.1 * rng.normal(size=count)[site] * target
                )
                arms.append(
                    scores_of(
                        x + rng.normal(size=count)[site], target, np.arange(len(site)), site, arm
                    )
                )
            of_sites = [by_site(arm, np.arange(len(site)), len(site)) for arm in arms]
            over, plain = meta_auc(of_sites[0]), auc_interval(measure(arms[0]))
            held.append(over["low"] <= mean <= over["high"])
            alone.append(plain["low"] <= mean <= plain["high"])
            new.append(
                over["new_site"]["low"]
                <= norm.cdf((APART + 0.24 * rng.normal()) / np.sqrt(2))
                <= over["new_site"]["high"]
            )
            difference = meta_difference(*of_sites)
            claimed.append(not difference["low"] <= 0 <= difference["high"])
        print(
            f"{count:>3} x {patients}: "
            f"{'; '.join(f'{100 * np.mean(v):.1f}' for v in (held, alone, new, claimed))}",
            flush=True,
        )


def groups(cohorts: int) -> None:
    """Rows 5 and 16: groups of equal worth, within five models whose scores differ in scale and
    place.
    """
    print(
        "six equal groups, five models, %: an AUC held; some difference from the rest claimed; "
        "one test of all below 0.05; some interaction"
    )
    rng = np.random.default_rng(5)
    for patients in (400, 1000):
        held, some, tested, interactions = [], [], [], []
        for _ in range(max(20, cohorts // 4)):
            _, _, arms, truth = cross_validate(rng, patients, 0.4, 5, 1)
            column = pd.DataFrame({"group": [f"g{i}" for i in rng.integers(0, 6, patients)]})
            rows = describe_subgroups(
                arms, column, Draws(np.arange(patients).astype(object), 100, 0)
            )
            told = [
                row for row in rows if not row["suppressed"] and row["arms"]["a"]["auc_difference"]
            ]
            held += [
                row["arms"]["a"]["auc"]["low"] <= truth[0].mean() <= row["arms"]["a"]["auc"]["high"]
                for row in told
            ]
            some.append(
                any(
                    not d["low"] <= 0 <= d["high"]
                    for d in (row["arms"]["a"]["auc_difference"] for row in told)
                )
            )
            interactions.append(
                any(not d["low"] <= 0 <= d["high"] for d in (row["interaction"] for row in told))
            )
            tested.append(
                told
                and told[0]["arms"]["a"]["heterogeneity_p"] is not None
                and told[0]["arms"]["a"]["heterogeneity_p"] < 0.05
            )
        print(
            f"{patients:>5}: "
            f"{'; '.join(f'{100 * np.mean(v):.1f}' for v in (held, some, tested, interactions))}",
            flush=True,
        )


def classes(cohorts: int) -> None:
    """Row 9: the mean AUC over three classes that exclude each other, three folds."""
    print("three classes, 3 folds: mean AUC one against the rest held, %")
    rng = np.random.default_rng(6)

    def cohort(patients):
        own = rng.integers(0, 3, patients)
        x = 1.2 * np.eye(3)[own] + rng.normal(size=(patients, 3))
        return own, x

    own, x = cohort(400_000)
    truth = np.mean(
        [
            influence.auc(
                x[:, c], (own == c).astype(int), np.ones(len(own)), np.zeros(len(own), int)
            )[0]
            for c in range(3)
        ]
    )
    for patients in (90, 300):
        held = []
        for _ in range(cohorts):
            own, x = cohort(patients)
            fold = rng.permutation(np.arange(patients) % 3)
            moved = (
                x * np.exp(SCALES * rng.normal(size=(3, 3)))[fold]
                + PLACES * rng.normal(size=(3, 3))[fold]
            )
            mean = mean_estimate(
                [
                    measure(
                        scores_of(moved[:, c], (own == c).astype(int), np.arange(patients), fold)
                    )
                    for c in range(3)
                ]
            )
            interval = mean.interval("logit")
            held.append(interval["low"] <= truth <= interval["high"])
        print(f"{patients:>5}: {100 * np.mean(held):.1f}", flush=True)


def locked(cohorts: int) -> None:
    """Rows 11 and 13: thresholds for a sensitivity of 0.9, and prediction sets where later images
    of a patient are harder.
    """
    print("sensitivity of a threshold for 0.9, by tune positives: mean, share of studies below 0.8")
    rng = np.random.default_rng(7)
    for positives in (10, 20, 40, 100):
        cuts = [
            lock_threshold(
                np.r_[rng.normal(size=positives) + APART, rng.normal(size=100)],
                np.repeat([1, 0], [positives, 100]),
                "sensitivity",
                0.9,
            )
            for _ in range(5 * cohorts)
        ]
        reached = norm.sf(np.array(cuts) - APART)
        print(
            f"{positives:>4}: {reached.mean():.3f}; {100 * np.mean(reached < 0.8):.0f} %",
            flush=True,
        )
    covered = []
    for _ in range(max(10, cohorts // 50)):
        target = rng.integers(0, 2, 400).repeat(3)
        logit = np.tile([2.0, 0.7, 0.7], 400) * (2 * target - 1) + rng.normal(size=1200)
        part = np.where(np.arange(400) < 200, "tune", "test").repeat(3)
        table = pd.DataFrame(
            {"patient": np.arange(400).repeat(3), "target": target, "logit": logit, "part": part}
        )
        covered.append(
            evaluate(table, bootstrap=100, unit="image").to_dict()["arms"]["model"][
                "prediction_sets"
            ]["coverage"]["estimate"]
        )
    print(f"prediction sets that should hold 0.9, later images harder: {np.mean(covered):.3f}")


def unlike(cohorts: int) -> None:
    """Row 8: images flagged at random are not called worse or better."""
    print(
        "flagged at random, patients: Brier score of the flagged held, difference claimed, %; "
        "nothing said"
    )
    rng = np.random.default_rng(8)
    for patients in (100, 300, 600):
        held, claimed, silent = [], [], 0
        p = expit(rng.normal(-0.8, 1.4, 400_000))
        truth = float(np.mean(p * (1 - p)))
        for _ in range(max(20, cohorts // 10)):
            z = rng.normal(-0.8, 1.4, 2 * patients)
            target = (rng.random(2 * patients) < expit(z)).astype(int)
            part = np.where(np.arange(2 * patients) < patients, "test", "tune")
            table = pd.DataFrame(
                {
                    "patient": range(2 * patients),
                    "target": target,
                    "logit": z,
                    "part": part,
                    "typical": rng.random(2 * patients),
                }
            )
            entry = evaluate(table, bootstrap=100).to_dict()["arms"]["model"]["outliers"]
            if entry["difference"]["low"] is None:
                silent += 1
                continue
            difference, brier = entry["difference"], entry["brier_flagged"]
            claimed.append(not difference["low"] <= 0 <= difference["high"])
            held.append(brier["low"] <= truth <= brier["high"])
        told = f"{100 * np.mean(held):.1f}; {100 * np.mean(claimed):.1f}" if held else "–"
        print(f"{patients:>4}: {told}; {silent}", flush=True)


def lesions(cohorts: int) -> None:
    """Rows 21 and 22: detectors of three folds whose scores differ in scale and place."""
    print(
        "detection, 3 folds, patients with a lesion: AP50 and CPM held, %; the pooled AP50 less "
        "that within models"
    )
    rng = np.random.default_rng(9)

    def study(patients, folds=3, moved=True):
        images = [f"i{i}" for i in range(patients)]
        fold = np.arange(patients) % folds
        place, scale = (
            (PLACES * rng.normal(size=folds), np.exp(SCALES * rng.normal(size=folds)))
            if moved
            else (np.zeros(folds), np.ones(folds))
        )
        boxes = pd.DataFrame({"image": images, "x0": 10.0, "y0": 10.0, "x1": 20.0, "y1": 20.0})
        rows = []
        for i in range(patients):
            if rng.random() < 0.9:
                rows.append((images[i], fold[i], 10.0, rng.normal(2.0)))
            rows += [(images[i], fold[i], 40.0, rng.normal(0.0)) for _ in range(rng.poisson(2.0))]
        found = pd.DataFrame(
            [(i, f, x, x, x + 10, x + 10, scale[f] * z + place[f]) for i, f, x, z in rows],
            columns=["image", "fold", "x0", "y0", "x1", "y1", "logit"],
        )
        about = pd.DataFrame(
            {
                "arm": "a",
                "seed": 0,
                "fold": fold,
                "part": "test",
                "image": images,
                "patient": images,
            }
        )
        return about, found.assign(arm="a", seed=0, part="test"), boxes

    large = evaluate_boxes(*study(6000, 1, False), bootstrap=100)["arms"]["a"]
    for patients in (15, 40, 100):
        held, apart = {"ap_50": [], "cpm": []}, []
        for _ in range(max(20, cohorts // 5)):
            entry = evaluate_boxes(*study(patients), bootstrap=200)["arms"]["a"]
            for name, values in held.items():
                if (
                    entry[name]["low"] is not None
                ):  # as where every lesion is the first candidate of its model
                    values.append(
                        entry[name]["low"] <= large[name]["estimate"] <= entry[name]["high"]
                    )
            apart.append(entry["pooled"]["ap_50"] - entry["ap_50"]["estimate"])
        print(
            f"{patients:>4}: {', '.join(f'{100 * np.mean(v):.1f}' for v in held.values())}; "
            f"{np.mean(apart):+.3f}",
            flush=True,
        )


def curves(cohorts: int) -> None:
    """Row 10: a perfect model of a balanced draw, on a cohort of which a tenth is positive."""
    rng = np.random.default_rng(10)
    target = (rng.random(200_000) < 0.1).astype(int)
    logit = APART * (APART * target + rng.normal(size=len(target))) - APART**2 / 2
    moved = adjust_prevalence(logit, 0.5, 0.1)
    losses = [float(np.mean((expit(z) - target) ** 2)) for z in (logit, moved)]
    print(
        "learning curve: Brier score of a perfect balanced draw where 10 % are positive: "
        f"{losses[0]:.3f}, adjusted {losses[1]:.3f}"
    )
    table = pd.DataFrame(
        {
            "patient": range(600),
            "target": target[:600],
            "logit": logit[:600],
            "size": 20,
            "episode": 0,
        }
    )
    whole = table.assign(size=0, logit=moved[:600])
    entry = evaluate(pd.concat([whole, table]), bootstrap=100).to_dict()["learning_curve"][0]
    print(
        f"  in the report of 600 of them {entry['brier']['estimate']:.3f}; intervals with one "
        f"draw of a size: {entry['auc']['low']}"
    )
    del cohorts


def leaks(cohorts: int) -> None:
    """Labels independent of images, models that learnt theirs by heart: nothing that is fitted on
    tune rows knows those of test images.
    """
    rng, found, losses = np.random.default_rng(11), [], []
    for _ in range(max(20, cohorts // 10)):
        features, target = rng.normal(size=(120, 60)), rng.permutation(np.arange(120) % 2)
        fold, frames = np.arange(120) // 2 % 4, []
        for model in range(4):
            others = rng.permutation(np.flatnonzero(fold != model))
            fitted = LogisticRegression().fit(features[others[20:]], target[others[20:]])
            for part, rows in (("test", np.flatnonzero(fold == model)), ("tune", others[:20])):
                logit = fitted.decision_function(features[rows])
                about = {
                    "patient": rows,
                    "image": rows,
                    "target": target[rows],
                    "fold": model,
                    "part": part,
                    "logit": logit,
                }
                frames.append(pd.DataFrame(about))
        entry = evaluate(pd.concat(frames), bootstrap=100).to_dict()["arms"]["model"]
        point = next(p for p in entry["operating_points"] if p["rule"] == "youden")
        found.append(point["sensitivity"]["estimate"] + point["specificity"]["estimate"] - 1)
        losses.append(entry["recalibrated"]["log_loss"]["estimate"] - np.log(2))
    told = [
        f"{np.mean(v):+.3f} (standard error {np.std(v) / np.sqrt(len(v)):.3f})"
        for v in (found, losses)
    ]
    print(
        f"labels independent of images: sensitivity + specificity - 1 = {told[0]}; log-loss above "
        f"that of a coin {told[1]}"
    )


PARTS = (
    one_model,
    trainings,
    few_positives,
    recalibrated,
    chance,
    sites,
    groups,
    classes,
    locked,
    unlike,
    lesions,
    curves,
    leaks,
)


def main() -> None:
    words = sys.argv[1:]
    cohorts = int(words.pop(0)) if words and words[0].isdigit() else 1000
    begun = time.perf_counter()
    for part in PARTS:
        if not words or part.__name__ in words:
            part(cohorts)
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
