"""Precision, order of memory and compiling are chosen by timing; what was timed is kept."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import ConfigError
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import timing
from medtransfer.training.device import Engine
from medtransfer.training.settings import TrainSettings
from medtransfer.training.timing import make_engine
from torch._dynamo.utils import counters

from damage import damage
from networks import SMALL, fit_first_fold


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_what_the_machine_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        make_engine("cuda")
    with pytest.raises(ConfigError, match="fp16, which needs a CUDA device"):
        make_engine("cpu", "fp16")


def test_precision_is_measured_and_leaves_the_network_alone():
    net = mt.load_backbone("resnet18")
    before = copy.deepcopy(net.state_dict())
    engine = make_engine("cpu", "auto", net, torch.randn(4, 3, 64, 64))
    candidates = {
        f"{precision} {layout}"
        for precision in ("fp32", "bf16")
        for layout in ("contiguous", "channels_last")
    }
    assert set(engine.seconds) == candidates
    best = min(engine.seconds, key=engine.seconds.__getitem__)
    chosen = f"{engine.precision} {engine.layout}"
    assert chosen == best or (
        engine.precision == "fp32" and engine.seconds[chosen] <= 1.05 * engine.seconds[best]
    )
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert make_engine("cpu").precision == "fp32"


def test_what_was_measured_is_known_the_next_time(tmp_path, monkeypatch):
    net, image, memory = (
        mt.load_backbone("resnet18"),
        torch.zeros(2, 3, 32, 32),
        tmp_path / "engines.json",
    )
    first = make_engine("cpu", "auto", net, image, memory=memory)
    monkeypatch.setattr(timing, "_time_steps", lambda *_: pytest.fail("measured again"))
    assert make_engine("cpu", "auto", net, image, memory=memory) == first
    whole, rng = memory.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        memory.write_bytes(damage(whole, rng))
        with pytest.raises(pytest.fail.Exception):
            make_engine("cpu", "auto", net, image, memory=memory)
    by_hand = make_engine("cpu", "bf16", net, image, "contiguous", memory)
    assert (by_hand.precision, by_hand.layout, by_hand.seconds) == ("bf16", "contiguous", {})


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        (
            {
                "fp32 contiguous": 1.0,
                "fp32 channels_last": 0.9,
                "bf16 contiguous": 0.5,
                "bf16 channels_last": 0.6,
            },
            ("bf16", "contiguous"),
        ),
        (
            {
                "fp32 contiguous": 1.0,
                "fp32 channels_last": 0.9,
                "bf16 contiguous": 0.88,
                "bf16 channels_last": 2.0,
            },
            ("fp32", "channels_last"),
        ),
        ({"fp32 contiguous": 1.0, "bf16 contiguous": 3.0}, ("fp32", "contiguous")),
    ],
)
def test_the_fastest_is_chosen_and_of_near_ties_float32(seconds, chosen):
    assert timing._fastest([tuple(name.split()) for name in seconds], seconds) == chosen


@pytest.fixture
def traced(monkeypatch):
    """Everything but the compiler of C, which takes a minute: graphs are captured and
    differentiated as for it.
    """
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    yield counters["stats"]
    torch._dynamo.reset()


def train(manifest, folder, compiled, **choices):
    path = manifest(patients=16, views=2)
    cohort = mt.Cohort.from_csv(path, path.parent, ["malignant"])
    net = mt.load_backbone(SMALL, seed=0)
    plan = mt.plan_freeze(PlainCounts({"0": 100, "1": 100}, "far"), net)
    section = TrainSettings(epochs=6, batch_size=4, precision="fp32", compile=compiled)
    return fit_first_fold(cohort, net, replace(plan, **choices), folder, section)


@pytest.mark.slow
def test_what_is_compiled_learns_the_same_and_is_compiled_once(manifest, tmp_path, traced):
    plain = train(manifest, tmp_path / "plain", False)
    assert traced["unique_graphs"] == 0
    compiled = train(manifest, tmp_path / "compiled", True)
    assert (compiled.summary["engine"]["compiled"], plain.summary["engine"]["compiled"]) == (
        True,
        False,
    )
    assert compiled.summary["epochs"] == plain.summary["epochs"] == 6
    assert np.allclose(compiled.predictions["logit"], plain.predictions["logit"], atol=1e-4)
    assert traced["unique_graphs"] == 1  # nothing broke it into pieces
    train(manifest, tmp_path / "again", True)
    assert traced["unique_graphs"] == 1


@pytest.mark.slow
def test_every_depth_of_gradual_unfreezing_is_one_more(manifest, tmp_path, traced):
    gradual = {"unfreeze": "gradual", "strategy": "lp_ft"}
    plain, compiled = (
        train(manifest, tmp_path / str(flag), flag, **gradual) for flag in (False, True)
    )
    assert np.allclose(compiled.predictions["logit"], plain.predictions["logit"], atol=1e-4)
    assert 1 < traced["unique_graphs"] <= len(mt.load_backbone(SMALL).stages)


def chosen(seconds, monkeypatch, steps, required=False):
    """Of a machine that takes so long."""
    monkeypatch.setattr(timing, "_time_steps", lambda *_: seconds)
    net, engine = mt.load_backbone(SMALL), Engine(torch.device("cpu"), "bf16", "contiguous")
    return timing._compiled(engine, net, torch.rand(2, 3, 32, 32), None, steps, required)


def test_compiling_is_chosen_where_it_saves_more_than_it_takes(monkeypatch):
    seconds = {"bf16 contiguous": 0.1, "bf16 contiguous compiled": 0.06, "compiling": 30.0}
    assert not chosen(seconds, monkeypatch, 700).compiled  # saves 28 s
    found = chosen(seconds, monkeypatch, 800)  # 32 s
    assert (found.compiled, dict(found.seconds)) == (True, seconds)
    assert chosen(seconds, monkeypatch, 1, required=True).compiled
    assert not chosen({**seconds, "bf16 contiguous compiled": 0.11}, monkeypatch, 10**6).compiled
    # Where even half of the time would not pay, nobody waits for the compiler.
    assert "compiling" not in chosen({"bf16 contiguous": 0.1}, monkeypatch, 200).seconds


def test_where_it_cannot_compile_that_is_told_only_if_it_was_asked_for(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler of C\nand a long trace")

    net, image = mt.load_backbone(SMALL), torch.rand(2, 3, 32, 32)
    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(
        ConfigError,
        match=rf"train.compile is true, but {SMALL} cannot be compiled here \(no compiler of C\)",
    ):
        make_engine("cpu", "fp32", net, image, "contiguous", compiled=True)
    assert not timing._compiled(
        make_engine("cpu", "fp32"), net, image, None, 10**6, required=False
    ).compiled
    assert not make_engine(
        "cpu", "fp32", net, image, "contiguous", steps=10**6
    ).compiled  # of itself on CUDA alone


def test_what_does_not_fit_is_timed_on_fewer_images(monkeypatch):
    asked = []

    def limited(_, image, *__):
        asked.append(len(image))
        if len(image) > 3:
            raise torch.OutOfMemoryError("no memory")
        return {"fp32 contiguous": 1.0}

    monkeypatch.setattr(timing, "_time_steps", limited)
    net = mt.load_backbone(SMALL)
    assert make_engine("cpu", "fp32", net, torch.rand(13, 3, 32, 32)).seconds == {
        "fp32 contiguous": 1.0
    }
    assert asked == [13, 6, 3]
    monkeypatch.setattr(
        timing,
        "_time_steps",
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")),
    )
    with pytest.raises(torch.OutOfMemoryError):
        make_engine("cpu", "fp32", net, torch.rand(4, 3, 32, 32))
