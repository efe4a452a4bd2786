"""The search for the depth: what it costs against one full fine-tuning, and what it finds where the
answer is known.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import medtransfer as mt
import numpy as np
from medtransfer.data.grid.fixed import Fixed
from medtransfer.models.chain.costs import measure_stages
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.study.views import Images
from medtransfer.training.batches import Loader
from medtransfer.training.depth import Setting, search_depth
from medtransfer.training.loop import Budget, Parts, fit, settle
from medtransfer.training.predicting import Model
from medtransfer.training.timing import make_engine

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted import write_planted

PATIENTS, PIXELS, STEPS = 120, 96, 250


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["MEDTRANSFER_CACHE"] = f"{name}/cache"
        engine = make_engine("cpu", "fp32")
        for kind in ("texture", "shape"):
            manifest = write_planted(Path(name) / kind, kind, PATIENTS)
            cohort = mt.Cohort.from_csv(manifest, manifest.parent, ["malignant"])
            entries = [
                Path(entry) for entry in mt.inspect_images(cohort, fixed=Fixed(PIXELS))["entry"]
            ]
            net = mt.load_backbone("tf_efficientnet_lite0", "imagenet")
            counts = PlainCounts({"0": PATIENTS // 2, "1": PATIENTS // 2}, "far")
            plan = mt.plan_freeze(counts, net, views=0)
            store = Path(name) / f"store-{kind}"
            rows = np.arange(PATIENTS)
            images = Images(
                cohort,
                entries,
                mt.Classification(cohort.labels),
                mt.ImageSettings(size=PIXELS),
                train=mt.TrainSettings(batch_size=16),
                store=store,
            )
            task = images.task.fitted(images.targets).planned(plan)
            budget = Budget(STEPS, None, 0.05)
            source = images.source(net, engine)
            batches = images.batches(source, engine)

            def keep(network, cut, taps, pooled=False, images=images):
                return images.keep(network, engine, cut, taps, 0, pooled)

            choice = search_depth(
                net,
                Setting(task, engine, keep, rows, images.groups, batches),
                plan,
                budget,
                measure_stages(net, PIXELS),
            )
            full = mt.plan_freeze(counts, net, frozen_stages=0)
            plain, head = Loader(source, rows, batches[1]), task.make_head(net)
            begun = time.perf_counter()
            settle(net, head, full, engine, plain)
            fit(
                Model(net, head, task, engine),
                Parts(Loader(source, rows, batches[0], 0), plain, plain, plain),
                full,
                budget,
                images.groups,
            )
            seconds = time.perf_counter() - begun
            ratio = choice.seconds / seconds
            print(
                f"{kind}: {choice.seconds:.0f} s, {ratio:.2f} times one full fine-tuning of "
                f"{STEPS} steps, {seconds:.0f} s"
            )
            for probe in choice.probes:
                print(
                    f"  {probe.stage:<12} AUC {probe.auc:.3f}, log-loss {probe.log_loss:.3f} (SE "
                    f"{probe.error:.3f})"
                )
            for number, trial in enumerate(choice.trials):
                mark = "*" if number == choice.chosen else " "
                print(
                    f"  {mark} {trial.frozen_stages} frozen, {trial.dropped_stages} cut off "
                    f"({trial.why}): log-loss {trial.log_loss:.3f}, "
                    f"gain {trial.gain:+.3f} (SE {trial.error:.3f})"
                )
            print(f"  {choice.reason}", flush=True)


if __name__ == "__main__":
    main()
