from __future__ import annotations

import pytest
import timm
from medtransfer.errors import WeightsError
from medtransfer.models.catalog.catalog import list_backbones
from medtransfer.models.catalog.names import list_names, refuse_unknown, refuse_unknown_tag
from medtransfer.models.weights.locate import sources_of


@pytest.mark.parametrize("pattern", ["*", "*resnet1*", "tf_*", "monai_*", "no such*"])
def test_names_read_from_the_source_are_those_that_timm_registers(pattern):
    assert sorted(list_names(pattern)) == sorted(list_backbones(pattern))


def test_every_name_that_timm_knows_is_taken():
    for name in (*list_backbones(), *timm.models._registry._deprecated_models):
        refuse_unknown(name)


def test_every_tag_that_timm_publishes_is_taken():
    for name in list_backbones():
        for source in sources_of(name):
            refuse_unknown_tag(name, source)


def test_a_misspelt_name_is_refused_with_those_near():
    with pytest.raises(WeightsError, match=r"unknown backbone 'Resnet19'. Did you mean .*resnet18"):
        refuse_unknown("Resnet19")


@pytest.mark.parametrize(
    ("name", "planar"), [("resnet18", "resnet18"), ("monai_resnet18", "resnet18")]
)
def test_a_misspelt_tag_is_refused_with_those_of_the_network(name, planar):
    with pytest.raises(WeightsError) as error:
        refuse_unknown_tag(name, "timm:a1_in2k")
    message = str(error.value)
    assert f"timm publishes no weights 'a1_in2k' for {name}" in message
    tags = [tag.removeprefix("timm:") for tag in sources_of(planar) if tag.startswith("timm:")]
    assert sorted(message.rpartition("There are: ")[2].rstrip(".").split(", ")) == sorted(tags)
