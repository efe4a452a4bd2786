"""Cached activations give what the images give: the same losses and gradients behind every cut."""

from __future__ import annotations

import medtransfer as mt
import pytest
import torch
from medtransfer.data.dataset import EpochSampler
from medtransfer.errors import StudyError
from medtransfer.models.heads import LinearHead
from medtransfer.training import features as module
from medtransfer.training.engine import make_engine
from medtransfer.training.features import cache_prefix, start_epoch
from torch.utils.data import DataLoader, Dataset

ENGINE = make_engine("cpu", "fp32")


class Noise(Dataset):
    """Images that differ by epoch, as random transforms make them."""

    def __init__(self, count=6, size=64, slices=()):
        self.count, self.shape, self.epoch = count, (*slices, 3, size, size), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        return torch.randn(self.shape, generator=generator), torch.tensor([float(index % 2)]), index


def loader_of(dataset, batch=3, seed=0):
    def collate(items):
        images, targets, rows = zip(*items, strict=True)
        present = torch.ones(len(rows), dataset.shape[0] if len(dataset.shape) == 4 else 1, dtype=torch.bool)
        return {"features": {"image": torch.stack(images)}, "present": present, "targets": torch.stack(targets), "rows": torch.tensor(rows)}

    return DataLoader(dataset, batch, sampler=EpochSampler(len(dataset), seed), collate_fn=collate)


def step(net, head, batch):
    """Loss and gradients of everything that trains."""
    net.train()
    net.zero_grad()
    head.zero_grad()
    taps = net(ENGINE.move(batch["features"]), head.taps)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(head(taps, batch["present"]), batch["targets"])
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_cached_training_equals_uncached_for_every_cut(name):
    net = ENGINE.place(mt.load_backbone(name, seed=1, size=64))
    head = LinearHead(net.stages[-1], 1)
    torch.nn.init.normal_(head.linear.weight)
    dropout = [m for m in net.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    assert not dropout  # its draws would differ
    cuts = 0
    for frozen in range(1, len(net.stages)):
        net.freeze(frozen)
        cut = net.names[frozen - 1]
        plain = loader_of(Noise())
        cached = cache_prefix(net, loader_of(Noise()), cut, head.taps, 2, ENGINE)
        for epoch in (1, 2):
            start_epoch(plain, epoch % 2)
            plain.sampler.set_epoch(epoch)
            start_epoch(cached, epoch)
            for ours, theirs in zip(cached, plain, strict=True):
                assert torch.equal(ours["rows"], theirs["rows"])
                assert set(ours["features"]) == {cut}
                state = {key: value.clone() for key, value in net.state_dict().items()}
                loss, gradients = step(net, head, ours)
                net.load_state_dict(state)
                expected, exact = step(net, head, theirs)
                net.load_state_dict(state)
                torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
                assert set(gradients) == set(exact)
                assert gradients or not net.stage_parameters(len(net.stages) - 1)
                for key, gradient in gradients.items():
                    scale = exact[key].abs().max().item() + 1e-6
                    torch.testing.assert_close(gradient, exact[key], rtol=1e-3, atol=1e-4 * scale)
                cuts += 1
                break
    assert cuts == 2 * (len(net.stages) - 1)


def test_a_head_on_all_stages_reads_the_same_from_the_cache():
    net = mt.load_backbone("swin_tiny_patch4_window7_224", seed=1, size=64)
    net.freeze(6)
    head = LinearHead(net.stages, 1)
    torch.nn.init.normal_(head.linear.weight)
    cached = cache_prefix(net, loader_of(Noise()), net.names[5], head.taps, 1, ENGINE)
    plain = loader_of(Noise())
    net.eval()
    for ours, theirs in zip(cached, plain, strict=True):
        with torch.inference_mode():
            found = head(net(ours["features"], head.taps), ours["present"])
            expected = head(net(theirs["features"], head.taps), theirs["present"])
        assert torch.allclose(found, expected, atol=1e-4)
    assert set(ours["features"]) == set(net.names[:6])


def test_slices_are_cached_with_their_axis():
    net = mt.load_backbone("resnet18", seed=1)
    net.freeze(5)
    head = LinearHead(net.stages, 1, "attention")
    torch.nn.init.normal_(head.linear.weight)
    cached = cache_prefix(net, loader_of(Noise(slices=(4,))), "layer2.1", head.taps, 1, ENGINE)
    net.eval()
    for ours, theirs in zip(cached, loader_of(Noise(slices=(4,))), strict=True):
        assert ours["features"]["layer2.1"].shape[:3] == (3, 4, 128)
        with torch.inference_mode():
            found = head(net(ours["features"], head.taps), ours["present"])
            expected = head(net(theirs["features"], head.taps), theirs["present"])
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_selection_has_its_own_order():
    net = mt.load_backbone("resnet18", seed=1)
    cached = cache_prefix(net, loader_of(Noise()), "image", ["layer4.1"], 1, ENGINE)
    plain = cached.select([4, 1, 2], 2, None)
    assert [batch["rows"].tolist() for batch in plain] == [[4, 1], [2]]
    shuffled = cached.select([0, 1, 2, 3, 5], 2, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        start_epoch(shuffled, epoch)
        orders.append([row for batch in shuffled for row in batch["rows"].tolist()])
    assert orders[0] == orders[2] != orders[1]
    assert all(len(order) == 4 and set(order) <= {0, 1, 2, 3, 5} for order in orders)


def test_a_full_disk_is_told_before_anything_is_computed(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(StudyError, match=r"no room for .* GiB of cached activations \(No space left on device\)"):
        cache_prefix(mt.load_backbone("resnet18"), loader_of(Noise()), "image", [], 1, ENGINE)


def test_nothing_stays_on_the_disk(tmp_path):
    net = mt.load_backbone("resnet18")
    cached = cache_prefix(net, loader_of(Noise()), "image", [], 1, ENGINE, tmp_path)
    assert torch.isfinite(next(iter(cached))["features"]["image"]).all()
    assert list(tmp_path.iterdir()) == []
