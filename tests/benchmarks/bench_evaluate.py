"""100,000 predictions of two arms, 2,000 draws over patients: seconds and memory.

Usage: bench_evaluate.py. The baseline is scikit-learn's AUC on one draw, times the draws and the
arms.
"""

from __future__ import annotations

import resource
import time

import medtransfer as mt
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

IMAGES, DRAWS = 100_000, 2_000


def main() -> None:
    for views in (1, 8):
        rng = np.random.default_rng(0)
        count = IMAGES // views
        target = (rng.random(count) < 0.3).astype(int).repeat(views)
        common = rng.normal(size=count).repeat(views)
        about = pd.DataFrame(
            {
                "patient": np.arange(count).repeat(views),
                "image": np.arange(IMAGES),
                "target": target,
            }
        )
        logits = {
            arm: strength * (2 * target - 1) + common + rng.normal(size=IMAGES)
            for arm, strength in (("a", 1.5), ("b", 1.2))
        }
        table = pd.concat([about.assign(arm=arm, logit=logit) for arm, logit in logits.items()])
        begun = time.perf_counter()
        mt.evaluate(table, bootstrap=DRAWS)
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        roc_auc_score(target, logits["a"], sample_weight=rng.integers(1, 3, IMAGES))
        plain = (time.perf_counter() - begun) * DRAWS * 2
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{IMAGES:,} images of {count:,} patients, 2 arms, {DRAWS:,} draws: {seconds:.0f} s "
            f"for all of it, {plain / seconds:.1f} "
            f"times as fast as scikit-learn's AUC alone in every draw; {peak:.2f} GiB at the most"
        )


if __name__ == "__main__":
    main()
