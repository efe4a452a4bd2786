"""What is read on a machine of a given memory, and how the limit is told."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import psutil
import pytest
import tifffile
from medtransfer.data.images import limits
from medtransfer.data.images.limits import memory_bytes, refuse_implausible, refuse_slivers
from medtransfer.data.images.reading import read_image
from medtransfer.errors import ImageError
from PIL import Image as Pillow

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    def set_to(memory, processors=2):
        monkeypatch.setattr(limits, "memory_bytes", lambda: memory)
        monkeypatch.setattr(limits.os, "cpu_count", lambda: processors)

    return set_to


def test_ordinary_files_may_take_half_of_the_memory(tmp_path, machine):
    machine(24 * GB)
    refuse_implausible(tmp_path, (1_000_000_000,), 10**9)
    with pytest.raises(
        ImageError,
        match=r"1000000001 values do not fit in memory: reading them needs 12 GB; images of up to "
        r"1,000 million",
    ):
        refuse_implausible(tmp_path, (1_000_000_001,), 10**9)
    machine(48 * GB)
    refuse_implausible(tmp_path, (1_900_000_000,), 10**9)


def test_files_that_unfold_strongly_share_a_quarter_of_the_memory(tmp_path, machine):
    machine(24 * GB, processors=2)
    refuse_implausible(tmp_path, (13_500, 13_500), 200_000)
    with pytest.raises(
        ImageError,
        match=r"30000 x 30000 values do not fit in memory: reading them needs 11 GB; .* 900 "
        r"values per byte",
    ):
        refuse_implausible(tmp_path, (30_000, 30_000), 1_000_000)
    with pytest.raises(ImageError, match=r"1100 x 1100 x 1100 values do not fit"):
        refuse_implausible(tmp_path, (1_100, 1_100, 1_100), 1_300_000)
    machine(24 * GB, processors=64)
    refuse_implausible(tmp_path, (5_000, 6_000), 10_000)  # up to 32 million values on any machine
    with pytest.raises(ImageError, match="do not fit"):
        refuse_implausible(tmp_path, (13_500, 13_500), 200_000)


def test_what_no_codec_reaches_is_a_damaged_header(tmp_path, machine):
    machine(10**15)
    with pytest.raises(ImageError, match="50000 x 50000 values, which 1000 bytes cannot hold"):
        refuse_implausible(tmp_path, (50_000, 50_000), 1_000)
    for shape in ((), (0, 5), (-1, 5)):
        with pytest.raises(ImageError, match="claims a size of"):
            refuse_implausible(tmp_path, shape, 1_000)


def test_the_limit_is_told_before_anything_is_unfolded(tmp_path, machine):
    machine(2 * GB)
    Pillow.fromarray(np.zeros((7_000, 7_000), np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((7_000, 7_000), np.uint8), compression="zlib")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[40:48] = np.array([3, 400, 400, 400], "<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(data) + bytes(400**3 - 512)))
    for name in ("a.png", "a.tif", "a.nii.gz"):
        with pytest.raises(
            ImageError,
            match=rf"{name}: its .* do not fit in memory: reading them needs .* GB; images of up "
            r"to",
        ) as caught:
            read_image(tmp_path / name)
        assert "PNG" not in str(caught.value)


def test_a_picture_beyond_the_limit_of_pillow_is_read(tmp_path):
    """13,500 x 13,500 is more than Pillow opens by itself; its setting is not left changed."""
    array = np.zeros((13_500, 13_500), np.uint8)
    array[5, 7] = 200
    Pillow.fromarray(array).save(tmp_path / "large.png", compress_level=1)
    before = Pillow.MAX_IMAGE_PIXELS
    image = read_image(tmp_path / "large.png").array
    assert image.shape == (1, 13_500, 13_500)
    assert image[0, 5, 7] == 200
    assert before == Pillow.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("line", "files", "granted"),
    [
        (
            "0::/job/step\n",
            {"job/step/memory.max": "max\n", "job/memory.max": "5000000000\n"},
            5 * GB,
        ),
        ("0::/\n", {"memory.max": "3000000000\n"}, 3 * GB),
        ("0::/\n", {"memory.max": "max\n"}, None),
        (
            "4:cpu:/x\n9:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": "7000000000\n", "x/memory.max": "1"},
            7 * GB,
        ),
        (
            "9:cpu,memory:/gone\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712\n"},
            9223372036854771712,
        ),
        ("nonsense\n", {}, None),
    ],
)
def test_the_memory_is_what_the_control_groups_grant(tmp_path, monkeypatch, line, files, granted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "self").write_text(line)
    real = limits.Path
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    monkeypatch.setattr(
        limits,
        "Path",
        lambda name: tmp_path / "self" if name == "/proc/self/cgroup" else real(name),
    )
    assert limits._granted() == ([] if granted is None else [granted])
    memory_bytes.cache_clear()
    total = psutil.virtual_memory().total
    assert memory_bytes() == min(total, granted or total)
    memory_bytes.cache_clear()


@pytest.mark.parametrize(
    ("space", "message"),
    [((3, 1000), "at least 8 x 8"), ((8, 401), "50 times as long"), ((2, 9, 7), "at least 8 x 8")],
)
def test_slivers_are_refused_with_their_reason(tmp_path, space, message):
    with pytest.raises(ImageError, match=message):
        refuse_slivers(tmp_path, space)


def test_thin_stacks_and_long_films_are_images(tmp_path):
    for space in ((8, 8), (8, 400), (2, 30, 20), (512, 512, 1)):
        refuse_slivers(tmp_path, space)
