"""What of a plan can be set by hand is declared once."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
from medtransfer.errors import ConfigError
from medtransfer.models.chain.backbone import NormPolicy, Tuned
from medtransfer.models.plan.plan import FreezePlan, Strategy
from medtransfer.models.plan.settings import PlanSettings

from plans import plan


def words_of(name):
    return set(get_args(get_args(PlanSettings.model_fields[name].annotation)[0]))


def test_all_settings_are_fields_of_a_plan():
    assert set(PlanSettings.model_fields) <= {field.name for field in fields(FreezePlan)}


def test_words_are_those_of_the_networks():
    assert words_of("norm_policy") == set(get_args(NormPolicy))
    assert words_of("tuned") == set(get_args(Tuned))
    assert words_of("strategy") < set(get_args(Strategy))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("strategy", "scratch", "linear_probe or lp_ft"),
        ("frozen_stages", 10, "a whole number from 0 to 9"),
        ("frozen_stages", True, "a whole number from 0 to 9"),
        ("dropped_stages", 9, "a whole number from 0 to 8"),
        ("views", 65, "a whole number from 0 to 64"),
        ("views", 1.5, "a whole number from 0 to 64"),
        ("head_lr", 0, "a number above 0, at most 1"),
        ("backbone_lr", 2.0, "a number above 0, at most 1"),
        ("stage_decay", "1", "a number above 0, at most 1"),
        ("dropout", 1.0, "a number from 0 to below 1"),
        ("l2_sp", -0.1, "a number from 0 to below 1"),
        ("mix", 1, "True or False"),
        ("read", "some", "last or all"),
    ],
)
def test_the_range_of_a_field_is_said(resnet, field, value, expected):
    with pytest.raises(ConfigError, match=rf"^plan: {field} is .*; expected {expected}\.$"):
        plan(resnet, **{field: value})
