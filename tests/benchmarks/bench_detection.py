"""Detection against the parts it is made of: kept activations against the whole network, and
suppression against MONAI's and torchvision's.

Usage: bench_detection.py.
"""

from __future__ import annotations

import numpy as np
import torch
from bench_core import median_seconds
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.plan.rules import PlainCounts, plan_freeze
from medtransfer.tasks.detection import Detection, suppress
from medtransfer.training.predicting import Network
from medtransfer.training.timing import make_engine
from monai.data.box_utils import non_max_suppression
from torchvision.ops import nms


def bench_steps(size: int = 256, batch: int = 8) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, size - 70, (100, 1, 2))
    boxes = np.concatenate([low, low + rng.uniform(12, 70, low.shape)], -1).astype(np.float32)
    engine = make_engine("cpu", "fp32")
    net = load_backbone("tf_efficientnet_lite0", "imagenet")
    task = Detection(("lesion",), (size, size)).fitted(boxes)
    head = task.make_head(net)
    plan = plan_freeze(PlainCounts({"0": 50, "1": 400}, "far"), net, finest=8)
    engine.place(net)
    engine.place(head)
    images = {"image": torch.randn(batch, 3, size, size)}
    present, targets = torch.ones(batch, 1, dtype=torch.bool), torch.from_numpy(boxes[:batch])
    network = Network(net, head, engine).train()

    def step(features) -> None:
        task.loss(network(features, present), targets)["loss"].backward()

    whole = median_seconds(lambda: step(images))
    net.freeze(plan.frozen_stages, "eval")
    frozen = median_seconds(lambda: step(images))
    cut = net.names[plan.frozen_stages - 1]
    with torch.no_grad():
        kept = net(engine.move(images), [cut])
    replayed = median_seconds(lambda: step(kept))
    print(f"a step of {batch} images of {size} pixels, all trained: {whole:.2f} s")
    print(
        f"{plan.frozen_stages} stages frozen: {whole / frozen:.2f} times as fast; kept behind "
        f"{cut}: {whole / replayed:.2f} times"
    )


def bench_suppression(count: int = 200) -> None:
    low = torch.tensor(np.random.default_rng(0).uniform(0, 200, (count, 2)), dtype=torch.float32)
    boxes, score = torch.cat([low, low + 40], 1), torch.linspace(1, 0, count)
    own = median_seconds(lambda: suppress(boxes, 0.3))
    monai, torchvision = (
        median_seconds(lambda: non_max_suppression(boxes, score, 0.3)),
        median_seconds(lambda: nms(boxes, score, 0.3)),
    )
    print(
        f"suppression of {count} boxes: {1000 * own:.2f} ms; MONAI takes {monai / own:.1f}, "
        f"torchvision {torchvision / own:.2f} times it"
    )


if __name__ == "__main__":
    bench_steps()
    bench_suppression()
