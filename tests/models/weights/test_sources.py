from __future__ import annotations

import pytest
import timm
from medtransfer.errors import WeightsError
from medtransfer.models.weights.locate import published_recipe
from medtransfer.models.weights.sources import refuse_source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("imagenot", "unknown weights 'imagenot': use imagenet"),
        ("timm:", "unknown weights 'timm:'"),
        ("file", "unknown weights 'file'"),
        ("imagenet:here", "unknown weights 'imagenet:here'"),
        ("radimagenet", "for resnet50, densenet121, inception_v3, not for resnet18"),
        ("file:none.pth", "none.pth: no such file"),
        ("file:.", "is a folder"),
        ("study:none", "none: no such folder"),
    ],
)
def test_a_source_that_cannot_be_one_is_refused(source, message):
    with pytest.raises(WeightsError, match=message):
        refuse_source("resnet18", source)


def test_sources_that_can_be_are_taken(tmp_path):
    (tmp_path / "a#b.pth").write_bytes(b"")
    for name, source in (
        ("resnet18", "imagenet"),
        ("resnet18", "timm:a1_in1k"),
        ("resnet50", "radimagenet"),
        ("resnet50", f"radimagenet:{tmp_path / 'a#b.pth'}"),
        ("resnet18", f"file:{tmp_path / 'a#b.pth'}"),
        ("resnet18", f"file:{tmp_path / 'a#b.pth'}#encoder"),
        ("resnet18", f"study:{tmp_path}"),
    ):
        refuse_source(name, source)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_embedded_weights_expect_images_as_timm_says(number):
    name = f"tf_efficientnet_lite{number}"
    assert published_recipe(name).size == timm.get_pretrained_cfg(name).input_size[-1]
