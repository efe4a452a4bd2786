"""A study that is killed at random moments, and begun again each time, against one that is left
alone. Usage: bench_kill.py [KILLS].
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import medtransfer as mt
import pandas as pd
import yaml

LITE = "tf_efficientnet_lite0"
SETTINGS = {
    "image": {"size": 64},
    "arms": {
        "imagenet": {
            "backbone": LITE,
            "weights": "imagenet",
            "plan": {"strategy": "lp_ft", "unfreeze": "gradual", "dropout": 0.2},
        },
        "scratch": {"backbone": LITE},
    },
    "protocol": {"folds": 3},
    "train": {"epochs": 60, "batch_size": 16, "precision": "fp32", "layout": "channels_last"},
    "evaluate": {"bootstrap": 100},
}


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # State is written every second here, so that most kills find one to take up, and hit the
        # writing of it.
        code = (
            "import medtransfer.training.checkpoint as c, medtransfer.cli.app as m; "
            "c.Checkpoints.__init__.__defaults__ = (1.0, True); m.main()"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEDTRANSFER_CACHE": f"{name}/cache"}
        mt.write_phantom(folder / "cohort", 60)
        cohort = {
            "manifest": str(folder / "cohort" / "manifest.csv"),
            "root": str(folder / "cohort"),
            "labels": ["malignant"],
        }
        (folder / "study.yaml").write_text(yaml.safe_dump({"cohort": cohort, **SETTINGS}))

        def command(output: str) -> list[str]:
            return [
                sys.executable,
                "-c",
                code,
                "compare",
                str(folder / "study.yaml"),
                "--output",
                str(folder / output),
                "--quiet",
            ]

        begun = time.perf_counter()
        subprocess.run(command("whole"), env=environment, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - begun
        rng, killed, resumed, begun = random.Random(0), 0, 0, time.perf_counter()
        while True:
            process = subprocess.Popen(
                command("killed"), env=environment, stdout=subprocess.DEVNULL
            )
            try:
                if killed >= kills:
                    process.wait()
                    break
                # From the first imports to the middle of a training.
                process.wait(rng.uniform(1.0, 2.0 + 2.5 * whole / kills))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                resumed += len(list((folder / "killed").rglob("unfinished.pt")))
        seconds = time.perf_counter() - begun
        tables = [
            pd.read_csv(folder / output / "predictions.csv") for output in ("whole", "killed")
        ]
        same = "identical" if tables[0].equals(tables[1]) else "DIFFERENT"
        print(
            f"{killed} kills, after {resumed} of which a training was taken up where it was: "
            f"predictions {same}; {seconds:.0f} s in all, "
            f"{whole:.0f} s uninterrupted"
        )


if __name__ == "__main__":
    main()
