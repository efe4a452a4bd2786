"""Networks that plans are made for."""

from __future__ import annotations

import medtransfer as mt
import pytest


@pytest.fixture(scope="module")
def lite():
    return mt.load_backbone("tf_efficientnet_lite0")


@pytest.fixture(scope="module")
def resnet():
    return mt.load_backbone("resnet18")
