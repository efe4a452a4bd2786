"""A freeze plan in words and stage by stage, as a terminal shows it."""

from __future__ import annotations

from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.plan import FreezePlan, describe_stages
from medtransfer.models.plan.schedule import CYCLES

_STAGE_LINE = "  {:<24} {:<8} {:>11} {:>10} {:>8} {:>12}"


def describe_plan(name: str, plan: FreezePlan, backbone: Backbone, size: int | None) -> list[str]:
    """Lines: the plan of an arm, then its stages; `size` in pixels decides their costs."""
    dropped = f", {plan.dropped_stages} cut off" if plan.dropped_stages else ""
    views = f"{plan.views} views and the image as it is" if plan.views else "the image as it is"
    stored = (
        f"{views}, {plan.bytes_per_image / 1024:.0f} KiB each, behind {plan.cache_cut}"
        if plan.cache_cut
        else "nothing"
    )
    more = f"{', adapted norms' if plan.adapt_norm else ''}{', mixed weights' if plan.mix else ''}"
    until = f", then on until level, {plan.steps * CYCLES[-1]} at most" if plan.level else ""
    read = f"pyramid from a stride of {plan.finest}" if plan.finest else f"head reads {plan.read}"
    lines = (
        f"{name}: {plan.strategy}, {plan.frozen_stages} of {plan.stages} stages frozen{dropped}, "
        f"{100 * plan.trainable_fraction:.0f} % of the parameters trained\n"
        f"  {plan.evidence} evidence. {plan.reason}\n"
        f"  rates {plan.head_lr:g} (head), {plan.backbone_lr:g} (last stage; times "
        f"{plan.stage_decay:g} per stage down), "
        f"{plan.steps} steps{until}, batch norm {plan.norm_policy}\n"
        f"  trained: {plan.tuned} stages, unfrozen {plan.unfreeze}; {read}; L2-SP {plan.l2_sp:g}, "
        "dropout "
        f"{plan.dropout:g}{more}\n"
        f"  kept of the frozen stages: {stored}\n"
    ).splitlines()
    lines += ["", _STAGE_LINE.format("stage", "", "parameters", "rate", "compute", "KiB, view")]
    for row in describe_stages(backbone, plan, measure_stages(backbone, size)):
        rate = f"{row['learning_rate']:.1e}" if row["learning_rate"] else "-"
        kib_per_view = f"{row['cache_bytes'] / 1024:.0f}"
        cells = (
            row["stage"],
            row["trained"],
            f"{row['parameters']:,}",
            rate,
            f"{100 * row['compute']:.1f} %",
            kib_per_view,
        )
        lines.append(_STAGE_LINE.format(*cells))
    return [*lines, ""]
