"""What a detector is trained on: anchors from boxes, losses, candidates, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medtransfer.errors import CohortError
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.tasks.detection import KEPT, Detection, suppress

from networks import SMALL

NAN = float("nan")


def boxes_of(sides, count: int = 30, size: int = 128, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    side = rng.choice(np.asarray(sides, float), count)[:, None, None] * np.ones((1, 1, 2))
    low = rng.uniform(0, size - side)
    return np.concatenate([low, low + side], -1)


@pytest.fixture(scope="module")
def fitted() -> Detection:
    return Detection(("lesion",), (128, 128)).fitted(boxes_of([20, 30, 50]))


def test_anchors_follow_the_boxes():
    task = Detection(("lesion",), (128, 128)).fitted(boxes_of([20, 30, 50]))
    anchors = np.array(task.anchors)
    assert anchors.shape == (3, 6, 2)
    assert task.finest == 8
    finest, coarse = anchors[0], anchors[1]
    assert finest.max() <= 40.001  # lesions of a level are up to five strides large
    assert coarse.min() >= 39.999
    assert min(abs(finest[:, 0] - 20).min(), abs(finest[:, 0] - 30).min()) < 3
    assert Detection(("lesion",), (128, 128)).fitted(boxes_of([5, 6, 40])).finest == 4
    assert np.array(Detection(("lesion",), (128, 128)).fitted(boxes_of([20], 2)).anchors).shape == (
        3,
        1,
        2,
    )  # too few for more
    padded = np.concatenate([boxes_of([20, 30]), np.full((30, 2, 4), NAN)], 1)
    assert (
        Detection(("lesion",), (128, 128)).fitted(padded).anchors
        == Detection(("lesion",), (128, 128)).fitted(boxes_of([20, 30])).anchors
    )
    with pytest.raises(CohortError, match="no lesion box"):
        Detection(("lesion",), (128, 128)).fitted(np.full((3, 1, 4), NAN))


def outputs(head, batch: int = 2, seed: int = 0):
    shapes = [(16, 16), (8, 8), (4, 4)]
    anchors = head.place_anchors(shapes)
    torch.manual_seed(seed)
    return {
        "logits": torch.randn(batch, len(anchors), 1, requires_grad=True),
        "moves": (0.1 * torch.randn(batch, len(anchors), 4)).requires_grad_(),
        "anchors": anchors,
        "places": [a * b for a, b in shapes],
    }


def test_loss_by_hand(fitted):
    """All logits at 0, one lesion: focal loss of every anchor is known, and the overlap too."""
    head = fitted.make_head(load_backbone("resnet18"))
    out = outputs(head)
    out["logits"] = torch.zeros_like(out["logits"], requires_grad=True)
    out["moves"] = torch.zeros_like(out["moves"])
    targets = torch.tensor([[[40.0, 40.0, 60.0, 60.0]], [[NAN] * 4]])
    found = fitted.loss(out, targets)
    # Of each 0.5**2 * log 2, times 0.25 where a lesion is to be found, else 0.75; all of it per
    # anchor of the first kind.
    total = out["logits"].numel()
    each = 0.25 * np.log(2)
    # each * (0.25 n + 0.75 (total - n)) / n: n follows from the value and is a whole number.
    value = float(found["classes"].detach())
    n = 0.75 * each * total / (value + 0.5 * each)
    assert n == pytest.approx(round(n), abs=1e-3)
    assert 1 <= round(n) <= 40
    assert 0 < float(found["sides"].detach()) < 1  # anchors that were chosen overlap the lesion
    assert float(found["loss"].detach()) == pytest.approx(
        value + 2 * float(found["sides"].detach()), rel=1e-6
    )


def test_images_without_lesions_and_with_many(fitted):
    head = fitted.make_head(load_backbone("resnet18"))
    empty = fitted.loss(outputs(head), torch.full((2, 3, 4), NAN))
    assert float(empty["sides"].detach()) == 0
    empty[
        "loss"
    ].backward()  # moves have a gradient of 0, so that processes that train together agree
    many = torch.tensor(boxes_of([16, 20, 24], 80).reshape(2, 40, 4), dtype=torch.float32)
    border = torch.tensor(
        [
            [[0.0, 0.0, 1.0, 1.0], [127.0, 127.0, 128.0, 128.0]],
            [[50.0, 50.0, 70.0, 70.0], [50.0, 50.0, 70.0, 70.0]],
        ]
    )
    for targets in (many, border):
        out = outputs(head)
        loss = fitted.loss(out, targets)["loss"]
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(out["moves"].grad).all()
        assert (out["moves"].grad != 0).any()


def test_candidates_are_best_first_apart_and_inside(fitted):
    head = fitted.make_head(load_backbone("resnet18"))
    out = outputs(head)
    found = fitted.predict(out).detach()
    assert found.shape == (2, KEPT, 5)
    for rows in found:
        own = rows[rows[:, 0].isfinite()]
        assert len(own) > 3
        assert (own[1:, 0] <= own[:-1, 0]).all()
        assert (own[:, 1:] >= 0).all()
        assert (own[:, 1:] <= 128).all()
        low, high = (
            own[:, None, 1:3].maximum(own[None, :, 1:3]),
            own[:, None, 3:].minimum(own[None, :, 3:]),
        )
        shared = (high - low).clamp(min=0).prod(-1)
        area = (own[:, 3:] - own[:, 1:3]).prod(-1)
        overlap = shared / (area[:, None] + area[None] - shared)
        assert (overlap.fill_diagonal_(0) <= 0.3 + 1e-6).all()
    # However poor: an image keeps its best candidate, whose score is its own.
    poor = {**out, "logits": torch.full_like(out["logits"], -20.0)}
    assert (fitted.predict(poor)[:, 0, 0] == -20).all()


@pytest.mark.parametrize("axes", [2, 3])
def test_suppression_is_that_of_others(axes):
    from monai.data.box_utils import non_max_suppression
    from torchvision.ops import nms

    rng = np.random.default_rng(axes)
    low = torch.tensor(rng.uniform(0, 60, (80, axes)), dtype=torch.float32)
    boxes = torch.cat(
        [low, low + torch.tensor(rng.uniform(10, 50, (80, axes)), dtype=torch.float32)], 1
    )
    score = torch.linspace(1, 0, 80)
    kept = suppress(boxes, 0.3)
    assert kept.tolist() == non_max_suppression(boxes, score, 0.3).tolist()
    assert 1 < len(kept) < 80
    if axes == 2:
        assert kept.tolist() == nms(boxes, score, 0.3).tolist()


def test_rows_and_scores(fitted):
    predictions = np.full((3, KEPT, 5), NAN)
    predictions[:, 0] = [[2.0, 10, 10, 30, 30], [1.0, 50, 50, 60, 60], [-3.0, 0, 0, 9, 9]]
    predictions[0, 1] = [0.5, 70, 70, 90, 90]
    targets = np.array([[[10, 10, 30, 30]], [[0, 0, 10, 10]], [[NAN] * 4]], float)
    table = fitted.decode(predictions, targets, ["a", "b", "c"], ["p", "p", "q"])
    assert table["target"].tolist() == [1, 1, 0]
    assert table["logit"].tolist() == [2.0, 1.0, -3.0]
    # One of two lesions, by the best candidate of all.
    assert fitted.score(predictions, targets)["average_precision"] == pytest.approx(51 / 101)


@pytest.mark.slow
def test_it_learns_to_find_a_bright_square():
    """From random weights, on images made here: what it learns is where the square is."""
    torch.manual_seed(0)
    task = Detection(("lesion",), (64, 64)).fitted(boxes_of([16], 30, 64))
    net = load_backbone(SMALL)
    head = task.make_head(net)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], 1e-3)
    rng = np.random.default_rng(0)

    def draw(count: int):
        low = rng.integers(0, 48, (count, 2))
        images = torch.tensor(rng.normal(0, 0.3, (count, 1, 64, 64)), dtype=torch.float32).repeat(
            1, 3, 1, 1
        )
        for image, (row, column) in zip(images, low, strict=True):
            image[:, row : row + 16, column : column + 16] += 2
        return images, torch.tensor(
            np.concatenate([low, low + 16], 1)[:, None], dtype=torch.float32
        )

    net.train()
    for _ in range(50):
        images, boxes = draw(8)
        loss = task.loss(head(net({"image": images}, head.taps)), boxes)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, boxes = draw(16)
    with torch.no_grad():
        found = task.predict(head(net({"image": images}, head.taps)))
    assert task.score(found.numpy(), boxes.numpy())["average_precision"] > 0.7
