"""What an engine decides: whether torch compiles what trains, what is timed on how many images, and
what several processes are told.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import ConfigError
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training import device as engines
from medtransfer.training.device import Engine, make_engine
from medtransfer.training.predicting import Network
from medtransfer.training.settings import TrainSettings
from torch._dynamo.utils import counters

from networks import SMALL


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
    fold = mt.split_cohort(cohort, 2).fold(0)
    return mt.fit(
        cohort,
        fold,
        mt.Classification(cohort.labels),
        net,
        replace(plan, **choices),
        folder,
        size=32,
        train=section,
    )


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


def chosen(seconds, monkeypatch, steps, wanted=False):
    """Of a machine that takes so long."""
    monkeypatch.setattr(engines, "_time_steps", lambda *_: seconds)
    net, engine = mt.load_backbone(SMALL), Engine(torch.device("cpu"), "bf16", "contiguous")
    return engines._compiled(engine, net, torch.rand(2, 3, 32, 32), None, steps, wanted)


def test_compiling_is_chosen_where_it_saves_more_than_it_takes(monkeypatch):
    seconds = {"bf16 contiguous": 0.1, "bf16 contiguous compiled": 0.06, "compiling": 30.0}
    assert not chosen(seconds, monkeypatch, 700).compiled  # saves 28 s
    found = chosen(seconds, monkeypatch, 800)  # 32 s
    assert (found.compiled, dict(found.seconds)) == (True, seconds)
    assert chosen(seconds, monkeypatch, 1, wanted=True).compiled
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
    assert not engines._compiled(
        make_engine("cpu", "fp32"), net, image, None, 10**6, wanted=False
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

    monkeypatch.setattr(engines, "_time_steps", limited)
    net = mt.load_backbone(SMALL)
    assert make_engine("cpu", "fp32", net, torch.rand(13, 3, 32, 32)).seconds == {
        "fp32 contiguous": 1.0
    }
    assert asked == [13, 6, 3]
    monkeypatch.setattr(
        engines,
        "_time_steps",
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")),
    )
    with pytest.raises(torch.OutOfMemoryError):
        make_engine("cpu", "fp32", net, torch.rand(4, 3, 32, 32))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ConfigError, match="2 processes are to train on this machine, which has 1 GPU"
    ):
        engines.join_processes(on_cuda=True)


def test_several_processes_are_told_of_what_no_head_reads(monkeypatch):
    """A detector with fine levels reads no deep stage; without a word, the others wait for
    gradients that never come.
    """

    class Parallel:
        def __init__(
            self,
            network,  # noqa: ARG002
            *,
            device_ids=None,  # noqa: ARG002
            broadcast_buffers=True,  # noqa: ARG002
            find_unused_parameters=False,
        ):
            self.unread = find_unused_parameters

    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Parallel)
    net, engine = mt.load_backbone("resnet18"), Engine(torch.device("cpu"), "fp32", share=(0, 2))
    boxes = np.full((20, 1, 4), [8.0, 8.0, 30.0, 30.0], np.float32)
    for finest, unread in ((4, True), (8, False)):
        head = mt.Detection(("lesion",), space=(64, 64), finest=finest).fitted(boxes).make_head(net)
        network = Network(net, head, engine)
        assert network.unread is unread
        assert engine.distribute(network, network.unread).unread is unread
