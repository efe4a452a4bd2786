"""Files that claim more than they hold are refused before memory is taken for them."""

from __future__ import annotations

import io
import resource
import sys
import zipfile

import pytest
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.weights.files import read_tensors

from weight_files import A, file_of, load, saved

pytestmark = pytest.mark.usefixtures("unproved")


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
