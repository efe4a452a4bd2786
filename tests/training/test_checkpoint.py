"""Checkpoints and weights on disk: verified when they are read, whatever happened to them."""

from __future__ import annotations

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.heads.linear import LinearHead
from medtransfer.training import checkpoint
from medtransfer.training.checkpoint import Checkpoints, load_weights, save_weights

from damage import damage
from networks import as_if_pretrained

COPIES = 600


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def network():
    """A network of a few thousand weights, and a head."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    return body, torch.nn.Linear(8, 1)


def state_of(network):
    return {
        "modules": [module.state_dict() for module in network],
        "optimizer": {"state": {0: {"exp_avg": torch.rand(50)}}, "param_groups": [{"lr": 0.1}]},
        "progress": {"history": [{"epoch": 0.0, "tune_loss": 0.7}], "step": 3},
    }


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_a_state_comes_back_as_it_was_with_the_random_numbers(tmp_path, network):
    state = state_of(network)
    torch.manual_seed(7)
    assert Checkpoints(tmp_path / "state", "key").save(state) == ""
    expected = torch.rand(3)
    torch.manual_seed(8)
    messages = []
    assert equal(Checkpoints(tmp_path / "state", "key").load(messages.append), state)
    assert torch.equal(torch.rand(3), expected)
    assert Checkpoints(tmp_path / "state", "another key").load(messages.append) is None
    assert Checkpoints(tmp_path / "none", "key").load(messages.append) is None
    assert not messages


def test_a_damaged_state_is_named_once_and_never_taken(tmp_path, network, rng):
    path = tmp_path / "unfinished.pt"
    kept = Checkpoints(path, "key")
    kept.save(state_of(network))
    whole, messages = path.read_bytes(), []
    for _ in range(COPIES):
        path.write_bytes(damage(whole, rng))
        messages.clear()
        assert kept.load(messages.append) is None
        assert len(messages) == 1
        assert messages[0].startswith(f"{path}: the state of the unfinished training is damaged")
        assert kept.load(messages.append) is None
        assert len(messages) == 1
    path.write_bytes(whole)
    assert kept.load(messages.append) is not None


def test_a_process_that_trains_along_leaves_the_file_to_the_one_that_writes(tmp_path):
    path = tmp_path / "unfinished.pt"
    path.write_bytes(b"half a file")
    assert Checkpoints(path, "key", writes=False).load() is None
    assert path.exists()


def test_a_state_that_cannot_be_read_begins_anew(tmp_path):
    (tmp_path / "unfinished.pt").mkdir()
    messages = []
    assert Checkpoints(tmp_path / "unfinished.pt", "key").load(messages.append) is None
    assert "cannot be read (Is a directory); this training begins again" in messages[0]


def test_damaged_weights_are_an_error_that_names_them(tmp_path, network, rng):
    path = tmp_path / "weights.safetensors"
    digest = save_weights(path, *network, {"backbone": "small"})
    whole, before = path.read_bytes(), [module.state_dict() for module in network]
    for _ in range(COPIES):
        path.write_bytes(damage(whole, rng))
        with pytest.raises(
            WeightsError, match=r"weights\.safetensors: damaged.* Remove the folder"
        ):
            load_weights(path, *network, digest)
    assert equal([module.state_dict() for module in network], before)
    path.write_bytes(whole)
    load_weights(path, *network, digest)


def refusal(path, network):
    """Why weights without a digest are refused; "" where they are read."""
    try:
        load_weights(path, *network)
    except WeightsError as error:
        return str(error)
    return ""


def test_without_a_digest_no_damage_is_a_traceback(tmp_path, network, rng):
    path = tmp_path / "weights.safetensors"
    save_weights(path, *network, {})
    whole, refusals = path.read_bytes(), []
    for _ in range(COPIES):
        path.write_bytes(damage(whole, rng))
        refusals.append(refusal(path, network))
    refusals = [reason for reason in refusals if reason]
    assert all(reason.startswith(f"{path}: ") for reason in refusals)
    assert len(refusals) > COPIES / 3  # cut short, or empty; flipped numbers only a digest tells


def test_missing_weights_are_an_error_that_names_them(tmp_path, network):
    with pytest.raises(WeightsError, match=r"none\.safetensors: cannot be read \(No such file"):
        load_weights(tmp_path / "none.safetensors", *network)


def test_weights_of_another_network_do_not_fit(tmp_path, network):
    save_weights(tmp_path / "w", *network, {})
    with pytest.raises(WeightsError, match="does not fit this backbone and head"):
        load_weights(tmp_path / "w", as_if_pretrained(), network[1])


def test_checkpoints_wait_longer_where_they_take_longer(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    kept = Checkpoints(tmp_path / "state.pt", "key", every=30.0)
    now[0] = 29.0
    assert not kept.due
    now[0] = 30.0
    assert kept.due

    def slow(*_):
        now[0] += 3.0

    monkeypatch.setattr(checkpoint, "write_aside", slow)
    kept.save({"a": 1})
    now[0] = 33.0 + 59.0
    assert not kept.due
    now[0] = 33.0 + 60.0
    assert kept.due
    silent = Checkpoints(tmp_path / "none.pt", "key", writes=False)
    assert silent.save({"a": 1}) == ""
    assert not (tmp_path / "none.pt").exists()


def test_weights_make_a_round_trip(tmp_path):
    net = mt.load_backbone("resnet18", seed=1)
    head = LinearHead(net.stages[-1], 1, "attention")
    torch.nn.init.normal_(head.linear.weight)
    save_weights(tmp_path / "w.safetensors", net, head, {"backbone": "resnet18"})
    other, other_head = (
        mt.load_backbone("resnet18", seed=2),
        LinearHead(net.stages[-1], 1, "attention"),
    )
    load_weights(tmp_path / "w.safetensors", other, other_head)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
    assert torch.equal(head.linear.weight, other_head.linear.weight)
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(tmp_path / "w.safetensors", mt.load_backbone("resnet34"), other_head)
