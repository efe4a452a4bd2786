"""A step of training where the network lies on a GPU, on tensors without contents: whether what
meets lies on the same device.
"""

from __future__ import annotations

from dataclasses import replace

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.data.grid.cache import write_entry
from medtransfer.data.grid.source import ImageSource, NetworkInput
from medtransfer.models.plan.rules import PlainCounts
from medtransfer.training.device import Engine
from medtransfer.training.predicting import Model, Network
from medtransfer.training.trainer import Trainer
from torch._subclasses.fake_tensor import FakeTensorMode


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


GPU = torch.device("cuda", 0)


@pytest.fixture
def pretended():
    """Tensors of any device, which know their shape and device alone; of modules, parameters that
    may become such.
    """
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.filterwarnings(
    "ignore:.*CUDA is not available:UserWarning", "ignore:Accessing the data pointer:UserWarning"
)
@pytest.mark.parametrize(
    ("name", "shape", "pooling"),
    [
        ("resnet18", (1, 64, 64), "mean"),
        ("resnet18", (1, 64, 64, 5), "attention"),
        ("monai_resnet10", (1, 64, 64, 8), "mean"),
    ],
)
def test_a_step_mixes_no_devices(tmp_path, pretended, name, shape, pooling):
    paths = [tmp_path / f"{place}.npy" for place in range(4)]
    for path in paths:
        write_entry(path, np.random.default_rng(0).random(shape, np.float32))
    net, task = mt.load_backbone(name, seed=0, size=64), mt.Classification(("y",), pooling=pooling)
    plan = replace(
        mt.plan_freeze(PlainCounts({"0": 200, "1": 200}, "far"), net, transfer=True),
        l2_sp=0.01,
        dropout=0.1,
    )
    net.freeze(2, plan.norm_policy, plan.tuned)
    head, engine = task.make_head(net), Engine(GPU, "bf16")
    with pretended:
        targets = np.array([[0.0], [1.0]] * 2, np.float32)
        recipe = NetworkInput((0.5,) * 3, (0.25,) * 3, net.ndim)
        batch = ImageSource(paths, targets, recipe, device=GPU).load([0, 1, 2, 3], view=0)
        assert batch["features"]["image"].device == GPU
        engine.place(net)
        engine.place(head)
        trainer = Trainer(Model(net, head, task, engine), plan, 0.05, [100])
        trainer.accelerator.backward = lambda _: None  # asks for a GPU
        assert trainer._backward(batch).device == GPU
        for parameter in trainer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        trainer.anchor.pull(0.1)
        trainer.accelerator.clip_grad_norm_(trainer.parameters, 5.0)
        trainer.accelerated.step()
        trainer.averages.update(1)
        plain = ImageSource(paths, targets, recipe, device=GPU).load([0, 1])
        found = task.predict(Network(net, head, engine).eval()(plain["features"], plain["present"]))
        assert (found.device, found.shape) == (GPU, (2, 1))


def test_such_tensors_do_tell_devices_apart(pretended):
    with pretended, pytest.raises(RuntimeError, match="same device"):
        torch.empty(2, device=GPU) + torch.empty(2)


def test_one_process_is_not_distributed():
    engine = Engine(torch.device("cpu"), "fp32")
    layer = torch.nn.Linear(1, 1)
    assert engine.distribute(layer) is layer
    assert engine.any(True)
    assert not engine.any(False)
    assert engine.first
