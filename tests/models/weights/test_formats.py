"""Kinds of files, whatever their names: packed ones, other things in their place, damaged ones."""

from __future__ import annotations

import gzip
import io
import lzma
import zipfile
from functools import partial

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from medtransfer.errors import WeightsError
from medtransfer.models.weights.files import read_tensors
from medtransfer.models.weights.formats import read_content, read_metadata, seal_tensors

from checkpoint_mutants import checkpoint_mutants, originals, try_checkpoint
from damage import damage
from weight_files import A, assert_holds, file_of, load

pytestmark = pytest.mark.usefixtures("unproved")


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
        partial(lzma.compress, preset=0),
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


def test_a_damaged_file_that_was_written_here_is_refused(tmp_path):
    """Safetensors themselves have no digest."""
    tensors = {"backbone.a": torch.randn(40, 30), "head.b": torch.tensor(3), "c": torch.zeros(0)}
    content = safetensors.torch.save(tensors, seal_tensors(tensors, {"backbone": "resnet18"}))
    path, rng = tmp_path / "w", np.random.default_rng(0)
    path.write_bytes(content)
    assert read_metadata(path)["backbone"] == "resnet18"
    assert all(torch.equal(read_content(path)[name], tensor) for name, tensor in tensors.items())
    for _ in range(600):
        path.write_bytes(damage(content, rng))
        with pytest.raises(WeightsError, match=f"{path}: "):
            read_content(path)
