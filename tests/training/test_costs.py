"""What a training takes."""

from __future__ import annotations

import torch
from medtransfer.training import costs


def test_energy_is_the_difference_of_the_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "_COUNTERS", tmp_path)
    meter = costs.EnergyMeter(torch.device("cpu"))
    assert meter.joules() is None
    for number, value in ((0, 5_000_000), (1, 9_000_000)):
        (tmp_path / f"intel-rapl:{number}").mkdir()
        (tmp_path / f"intel-rapl:{number}" / "energy_uj").write_text(str(value))
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of a package, counted with it
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("1")
    meter = costs.EnergyMeter(torch.device("cpu"))
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("7500000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("100")  # ran over
    assert meter.joules() == 2.5
