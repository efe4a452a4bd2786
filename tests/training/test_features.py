"""Kept activations give what the images give: the same losses and gradients behind every cut."""

from __future__ import annotations

from functools import partial

import medtransfer as mt
import numpy as np
import pytest
import torch
from medtransfer.errors import StudyError
from medtransfer.models.heads.linear import LinearHead
from medtransfer.training import features as module
from medtransfer.training.batches import Loader
from medtransfer.training.device import Engine
from medtransfer.training.features import FeatureSource, Store
from medtransfer.training.timing import make_engine

from damage import damage
from networks import SMALL
from noise import Noise

ENGINE = make_engine("cpu", "fp32")


SIDE, AT_ONCE = 48, 16


COPIES = 600


BF16 = Engine(torch.device("cpu"), "bf16", "contiguous")


def keep(net, noise, cut, taps, folder, engine=ENGINE, at_once=32, **more):
    store = Store(folder, noise.count, at_once=at_once)
    return FeatureSource(net, noise, cut, taps, engine, store, **more)


def shuffled(source, views=2):
    """Batches as large as those that fill the store: with others, sums end in another bit."""
    return Loader(source, range(AT_ONCE), AT_ONCE, seed=0, views=views)


def step(net, head, batch, engine=ENGINE):
    """Loss and gradients of everything that trains."""
    net.train()
    net.zero_grad()
    head.zero_grad()
    with engine.autocast():
        taps = net(engine.move(batch["features"]), head.taps)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        head(taps, batch["present"]), batch["targets"]
    )
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "tf_efficientnet_lite0", "vit_tiny_patch16_224"]
)
def test_training_from_kept_activations_is_that_from_images_for_every_cut(name, tmp_path):
    net = ENGINE.place(mt.load_backbone(name, seed=1, size=SIDE))
    head = LinearHead(net.stages[-1], 1)
    torch.nn.init.normal_(head.linear.weight)
    dropout = [m for m in net.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    assert not dropout  # its draws would differ
    cuts = 0
    for frozen in range(1, len(net.stages)):
        net.freeze(frozen)
        cut = net.names[frozen - 1]
        kept = shuffled(keep(net, Noise(AT_ONCE, SIDE), cut, head.taps, tmp_path, at_once=AT_ONCE))
        plain = shuffled(Noise(AT_ONCE, SIDE))
        for epoch in (3,):
            kept.start_epoch(epoch)
            plain.start_epoch(epoch)
            for ours, theirs in zip(kept, plain, strict=True):
                assert torch.equal(ours["rows"], theirs["rows"])
                assert torch.equal(ours["targets"], theirs["targets"])
                assert set(ours["features"]) == {cut}
                state = {key: value.clone() for key, value in net.state_dict().items()}
                loss, gradients = step(net, head, ours)
                net.load_state_dict(state)
                expected, exact = step(net, head, theirs)
                net.load_state_dict(state)
                assert torch.equal(loss, expected)
                assert set(gradients) == set(exact)
                for key, gradient in gradients.items():
                    scale = exact[key].abs().max().item() + 1e-6
                    torch.testing.assert_close(gradient, exact[key], rtol=1e-4, atol=1e-5 * scale)
                cuts += 1
                break
    assert cuts == len(net.stages) - 1


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_reduced_precision_loses_nothing_to_the_disk(name, tmp_path):
    net = BF16.place(mt.load_backbone(name, seed=1, size=64))
    net.freeze(5)
    head = LinearHead(net.stages[-1], 1)
    torch.nn.init.normal_(head.linear.weight)
    kept, cut = keep(net, Noise(), net.names[4], head.taps, tmp_path, BF16), net.names[4]
    ours = kept.load([2, 5, 1])
    assert ours["features"][cut].dtype == torch.bfloat16
    # Its norms are folded, so that less is rounded than in the network as it is.
    prefix = kept._folded
    norms = [
        sum(isinstance(module, torch.nn.BatchNorm2d) for module in whole.modules())
        for whole in (prefix, net)
    ]
    assert norms[0] < norms[1]
    image = {"image": Noise().load([0, 1, 2, 3, 4, 5])["features"]["image"][[2, 5, 1]]}
    net.eval()
    with torch.inference_mode(), BF16.autocast():
        folded, plain = prefix(image, [cut])[cut], net(image, [cut])[cut]
    with torch.inference_mode():
        exact = net(image, [cut])[cut]
    assert torch.allclose(ours["features"][cut].float(), folded.float(), atol=1e-6)
    theirs = {**ours, "features": {cut: folded.clone()}}
    assert torch.allclose(
        step(net, head, ours, BF16)[0], step(net, head, theirs, BF16)[0], atol=1e-6
    )
    assert (folded - exact).square().mean() < (plain - exact).square().mean()


def test_a_head_on_all_stages_reads_the_same_from_the_store(tmp_path):
    net = mt.load_backbone("swin_tiny_patch4_window7_224", seed=1, size=64)
    net.freeze(6)
    head = LinearHead(net.stages, 1)
    torch.nn.init.normal_(head.linear.weight)
    ours, theirs = (
        keep(net, Noise(), net.names[5], head.taps, tmp_path).load([0, 3]),
        Noise().load([0, 3]),
    )
    net.eval()
    with torch.inference_mode():
        found = head(net(ours["features"], head.taps), ours["present"])
        expected = head(net(theirs["features"], head.taps), theirs["present"])
    assert torch.allclose(found, expected, atol=1e-4)
    assert set(ours["features"]) == set(net.names[:6])


def test_a_probe_keeps_pooled_activations_alone(tmp_path):
    net = mt.load_backbone("resnet18", seed=1)
    net.freeze(len(net.stages))
    head = LinearHead(net.stages, 1)
    torch.nn.init.normal_(head.linear.weight)
    ours, theirs = (
        keep(net, Noise(), net.names[-1], head.taps, tmp_path, pooled=True).load([1, 2]),
        Noise().load([1, 2]),
    )
    assert ours["features"][net.names[-1]].shape == (2, 512, 1, 1)
    net.eval()
    with torch.inference_mode():
        expected = head(net(theirs["features"], head.taps), theirs["present"])
        assert torch.allclose(head(ours["features"], ours["present"]), expected, atol=1e-4)


def test_slices_are_kept_with_their_axis(tmp_path):
    net = mt.load_backbone("resnet18", seed=1)
    net.freeze(5)
    head = LinearHead(net.stages, 1, "attention")
    torch.nn.init.normal_(head.linear.weight)
    ours, theirs = (
        source.load([0, 1, 5])
        for source in (
            keep(net, Noise(slices=(4,)), "layer2.1", head.taps, tmp_path),
            Noise(slices=(4,)),
        )
    )
    net.eval()
    assert ours["features"]["layer2.1"].shape[:3] == (3, 4, 128)
    with torch.inference_mode():
        found = head(net(ours["features"], head.taps), ours["present"])
        expected = head(net(theirs["features"], head.taps), theirs["present"])
    assert torch.allclose(found, expected, atol=1e-4)


def test_what_is_there_is_not_computed_again_by_whoever_asks(tmp_path):
    net = mt.load_backbone("resnet18", seed=1)
    net.freeze(3)
    first, second = Noise(), Noise()
    keep(net, first, "layer1.1", ["layer4.1"], tmp_path).prepare([0, 1, 2], 1)
    other = keep(net, second, "layer1.1", ["layer4.1"], tmp_path)
    other.prepare([1, 2, 4], 1)
    other.load([0, 4], None)
    assert sorted(first.loaded) == [(0, 1), (1, 1), (2, 1)]
    assert sorted(second.loaded, key=str) == [(0, None), (4, 1), (4, None)]
    # Training what lies behind changes nothing of it; other weights do.
    torch.nn.init.zeros_(net.network.layer4[1].conv2.weight)
    assert keep(net, second, "layer1.1", ["layer4.1"], tmp_path).folder == other.folder
    torch.nn.init.zeros_(net.network.layer1[0].conv2.weight)
    assert keep(net, second, "layer1.1", ["layer4.1"], tmp_path).folder != other.folder
    assert (
        keep(net, second, "layer1.1", ["layer4.1"], tmp_path, BF16).folder
        != keep(net, second, "layer1.1", ["layer4.1"], tmp_path).folder
    )


def test_a_killed_writer_leaves_rows_that_are_computed_again(tmp_path, monkeypatch):
    net = mt.load_backbone("resnet18", seed=1)
    net.freeze(3)
    kept = keep(net, Noise(), "layer1.1", ["layer4.1"], tmp_path)
    opened = kept._open

    def killed(name, view):
        if name == "digests":
            raise KeyboardInterrupt
        return opened(name, view)

    monkeypatch.setattr(kept, "_open", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.prepare([0, 1], None)
    noise = Noise()
    again = keep(net, noise, "layer1.1", ["layer4.1"], tmp_path)
    assert torch.equal(
        again.load([0, 1])["features"]["layer1.1"],
        keep(net, Noise(), "layer1.1", [], tmp_path / "x").load([0, 1])["features"]["layer1.1"],
    )
    assert len(noise.loaded) == 2


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    net = mt.load_backbone("resnet18")
    monkeypatch.setattr(module.os, "open", full)
    with pytest.raises(
        StudyError, match=r"no room for cached activations \(No space left on device\). Free some"
    ):
        keep(net, Noise(), "stem", [], tmp_path).prepare([0], None)
    assert net.training  # as it was


def record(reports, *report):
    reports.append(report)


def equal(one, other):
    """Whether two batches hold the same numbers."""
    pairs = [(one[key], other[key]) for key in ("present", "targets", "rows")]
    pairs += [(one["features"][tap], other["features"][tap]) for tap in other["features"]]
    return one["features"].keys() == other["features"].keys() and all(
        torch.equal(a, b) for a, b in pairs
    )


def test_damaged_activations_are_named_once_and_computed_again(tmp_path):
    """Whatever is done to the files of a store, what is read from it is what was written."""
    net = mt.load_backbone(SMALL, seed=1, size=32)
    net.freeze(3)
    cut, rows = net.names[2], [0, 1, 2, 3, 4, 5]
    noise = Noise(size=32)
    expected = keep(net, noise, cut, [net.names[0]], tmp_path).load(rows)
    files = sorted(path for path in tmp_path.glob("*/*"))
    assert {path.name for path in files} == {
        "contents.json",
        "plain.digests",
        "plain.present",
        "plain.targets",
        f"plain.{cut}",
        f"plain.{net.names[0]}",
    }
    whole = {path: path.read_bytes() for path in files}
    rng, repaired = np.random.default_rng(0), 0
    for number in range(COPIES):
        path = files[number % len(files)]
        path.write_bytes(damage(whole[path], rng))
        reports = []
        report = partial(record, reports)
        source = keep(net, noise, cut, [net.names[0]], tmp_path, report=report)
        assert equal(source.load(rows), expected), path
        named = [text for text, *_ in reports if "damaged (" in text]
        assert len(named) <= 1
        repaired += len(named)
        reports.clear()
        assert equal(source.load(rows), expected)
        assert not reports
        path.write_bytes(whole[path])
    assert (
        repaired > COPIES / 2
    )  # digests or contents that are missing say only that nothing is there


def test_a_disk_that_forgets_is_an_error_and_not_an_endless_repair(tmp_path, monkeypatch):
    net = mt.load_backbone(SMALL, size=32)
    source = keep(net, Noise(size=32), "stem", [], tmp_path)
    source.prepare([0, 1], None)
    path = next(tmp_path.glob("*/plain.stem"))
    path.write_bytes(bytes(len(path.read_bytes())))
    write = source._write_rows
    monkeypatch.setattr(
        source, "_write_rows", lambda name, *a: None if name == "stem" else write(name, *a)
    )
    with pytest.raises(StudyError, match="the disk does not give back the activations"):
        source.load([1])


def test_another_process_may_write_the_same_rows_anew(tmp_path):
    """Its activations may differ in their last bits, as on an accelerator, and are no damage."""
    net = mt.load_backbone(SMALL, size=32)
    reports = []
    one = keep(net, Noise(size=32), "stem", [], tmp_path, report=partial(record, reports))
    one.prepare([0, 1], None)
    other = keep(net, Noise(size=32), "stem", [], tmp_path)
    batch = other.load([0, 1])
    values = {"stem": batch["features"]["stem"].permute(0, 2, 3, 1) + 1e-6}
    values |= {key: batch[key] for key in ("present", "targets")}
    other._write([0, 1], None, values)
    assert equal(one.load([0, 1]), other.load([0, 1]))
    assert not reports
