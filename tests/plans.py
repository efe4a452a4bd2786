"""Freeze plans of cohorts of a given size."""

from __future__ import annotations

from typing import Any, Literal

import medtransfer as mt
from medtransfer.models.plan.rules import PlainCounts


def plan(
    backbone: mt.Backbone,
    smallest: int = 100,
    domain: Literal["near", "far"] = "near",
    **fixed: Any,
) -> mt.FreezePlan:
    """The plan for a pretrained backbone and patients of whom a third are positive.

    Args:
        backbone: whose stages are planned.
        smallest: patients of the smaller class.
        domain: of the images.
        **fixed: arguments of `plan_freeze`.
    """
    counts = PlainCounts({"0": 2 * smallest, "1": smallest}, domain)
    return mt.plan_freeze(counts, backbone, transfer=True, **fixed)
