"""A small network for what does not depend on which one it is."""

from __future__ import annotations

from dataclasses import replace

import medtransfer as mt
from medtransfer.models.chain.backbone import Backbone

SMALL = "test_resnet"  # timm's own for tests: 5 stages, 0.4 million parameters, batch norm


def as_if_pretrained(seed: int = 1) -> Backbone:
    """With random weights that are said to be trained ones, so that its stages may be frozen; the
    same ones every time.
    """
    net = mt.load_backbone(SMALL, seed=seed)
    net.weights = replace(
        net.weights,
        source="file:small.pth",
        origin="small.pth",
        digest="0" * 64,
        proof={"passed": True},
    )
    return net
