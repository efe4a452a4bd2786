"""One training by two processes, and a study on a cluster that loses a node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import medtransfer as mt
import numpy as np
import pandas as pd
import pytest
import yaml
from medtransfer.cli import app
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")
LITE = "tf_efficientnet_lite0"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medtransfer")


def write_config(folder: Path, **changes) -> Path:
    mt.write_phantom(folder / "cohort", 30, seed=2)
    values = {
        "cohort": {"manifest": str(folder / "cohort" / "manifest.csv"), "root": str(folder / "cohort"), "labels": ["malignant"]},
        "image": {"size": 32},
        "protocol": {"folds": 2, "seeds": [0]},
        "train": {"epochs": 3, "batch_size": 8, "precision": "fp32"},
        "evaluate": {"bootstrap": 100},
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def compare_here(config: Path, output: Path) -> pd.DataFrame:
    done = CliRunner().invoke(app, ["compare", str(config), "--output", str(output)])
    assert done.exit_code == 0, done.output
    return pd.read_csv(output / "predictions.csv")


def compare_by_two(config: Path, output: Path) -> pd.DataFrame:
    command = [sys.executable, *TORCHRUN, "compare", str(config), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(output / "predictions.csv")


def test_two_processes_train_what_one_trains(tmp_path):
    """Batch statistics are each process's own, so the networks here have none that move."""
    arms = {
        "kept": {
            "backbone": LITE,
            "weights": "imagenet",
            "plan": {"frozen_stages": 12, "norm_policy": "eval", "views": 2, "unfreeze": "gradual"},
        },
        "probe": {"backbone": LITE, "weights": "imagenet", "plan": {"strategy": "linear_probe"}},
        "transformer": {"backbone": "vit_tiny_patch16_224", "weights": "none"},
    }
    config = write_config(tmp_path, arms=arms)
    one, two = compare_here(config, tmp_path / "one"), compare_by_two(config, tmp_path / "two")
    keys = ["arm", "seed", "fold", "part", "image", "patient", "label", "target"]
    assert two[keys].equals(one[keys])  # every image once, in the same order
    assert np.abs(two["probability"] - one["probability"]).max() < 1e-5
    runs = [json.loads((tmp_path / name / "runs" / "kept" / "fold-0" / "seed-0" / "run.json").read_text()) for name in ("one", "two")]
    assert [run["engine"]["processes"] for run in runs] == [1, 2]
    assert runs[0]["epochs"] == runs[1]["epochs"] > 0


def test_jobs_within_a_training_of_several_processes_are_refused(tmp_path, monkeypatch):
    from medtransfer.errors import ConfigError
    from medtransfer.study import _refuse_settings

    monkeypatch.setenv("WORLD_SIZE", "2")
    config = mt.config.load_config(write_config(tmp_path, arms={"a": {"backbone": LITE}}))
    with pytest.raises(ConfigError, match="run them without --jobs"):
        _refuse_settings(config, 2, (0, 1), False, tmp_path / "out")


CLUSTER = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from medtransfer.config import load_config
from medtransfer.study import run_study

config, output = sys.argv[1], Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]


def lose_a_node():
    while not list(output.glob("runs/*/*/*/run.json")):
        time.sleep(0.2)
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("one node is lost", flush=True)


threading.Thread(target=lose_a_node, daemon=True).start()
import os
os.environ["RAY_ADDRESS"] = cluster.address
run_study(load_config(config, ["engine=ray"]), output, jobs=2)
ray.shutdown()
cluster.shutdown()
"""


def test_a_cluster_that_loses_a_node_finishes_the_study(tmp_path):
    pytest.importorskip("ray")
    arms = {"imagenet": {"backbone": LITE, "weights": "imagenet", "plan": {"strategy": "lp_ft"}}, "scratch": {"backbone": LITE}}
    config = write_config(tmp_path, arms=arms)
    expected = compare_here(config, tmp_path / "here")
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(config), str(tmp_path / "there")],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "one node is lost" in done.stdout
    assert pd.read_csv(tmp_path / "there" / "predictions.csv").equals(expected)
