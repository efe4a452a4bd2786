"""Files of weights as people have them: prefixes, wrappers, several networks, other endings, and
damaged ones.
"""

from __future__ import annotations

import argparse
import gzip
import io
import lzma
import pickle
import resource
import sys
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

import h5py
import medtransfer as mt
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.heads.linear import LinearHead
from medtransfer.models.weights.files import read_tensors, split_network
from medtransfer.study.record import describe_backbone
from medtransfer.training.checkpoint import save_weights

from checkpoint_mutants import checkpoint_mutants, originals, try_checkpoint
from networks import SMALL

FC = ("fc.bias", "fc.weight")


@pytest.fixture(autouse=True)
def _unproved(monkeypatch):
    """Whether weights are trained ones is asked in test_weights.py; here they are random."""
    monkeypatch.setattr(
        "medtransfer.models.catalog.catalog.prove",
        lambda *_: {"passed": True, "sentence": "not looked at"},
    )
    monkeypatch.setattr("medtransfer.models.catalog.catalog._proofs", {})


def tensors_of(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(SMALL).state_dict()


A, B = tensors_of(0), tensors_of(1)


def behind(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def load(path: Path, network: str = "", name: str = SMALL) -> mt.Backbone:
    return mt.load_backbone(name, weights=f"file:{path}{network}")


def assert_holds(net: mt.Backbone, tensors: dict[str, torch.Tensor]) -> None:
    for key, value in net.network.state_dict().items():
        assert torch.equal(value, tensors[key].to(value.dtype)), key


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


# Prefixes.


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


# Wrappers.

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


# Several networks in one file.

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


# Endings.


def file_of(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "safetensors":
        return safetensors.torch.save(A)
    torch.save(A, stream, _use_new_zipfile_serialization=kind == "torch")
    return stream.getvalue()


@pytest.mark.parametrize(
    "ending", [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".h5", ".pth.tar", ".model", ""]
)
@pytest.mark.parametrize("kind", ["safetensors", "torch", "older torch"])
def test_files_are_told_by_their_first_bytes(tmp_path, kind, ending):
    path = tmp_path / f"w{ending}"
    path.write_bytes(file_of(kind))
    assert_holds(load(path), A)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lzma.compress,
        lambda data: zipped({"README.md": b"text", "folder/w.pth": data}),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_packed_files_are_read(tmp_path, kind, pack):
    for name in ("w.pth", "w.zip"):
        (tmp_path / name).write_bytes(pack(file_of(kind)))
        assert_holds(load(tmp_path / name), A)


def test_archives_that_cannot_be_read_say_why(tmp_path):
    contents = {
        "two.zip": (
            zipped({"a.pth": b"1", "b.pth": b"2"}),
            r"a zip with 2 files of weights \(a.pth, b.pth\)",
        ),
        "none.zip": (zipped({"a.txt": b"1", "b.txt": b"2"}), "a zip with no file of weights"),
        "growing.pth": (gzip.compress(bytes(30_000_000)), "unpacks to more than 20 times its size"),
        "cut.pth": (gzip.compress(file_of("torch"))[:-5000], "its archive is damaged"),
        "nested.pth": (gzip.compress(gzip.compress(b"1")), "an archive in an archive"),
    }
    for name, (data, message) in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=f"{name}: .*{message}"):
            load(tmp_path / name)


def test_keras_files_under_other_names(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["conv/conv/kernel:0"] = np.ones((3, 3, 3, 8), np.float32)
    other = (tmp_path / "w.h5").rename(tmp_path / "w.pth")
    assert read_tensors(other)["conv/kernel"].shape == (3, 3, 3, 8)
    with pytest.raises(WeightsError, match="Keras files are read as RadImageNet's"):
        load(other)
    with h5py.File(
        tmp_path / "huge.h5", "w"
    ) as file:  # never written, and so of no size in the file
        file.create_dataset("conv/conv/kernel:0", shape=(10**5, 10**6), dtype="f4", chunks=(10, 10))
    with pytest.raises(
        WeightsError, match="claims 400000000000 bytes, more than the file has room for"
    ):
        read_tensors(tmp_path / "huge.h5")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"  # noqa: E501


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.h5", "w.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "a pointer of Git LFS.*Run `git lfs pull`"),
        (
            b"<!DOCTYPE html><html>Quota exceeded",
            "a web page that was saved in place of the file.*Download it again",
        ),
        (
            b"\n <html lang='de'>",
            "a web page that was saved in place of the file.*Download it again",
        ),
        (b"", "it is empty.*Download it again"),
        (b"\x93NUMPY\x01\x00", "an array of NumPy"),
        (b"Rar!\x1a\x07", "a packed file.*Unpack it"),
    ],
)
def test_what_was_saved_in_place_of_a_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name}: .*{message}"):
        load(tmp_path / name)


def test_what_was_saved_in_place_of_a_file_with_a_digest_in_its_name(tmp_path):
    (tmp_path / "w-0123abcd.pth").write_bytes(LFS)
    with pytest.raises(WeightsError, match="a pointer of Git LFS.*Run `git lfs pull`"):
        load(tmp_path / "w-0123abcd.pth")


def test_a_cut_file_says_so(tmp_path):
    for kind, message in (
        ("safetensors", "1000 bytes are missing at its end"),
        ("torch", "bytes are missing at its end"),
    ):
        (tmp_path / "w.pth").write_bytes(file_of(kind)[:-1000])
        with pytest.raises(WeightsError, match=rf"{message}\)\. Download it again"):
            load(tmp_path / "w.pth")


def test_a_model_trained_here_is_known_under_any_name(tmp_path):
    """Else its images could be tested with it."""
    net = load(saved(A, tmp_path / "w.pth"))
    save_weights(
        tmp_path / "weights.safetensors",
        net,
        LinearHead(net.stages[-1], 1),
        {**describe_backbone(net), "tap": "x"},
    )
    data = (tmp_path / "weights.safetensors").read_bytes()
    for name, content in (("renamed.pth", data), ("packed.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="is a model trained here. Give weights: study:"):
            load(tmp_path / name)


# Kinds of numbers.


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_is_converted(tmp_path, kind):
    tensors = {key: value.to(kind) for key, value in A.items()}  # the counts of batches too
    net = load(saved(tensors, tmp_path / "w.pth"))
    assert_holds(net, tensors)
    assert all(value.dtype == torch.float32 for value in net.network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
            "quantised numbers of the kind torch.qint8",
        ),
        (lambda v: v.to_sparse(), r"a sparse tensor \(torch.sparse_coo"),
        (lambda v: v.to(torch.complex64), "numbers of the kind torch.complex64"),
        (lambda v: v.to(torch.int32), "numbers of the kind torch.int32"),
        (lambda v: v.to(torch.float8_e4m3fn), "numbers of the kind torch.float8_e4m3fn"),
        (lambda v: v.to("meta"), "a name and a shape without numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_other_numbers_are_named(tmp_path, change, message):
    key = "conv1.0.weight"
    path = saved(behind("module.", {**A, key: change(A[key])}), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=rf"{key}: {message}.* in the file, torch.float32 in the network"
    ):
        load(path)


def test_tied_and_strided_tensors_are_read(tmp_path):
    tensors = {
        key: value.transpose(0, 1).contiguous().transpose(0, 1) if value.ndim > 1 else value
        for key, value in A.items()
    }
    tensors |= {
        "tied.weight": tensors["conv1.0.weight"],
        "bn1.weight": torch.ones(1).expand(A["bn1.weight"].shape),
    }
    net = load(saved(tensors, tmp_path / "w.pth"))
    assert_holds(net, tensors)
    assert net.weights.unused == (*FC, "tied.weight")


# Claims.


def claimed(seen: int) -> bytes:
    """A torch file whose list of tensors says that a storage has `seen` more elements than it
    has.
    """
    stream, target = io.BytesIO(), io.BytesIO()
    torch.save({"conv1.0.weight": torch.arange(200.0)}, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\xc8") == 2  # of the storage, and of the tensor in it
                data = data.replace(b"K\xc8", b"J" + (200 + seen).to_bytes(4, "little"))
            new.writestr(name, data)
    return target.getvalue()


@pytest.mark.parametrize("seen", [1, 10**6, 2**30])
def test_a_storage_smaller_than_its_tensor_is_refused(tmp_path, seen):
    """torch takes the number on trust and reads what lies behind in memory."""
    (tmp_path / "w.pth").write_bytes(claimed(seen))
    with pytest.raises(
        WeightsError,
        match=rf"the storage 0 would take {4 * (200 + seen)} bytes, and the file has room for 800",
    ):
        read_tensors(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(claimed(0))
    assert torch.equal(read_tensors(tmp_path / "w.pth")["conv1.0.weight"], torch.arange(200.0))


def repeated(times: int) -> dict[str, torch.Tensor]:
    return {f"x{i}": tensor for tensor in [torch.zeros(10**6)] for i in range(times)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**A, "more": torch.zeros(1).expand(10**12)}, "more would take 4000000000000 bytes"),
        (
            {**A, "conv1.0.weight": torch.zeros(1).expand(10**7, 10**5)},
            "conv1.0.weight would take 4000000000000 bytes",
        ),
        (
            {"a": torch.zeros(20_000).as_strided((9_999, 9_999), (1, 1))},
            "a would take 399920004 bytes",
        ),
        (repeated(40), "would take .* bytes, and the file has room for"),
    ],
)
def test_tensors_that_repeat_their_numbers_take_no_memory(tmp_path, content, message):
    path = saved(content, tmp_path / "w.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=message):
        load(path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (
        1 if sys.platform == "darwin" else 1024
    )
    assert grown < 200_000_000


def test_headers_that_claim_more_than_the_file_has(tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(WeightsError, match="3999999999984 bytes are missing at its end"):
        load(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((2**62).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="not a readable weights file"):
        load(tmp_path / "w.safetensors")
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(file_of("torch"))) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(10**8) if name.endswith("data/0") else old.read(name))
    (tmp_path / "packed.pth").write_bytes(packed.getvalue())
    with pytest.raises(WeightsError, match="its parts would take .* bytes"):
        load(tmp_path / "packed.pth")


# Damaged files.


def test_sound_files_fill_the_small_network(tmp_path):
    for ending, data in originals().items():
        (tmp_path / f"w.{ending}").write_bytes(data)
        assert try_checkpoint(tmp_path / f"w.{ending}") == ""


def test_damaged_checkpoints_give_the_files_numbers_or_an_error_that_names_them(tmp_path):
    """300 here, and as many as one likes with `checkpoint_mutants`."""
    faults = []
    for path, change in checkpoint_mutants(seed=1, count=300, folder=tmp_path):
        fault = try_checkpoint(path)
        faults += [f"{change}: {fault}"] if fault else []
        path.unlink()
    assert not faults, "\n".join(faults)
    first, again = (
        [path.read_bytes() for path, _ in checkpoint_mutants(seed=2, count=9, folder=tmp_path)]
        for _ in range(2)
    )
    assert first == again
