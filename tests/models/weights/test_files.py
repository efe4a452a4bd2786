"""Networks in a file: prefixes, wrappers, and several of them."""

from __future__ import annotations

import argparse
import pickle
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.weights.sources import split_network

from weight_files import FC, A, B, assert_holds, behind, load, saved

pytestmark = pytest.mark.usefixtures("unproved")


@pytest.mark.parametrize(
    "prefix",
    [
        "module._orig_mod.model.backbone.",
        "_orig_mod.module.",
        "backbone.module._orig_mod.",
        "_model.encoder.net.network.model.module.",
        "net.net.net.net.net.net.",
        "encoder_q.",
        "teacher.backbone.",
        "student.",
        "feature_extractor.",
        "model.image_encoder.visual.",
    ],
)
def test_prefixes_come_off_in_any_order_and_depth(tmp_path, prefix):
    net = load(saved(behind(prefix, A), tmp_path / "w.pth"))
    assert_holds(net, A)
    assert net.weights.unused == FC


def test_layers_around_a_layer_come_off_inside_the_names(tmp_path):
    """torch.compile of a part of the network, DataParallel around its features."""
    around = {
        "layer1.": "layer1._orig_mod.",
        "layer2.0.": "layer2.0.module.",
        "layer3.": "layer3._fsdp_wrapped_module._orig_mod.",
    }
    tensors = dict(A)
    for plain, wrapped in around.items():
        tensors = {key.replace(plain, wrapped): value for key, value in tensors.items()}
    net = load(saved(behind("module.", tensors), tmp_path / "w.pth"))
    assert_holds(net, A)
    assert net.weights.unused == FC


def test_a_prefix_on_some_names_alone(tmp_path):
    mixed = {
        (f"module.{key}" if key.startswith("layer") else key): value for key, value in A.items()
    }
    assert_holds(load(saved(mixed, tmp_path / "w.pth")), A)


def test_two_tensors_of_one_name_are_a_fault(tmp_path):
    key = "conv1.0.weight"
    twice = {**behind("module.", A), key: B[key]}
    with pytest.raises(
        WeightsError,
        match=rf"{key}: is in the file twice, as module\.{key} and {key}, with different numbers",
    ):
        load(saved(twice, tmp_path / "w.pth"))
    # The same numbers: nothing is lost. In classifiers: neither is needed, and both are listed.
    assert_holds(
        load(saved({**behind("module.", A), key: A[key].clone()}, tmp_path / "same.pth")), A
    )
    net = load(saved({**behind("module.", A), "fc.weight": B["fc.weight"]}, tmp_path / "head.pth"))
    assert_holds(net, A)
    assert net.weights.unused == (*FC, "module.fc.weight")


TRAINING = {
    "epoch": 3,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]},
    "lr_scheduler": {"last_epoch": 3, "base": torch.ones(2, 2)},
    "loss": torch.tensor(0.5),
    "rng_state": torch.zeros(16, dtype=torch.uint8),
    "args": argparse.Namespace(lr=0.1, folder=PurePosixPath("/data")),
    "best": np.float64(0.9),
    "figures": defaultdict(list, {"loss": [0.5]}),
}


@pytest.mark.parametrize(
    "wrapper",
    [
        *(
            "state_dict",
            "model_state_dict",
            "model",
            "network",
            "net",
            "model_ema",
            "ema",
            "state_dict_ema",
            "ema_state_dict",
            "teacher",
        ),
        *(
            "student",
            "params",
            "params_ema",
            "weights",
            "backbone",
            "encoder",
            "generator",
            "anything",
        ),
    ],
)
def test_a_wrapper_of_any_name_is_opened(tmp_path, wrapper):
    net = load(saved({**TRAINING, wrapper: behind("module.", A)}, tmp_path / "w.ckpt"))
    assert_holds(net, A)
    assert net.weights.unused == FC
    assert (net.weights.source, net.weights.changes) == ("file:w.ckpt", ())


def test_wrappers_nest_to_any_depth_and_may_hold_themselves(tmp_path):
    content: dict[str, object] = {
        "checkpoint": {
            "ema": {"module": {"state_dict": behind("model.", A), "decay": 0.9}},
            **TRAINING,
        }
    }
    content["again"] = content
    assert_holds(load(saved(content, tmp_path / "w.pth")), A)


def test_a_head_beside_the_one_network_is_part_of_it(tmp_path):
    net = load(
        saved(
            {"backbone": A, "classifier": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}},
            tmp_path / "w.pth",
        )
    )
    assert_holds(net, A)
    assert net.weights.unused == ("classifier.bias", "classifier.weight", *FC)


def test_a_network_that_is_named_like_a_head_is_none(tmp_path):
    with pytest.raises(
        WeightsError, match=r"holds 2 networks: features \(92 tensors\), classifier \(92 tensors\)"
    ):
        load(saved({"features": A, "classifier": B}, tmp_path / "w.pth"))


def test_what_is_no_tensor_in_a_state_dict_is_left_out_and_listed(tmp_path):
    net = load(
        saved(
            {**A, "epoch": 3, "name": "x", "nothing": None, "options": {"a": 1}}, tmp_path / "w.pth"
        )
    )
    assert_holds(net, A)
    assert net.weights.unused == ("epoch", *FC, "name", "nothing", "options")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"epoch": 3, "optimizer": TRAINING["optimizer"]}, "a dict with the keys epoch, optimizer"),
        ({}, "a dict of 0 entries"),
        ([torch.ones(2)], "a list of 1 entries"),
        (torch.ones(3, 4), r"one tensor of shape \(3, 4\) without a name"),
        ({"shadow": [torch.ones(2)]}, "a dict with the keys shadow"),
        (3, "a int"),
    ],
)
def test_what_a_file_without_networks_holds_is_said(tmp_path, content, what):
    with pytest.raises(
        WeightsError,
        match=rf"not a plain state_dict of tensors, but {what}\. Save "
        r".*torch\.save\(model\.state_dict\(\)",
    ):
        load(saved(content, tmp_path / "w.pth"))


def test_a_whole_model_is_refused(tmp_path):
    with pytest.raises(
        WeightsError,
        match=r"of the class torch.nn.modules.linear.Linear, and is "
        r"refused.*torch\.save\(model\.state_dict\(\)",
    ):
        load(saved(torch.nn.Linear(2, 2), tmp_path / "w.pth"))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(WeightsError, match="refused, as it could run code"):
        load(tmp_path / "plain.pkl")


SEVERAL = {
    "timm": ({"state_dict": A, "state_dict_ema": B, **TRAINING}, ("state_dict", "state_dict_ema")),
    "dino": (
        {"student": behind("module.backbone.", A), "teacher": behind("backbone.", B), **TRAINING},
        ("student", "teacher"),
    ),
    "flat": ({**behind("student.", A), **behind("teacher.", B)}, ("student", "teacher")),
    "flat behind prefixes": (
        {
            "state_dict": {
                **behind("module.student.backbone.", A),
                **behind("module.teacher.backbone.", B),
                "module.center": torch.ones(1),
            }
        },
        ("student", "teacher"),
    ),
    "wrapped twice": (
        {"model": {"state_dict": A}, "model_ema": {"state_dict": B}},
        ("model", "model_ema"),
    ),
    "averaged": ({**behind("net.", A), **behind("net_ema.", B)}, ("net", "net_ema")),
    "momentum": (
        {**behind("backbone.", A), **behind("momentum_backbone.", B)},
        ("backbone", "momentum_backbone"),
    ),
    "of any name": ({**behind("left.", A), **behind("right.", B)}, ("left", "right")),
    "counted": ({**behind("models.0.", A), **behind("models.1.", B)}, ("models.0", "models.1")),
    "one without a name": ({**behind("copy.", A), **B}, ("copy", "top")),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_networks_one_is_asked_for_and_never_chosen(tmp_path, kind):
    content, names = SEVERAL[kind]
    path = saved(content, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=r"holds 2 networks: .*Name the one to use, such as weights: file:.*w\.pth#",
    ) as caught:
        load(path)
    for name, tensors in zip(names, (A, B), strict=True):
        assert f"{name} (92 tensors)" in str(caught.value)
        net = load(path, f"#{name}")
        assert_holds(net, tensors)
        assert net.weights.source == f"file:w.pth#{name}"
        assert name == "top" or any(
            f"network {name} taken" in change for change in net.weights.changes
        )


def test_networks_of_different_architectures_are_told_apart(tmp_path):
    """Only one of them fits, and still nobody has said that it is the one that is meant."""
    other = timm.create_model("test_vit").state_dict()
    path = saved({"teacher": other, "student": A}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=rf"teacher \({len(other)} tensors\), student \(92 tensors\)"
    ):
        load(path)
    assert_holds(load(path, "#student"), A)
    with pytest.raises(WeightsError, match="cannot be filled; nothing was loaded"):
        load(path, "#teacher")


def test_a_network_that_is_not_in_the_file(tmp_path):
    path = saved({"student": A, "teacher": B}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=r"holds no network 'tutor'\. It holds student \(92 tensors\), teacher \(92 tensors\)",
    ):
        load(path, "#tutor")
    with pytest.raises(
        WeightsError, match="holds no network 'tutor', but one without a name. Leave #tutor out"
    ):
        load(saved(A, tmp_path / "one.pth"), "#tutor")
    deep = saved(
        {"a": {"student": A, "teacher": B}, "b": {"student": B, "teacher": A}},
        tmp_path / "deep.pth",
    )
    with pytest.raises(WeightsError, match="holds several networks 'student'"):
        load(deep, "#student")
    assert_holds(load(deep, "#b.student"), B)


def test_networks_of_the_same_numbers_are_one(tmp_path):
    copy = {key: value.clone() for key, value in behind("module.", A).items()}
    net = load(saved({"state_dict": A, "state_dict_ema": copy}, tmp_path / "w.pth"))
    assert_holds(net, A)
    assert "hold the same numbers" in net.weights.changes[0]
    last = list(copy)[-1]
    copy[last] = copy[last] + 1  # one number is enough
    with pytest.raises(WeightsError, match="holds 2 networks"):
        load(saved({"state_dict": A, "state_dict_ema": copy}, tmp_path / "w.pth"))


def test_mocos_encoder_of_queries_is_the_published_one(tmp_path):
    content = {
        **behind("module.encoder_q.", A),
        **behind("module.encoder_k.", B),
        "module.queue": torch.ones(2, 2),
    }
    path = saved({"state_dict": content, **TRAINING}, tmp_path / "w.pth.tar")
    net = load(path)
    assert_holds(net, A)
    assert "network encoder_q taken, as MoCo publishes it" in net.weights.changes[0]
    assert "module.queue" in net.weights.unused
    assert_holds(load(path, "#encoder_k"), B)


def test_networks_of_one_file_are_proved_apart(tmp_path, monkeypatch):
    """They share the file's digest."""
    path = saved({"student": A, "teacher": B}, tmp_path / "w.pth")
    monkeypatch.setattr(
        "medtransfer.models.catalog.catalog.prove",
        lambda net, *_: {"first": float(next(net.network.parameters()).detach().flatten()[0])},
    )
    assert load(path, "#student").weights.proof != load(path, "#teacher").weights.proof


def test_a_name_with_a_hash_is_a_name(tmp_path):
    path = saved({"student": A, "teacher": B}, tmp_path / "a#b.pth")
    assert split_network(path) == (path, "")
    assert split_network(Path(f"{path}#teacher")) == (path, "teacher")
    net = load(path, "#teacher")
    assert_holds(net, B)
    assert (net.weights.source, net.weights.origin) == ("file:a#b.pth#teacher", "a#b.pth")
    assert_holds(load(saved(A, tmp_path / "c#teacher")), A)
    with pytest.raises(WeightsError, match="no such file"):
        load(tmp_path / "none.pth", "#teacher")
