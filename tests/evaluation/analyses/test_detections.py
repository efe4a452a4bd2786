from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtransfer.evaluation.analyses.detections import Criterion, count_lesions, gather_detections
from medtransfer.evaluation.intervals.draws import Draws
from medtransfer.evaluation.metrics.matching import by_image

from detected import BOX, few_detections


def test_a_candidate_is_a_hit_by_its_overlap_or_by_its_centre():
    lesions = np.array([[0.0, 0.0, 10.0, 10.0]])
    small = np.array([[4.0, 4.0, 6.0, 6.0, 0.0]])  # overlap 0.04, its centre within the box
    assert Criterion().match(small, lesions).tolist() == [-1]
    assert Criterion("centre").match(small, lesions).tolist() == [0]
    assert Criterion(overlap=0.04).match(small, lesions).tolist() == [0]
    assert Criterion("centre").to_dict() == {"rule": "centre", "overlap": None}
    assert Criterion().to_dict() == {"rule": "overlap", "overlap": 0.5}


@pytest.fixture
def cohort():
    tested, candidates, lesions = few_detections(0)
    owner = dict(zip(tested["image"], tested["patient"], strict=True))
    draws = Draws(np.array(sorted(set(owner.values())), object), 100, 0)
    return tested, candidates, lesions, owner, draws


def test_lesions_are_counted_by_patient(cohort):
    _, _, lesions, owner, draws = cohort
    truth = count_lesions(by_image(list(owner), lesions, BOX), owner, draws)
    assert truth.images.tolist() == [2.0] * 6
    of_patient = lesions["image"].map(owner).value_counts()
    assert truth.lesions.tolist() == [of_patient.get(name, 0) for name in draws.patients]
    assert (truth.size == 20).all()
    assert (np.diff(truth.owner) >= 0).sum() > 0


def test_every_model_has_its_own_candidates_in_descending_order(cohort):
    tested, candidates, lesions, owner, draws = cohort
    truth_of = by_image(list(owner), lesions, BOX)
    (models,) = gather_detections(candidates, tested, lesions, truth_of, draws, Criterion())
    assert len(models) == 2
    for fold, model in enumerate(models):
        of_fold = candidates[candidates["fold"] == fold]
        assert model.score.tolist() == sorted(of_fold["logit"], reverse=True)
        images = tested.loc[tested["fold"] == fold, "patient"]
        assert set(draws.patients[model.tested]) == set(images)
        assert (model.hit == (model.lesion >= 0)).all()
        assert np.isnan(model.chance).all()  # nothing to calibrate on


def test_candidates_are_calibrated_on_tune_images_of_patients_that_the_model_does_not_test():
    """Two models: each tunes on the patients that the other one tests."""
    tested, candidates, lesions = few_detections(0, images=160)
    fold_of = {name: int(name[1:]) // 2 % 2 for name in tested["image"]}
    tested, candidates = (
        frame.assign(fold=frame["image"].map(fold_of)) for frame in (tested, candidates)
    )
    owner = dict(zip(tested["image"], tested["patient"], strict=True))
    draws = Draws(np.array(sorted(set(owner.values())), object), 100, 0)
    truth_of = by_image(list(owner), lesions, BOX)
    rows = pd.concat([tested, tested.assign(part="tune", fold=1 - tested["fold"])])

    def calibrate(tune):
        both = pd.concat([candidates, tune])
        (models,) = gather_detections(both, rows, lesions, truth_of, draws, Criterion())
        return [model.chance for model in models]

    tune = candidates.assign(part="tune", fold=1 - candidates["fold"])
    first = calibrate(tune)
    assert all(((chance > 0) & (chance < 1)).all() for chance in first)
    assert all((np.diff(chance) <= 0).all() for chance in first)
    # What a model finds in the patients whom the other one tests does not calibrate the other.
    second = calibrate(tune.assign(logit=np.where(tune["fold"] == 1, 1.0, 3.0) * tune["logit"]))
    third = calibrate(tune.assign(logit=np.where(tune["fold"] == 1, 3.0, 1.0) * tune["logit"]))
    assert (second[1] == first[1]).all()
    assert second[0] != pytest.approx(first[0])
    assert (third[0] == first[0]).all()
    assert third[1] != pytest.approx(first[1])
