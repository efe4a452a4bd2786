"""The part of a freeze plan that says which activations of the frozen stages are kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medtransfer.errors import ConfigError
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.heads.pyramid import choose_levels
from medtransfer.models.plan.plan import FreezePlan

# Views of each image that are replayed in place of new ones in every epoch: no loss was seen with
# eight (BUSI, 25 and 100 patients a class).
_FEWEST_VIEWS, _VIEWS = 4, 8


@dataclass(frozen=True)
class CacheBudget:
    """What decides whether activations of the frozen stages are kept.

    Attributes:
        gb: of disk that they may take, in 2^30 bytes; 0 keeps none.
        size: side of the images in pixels; None: that of the recipe.
        slices: of each volume; 1 for images.
        images: of the whole cohort, as folds share what is kept; None: those the plan is for.
        seeds: of the study, each of which has its own random views.
    """

    gb: float = 4.0
    size: int | None = None
    slices: int = 1
    images: int | None = None
    seeds: int = 1


def plan_cache(
    plan: FreezePlan, backbone: Backbone, images: int, budget: CacheBudget, choose: bool = False
) -> FreezePlan:
    """The plan with its cut and what an image takes there, in each view.

    Of a linear probe the pooled activations of the images as they are are kept, which take next to
    nothing.

    Args:
        plan: whose `views` must fit the budget, with the images as they are beside them.
        backbone: as the plan was made for.
        images: whose activations are kept, where the budget does not say.
        budget: of the cache.
        choose: set `views` to as many as the budget holds, up to eight; 0 where it holds fewer than
            four.

    Raises:
        ConfigError: views set by hand that have no frozen prefix to be cached, or do not fit the
            budget.
    """
    probe = plan.strategy == "linear_probe"
    prefix = plan.frozen_stages if plan.tuned != "first" and plan.strategy != "scratch" else 0
    if (
        plan.finest
        and prefix > backbone.names.index(choose_levels(backbone, plan.finest)[0].name) + 1
    ):
        # of activations before the cut only the mean over space is kept, and the pyramid reads them
        # whole
        prefix = 0
    if plan.views and not choose and (probe or not prefix):
        raise ConfigError(
            "plan: views is set, but there is no frozen prefix to cache: set strategy lp_ft, "
            "frozen stages, and tuned last or norms; of "
            "a detector, no more frozen stages than lie below its finest level."
        )
    if not prefix:
        return replace(plan, cache_cut="", bytes_per_image=0, views=0)
    slices = budget.slices if backbone.ndim == 2 else 1
    pooled = [4 * stage.channels for stage in backbone.stages[:prefix]]
    before = sum(pooled[:-1]) if plan.read == "all" else 0
    if probe:
        return replace(
            plan,
            cache_cut=backbone.names[prefix - 1],
            bytes_per_image=slices * (pooled[-1] + before),
            views=0,
        )
    costs = measure_stages(backbone, budget.size, budget.slices)
    view_bytes = slices * (costs[prefix - 1].bytes + before)
    images = budget.images or images
    fit = max(0, int(budget.gb * 2**30 // max(1, view_bytes * images)) - 1) // budget.seeds
    if choose:
        plan = replace(plan, views=min(_VIEWS, fit) if fit >= _FEWEST_VIEWS else 0)
    if plan.views > fit:
        raise ConfigError(
            f"plan: views is {plan.views}; {images} images of {view_bytes / 2**20:.1f} MiB fit "
            f"{fit} times into {budget.gb:g} GiB "
            "(train.cache_gb), besides once as they "
            f"are{f', for each of {budget.seeds} seeds' if budget.seeds > 1 else ''}."
        )
    return replace(
        plan, cache_cut=costs[prefix - 1].name if plan.views else "", bytes_per_image=view_bytes
    )
