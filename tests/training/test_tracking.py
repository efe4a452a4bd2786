"""Curves of a training go where they are asked for."""

from __future__ import annotations

import pytest
from medtransfer.errors import ConfigError
from medtransfer.training.tracking import refuse_missing, tracking


@pytest.mark.parametrize("track", ["tensorboard", "mlflow"])
def test_curves_go_where_they_are_asked_for(tmp_path, monkeypatch, track):
    pytest.importorskip(track)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    with tracking(track, "arm, fold 0, seed 0", tmp_path) as log:
        log({"tune_loss": 0.7}, 0)
        log({"tune_loss": 0.4}, 1)
    if track == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        assert [(e.step, round(e.value, 4)) for e in events.Scalars("tune_loss")] == [
            (0, 0.7),
            (1, 0.4),
        ]
    else:
        import mlflow

        runs = mlflow.search_runs(experiment_names=["medtransfer"])
        assert runs["metrics.tune_loss"].tolist() == [0.4]
        assert runs["tags.mlflow.runName"].tolist() == ["arm, fold 0, seed 0"]


def test_a_tracker_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr("medtransfer.training.tracking.find_spec", lambda name: None)
    refuse_missing(None)
    with pytest.raises(
        ConfigError, match=r'mlflow is not installed: pip install "medtransfer\[track\]"'
    ):
        refuse_missing("mlflow")
