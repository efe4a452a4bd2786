"""Chains of as many architectures as the machine has patience for: exact, one stage, or wrong; and
what they cost.

python tests/benchmarks/bench_catalog.py                     three of every family of timm, and
MONAI's python tests/benchmarks/bench_catalog.py '*' --write         all below --most million
parameters, into measured.csv
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import sys
import time
import warnings

import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.catalog.catalog import load_backbone
from medtransfer.models.catalog.measured import Cost, measure_backbone, read_table, write_table
from medtransfer.models.chain.backbone import Backbone
from medtransfer.models.weights.inflation import NAMES
from timm.models import is_model, list_modules
from timm.models._registry import _model_to_module

_LEAST_EXACT = 0.6


def parameters_of(name: str) -> float:
    """Millions, without allocating any."""
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0)
    except Exception:  # some build tables of numbers while they are made
        return float("inf")
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def choose(pattern: str | None, most: float) -> list[str]:
    """By pattern, or three of every family: the smallest, and two more."""
    if pattern is not None:
        names = fnmatch.filter([*NAMES, *timm.list_models()], pattern)
        return [name for name in names if not is_model(name) or parameters_of(name) <= most]
    families = collections.defaultdict(list)
    for name in timm.list_models():
        if not any(
            word in name
            for word in ("huge", "giant", "gigantic", "enormous", "so400", "7b", "xxlarge")
        ):
            families[_model_to_module[name]].append(name)
    assert len(families) > len(list_modules()) / 2
    chosen = list(NAMES)
    for names in families.values():
        sized = sorted((parameters_of(name), name) for name in names)
        sized = [pair for pair in sized if pair[0] <= most]
        chosen += [name for _, name in sized[:: max(1, len(sized) // 3)][:3]]
    return chosen


def wrong(backbone: Backbone) -> str:
    """What differs from the network on another image, in eval and in training; "" where nothing
    does.
    """
    side = backbone.recipe.size
    space = (side, side) if backbone.ndim == 2 else (24, side, side)
    image = torch.randn(2, 3, *space, generator=torch.Generator().manual_seed(7))
    trunk = [name for name in backbone.names if name != "neck"][-1]
    for mode in (False, True):
        backbone.train(mode)
        found = []
        for way in ("chain", "network"):
            state = {key: value.clone() for key, value in backbone.state_dict().items()}
            torch.manual_seed(3)
            with torch.no_grad():
                if way == "chain":
                    found.append(backbone({"image": image}, [trunk])[trunk])
                else:
                    features = backbone.network.forward_features(image)
                    pooled = not isinstance(features, torch.Tensor)
                    found.append(
                        backbone.network.forward_head(features, pre_logits=True)
                        if pooled
                        else features
                    )
            backbone.load_state_dict(state)
        if not torch.equal(*found):
            return (
                f"differs by {(found[0] - found[1]).abs().max():.2g} in "
                f"{'training' if mode else 'eval'}"
            )
    owned = sum(
        parameter.numel()
        for index in range(len(backbone.stages))
        for parameter in backbone.stage_parameters(index)
    )
    return (
        ""
        if owned == sum(parameter.numel() for parameter in backbone.parameters())
        else "a parameter belongs to no stage, or to two"
    )


def main() -> int:
    """Exits with 1 where a chain is wrong, or too few are exact."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pattern", nargs="?")
    parser.add_argument("--most", type=float, default=40.0, help="million parameters")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    costs: dict[str, Cost] = dict(read_table())
    counts: collections.Counter[str] = collections.Counter()
    names = choose(given.pattern, given.most)
    faults = []
    for name in names:
        if time.monotonic() - begun > 60 * given.minutes:
            break
        if given.write and name in costs:
            continue
        try:
            backbone = load_backbone(name)
            fault = wrong(backbone)
        except (WeightsError, RuntimeError) as error:
            counts["refused"] += 1
            print(f"refused  {name}: {str(error)[:150]}", flush=True)
            continue
        counts["wrong" if fault else "exact" if backbone.exact else "one stage"] += 1
        if fault:
            faults.append(name)
            print(f"WRONG    {name}: {fault}", flush=True)
        elif not backbone.exact:
            print(f"one      {name}", flush=True)
        del backbone
        if given.write:
            costs[name] = measure_backbone(name)
            write_table(costs)
    tried = sum(counts.values())
    print(
        f"{tried} architectures of {len(names)} tried: {dict(counts)}; exact "
        f"{counts['exact'] / max(1, tried):.0%}"
    )
    return int(bool(faults) or counts["exact"] < _LEAST_EXACT * tried)


if __name__ == "__main__":
    sys.exit(main())
