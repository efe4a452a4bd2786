"""One training by two processes, and a study on a cluster that loses a node."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from networks import SMALL
from studies import LITE, SETTINGS, changed, invoke, read_run, read_table, write_config

TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "medtransfer",
)


def test_two_processes_train_what_one_trains(studies, tmp_path):
    """Batch statistics are each process's own, so the networks here have none that move."""
    arms = {
        "kept": {
            "backbone": LITE,
            "weights": "imagenet",
            "plan": {"frozen_stages": 12, "norm_policy": "eval", "views": 2, "unfreeze": "gradual"},
        },
        "probe": {"backbone": LITE, "weights": "imagenet", "plan": {"strategy": "linear_probe"}},
        "transformer": {"backbone": "test_vit", "weights": "none"},
    }
    manifest = studies.cohort()
    table = pd.read_csv(manifest)
    table["split"] = [
        "test" if int(patient[1:]) % 3 == 0 else "train" for patient in table["patient"]
    ]  # one fold is enough
    table.to_csv(tmp_path / "manifest.csv", index=False)
    cohort = {
        "manifest": str(tmp_path / "manifest.csv"),
        "root": str(manifest.parent),
        "labels": ["malignant"],
    }
    config = write_config(
        tmp_path, manifest, cohort=cohort, arms=arms, **changed(SETTINGS, train={"epochs": 2})
    )
    here = tmp_path / "one"
    assert invoke("compare", config, "--output", here).exit_code == 0
    out = tmp_path / "two"
    command = [sys.executable, *TORCHRUN, "compare", str(config), "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    expected, table = (pd.read_csv(study / "predictions.csv") for study in (here, out))
    keys = ["arm", "seed", "fold", "part", "image", "patient", "label", "target"]
    assert table[keys].equals(expected[keys])  # every image once, in the same order
    assert np.abs(table["probability"] - expected["probability"]).max() < 1e-5
    runs = [read_run(study, "kept") for study in (here, out)]
    assert [run["engine"]["processes"] for run in runs] == [1, 2]
    assert runs[0]["epochs"] == runs[1]["epochs"] > 0


# Ray's workers give way to all other processes; beside busy ones they would not come to an end.
CLUSTER = """
import os, sys, threading, time
os.environ["RAY_worker_niceness"] = "0"
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from medtransfer.config.study_config import load_config
from medtransfer.study.study import run_study

config, output = sys.argv[1], Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]


def unfinished():
    return [path for path in output.glob("runs/*/*/*/metrics.jsonl") if not path.with_name("run.json").exists()]


def lose_a_node():
    while not (list(output.glob("runs/*/*/*/run.json")) and unfinished()):
        time.sleep(0.01)
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("one node is lost", flush=True)


threading.Thread(target=lose_a_node, daemon=True).start()
os.environ["RAY_ADDRESS"] = cluster.address
run_study(load_config(config, ["engine=ray"]), output, jobs=2)
ray.shutdown()
cluster.shutdown()
"""  # noqa: E501


def test_a_cluster_that_loses_a_node_finishes_the_study(studies, tmp_path):
    pytest.importorskip("ray")
    arms = {"small": {"backbone": SMALL}, "formulas": {"kind": "features"}}
    # Long enough that one of these is under way when the first of the others is finished.
    here = studies.finished(studies.cohort(), arms=arms, **changed(SETTINGS, train={"epochs": 30}))
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(here.config), str(tmp_path / "there")],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "one node is lost" in done.stdout
    assert read_table(tmp_path / "there").equals(read_table(here.out))
