"""The configuration of a study: strict YAML, `a.b=c` overrides, every fault reported at once.

Only `study` and `cli` see these classes; all other parts take plain values.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from medtransfer.config.arm import Arm
from medtransfer.config.sections import (
    AuditSection,
    CohortSection,
    LearningCurveSection,
    PlanSection,
    ProtocolSection,
    ReportSection,
)
from medtransfer.data.grid.settings import Augment, ImageSettings
from medtransfer.errors import ConfigError, list_unusable
from medtransfer.evaluation.settings import HitRule, Settings
from medtransfer.files import FORMAT
from medtransfer.text import yaml as yaml_text
from medtransfer.text.section import Section
from medtransfer.training.settings import TrainSettings


class StudyConfig(Section):
    """A whole study: cohort, images, arms, protocol, plan, budget and evaluation."""

    format: int = Field(FORMAT, description="Of this file; leave it as it is.")
    task: Literal["classification", "detection"] = Field(
        "classification", description="Whether there is a lesion, or also where."
    )
    cohort: CohortSection
    image: ImageSettings = ImageSettings()
    augment: Augment = Augment()
    arms: dict[str, Arm] = Field(min_length=1)
    protocol: ProtocolSection = ProtocolSection()
    plan: PlanSection = PlanSection()
    train: TrainSettings = TrainSettings()
    learning_curve: LearningCurveSection = LearningCurveSection()
    evaluate: Settings = Settings()
    audit: AuditSection = AuditSection()
    report: ReportSection = ReportSection()
    detection: HitRule = HitRule()
    engine: Literal["local", "ray"] = Field(
        "local",
        description="Where runs are done: here, or on the Ray cluster that RAY_ADDRESS names.",
    )

    @field_validator("format")
    @classmethod
    def _readable(cls, number: int) -> int:
        if number != FORMAT:
            raise ValueError(
                f"is {number}, and this version of medtransfer reads format {FORMAT}; use the "
                "version that wrote it, or a later one"
            )
        return number

    @model_validator(mode="after")
    def _fits_task(self) -> StudyConfig:
        if self.task == "classification":
            if any(plan.finest for plan in (self.plan, *(arm.plan for arm in self.arms.values()))):
                raise ValueError(
                    "plan.finest: is of the pyramid of a detector; set task: detection, or leave "
                    "it out"
                )
            if (
                not self.cohort.labels
                and not self.cohort.classes
                and (self.cohort.manifest is None or self.cohort.manifest.suffix != ".npz")
            ):
                raise ValueError(
                    "cohort: classification needs labels or classes; with boxes alone, set task: "
                    "detection"
                )
            return self
        if self.cohort.boxes is None:
            raise ValueError("cohort.boxes: detection needs lesion boxes; say where they are")
        if self.cohort.classes or (
            self.cohort.manifest is not None and self.cohort.manifest.suffix.lower() == ".npz"
        ):
            raise ValueError(
                "cohort: detection takes a manifest, or all images below root; leave classes out"
            )
        idle = [name for name, arm in self.arms.items() if arm.kind == "features"]
        if idle:
            raise ValueError(
                f"arms.{idle[0]}: kind features classifies whole images; it finds no boxes"
            )
        if self.learning_curve.sizes:
            raise ValueError(
                "learning_curve: is of classification; run a detection study on smaller cohorts "
                "instead"
            )
        if self.plan.search:
            raise ValueError(
                "plan.search: its probes classify whole images; set plan.frozen_stages by hand "
                "for detection"
            )
        return self

    @field_validator("arms")
    @classmethod
    def _arm_names_are_folders(cls, value: dict[str, Arm]) -> dict[str, Arm]:
        for name in value:
            if (
                not name
                or name in {".", ".."}
                or any(c in name for c in '/\\:*?"<>|')
                or name != name.strip()
            ):
                raise ValueError(
                    f"the arm name {name!r} is used as a folder name: letters, digits, - and _ only"
                )
        return value

    def to_yaml(self) -> str:
        """The resolved configuration, all defaults written out."""
        return yaml_text.write(self.model_dump(mode="json"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Reads a YAML file, applies `a.b=c` overrides and validates the whole.

    A setting that is text is taken as it is written, so that `yes`, 007 and 2020-01-01 may be
    names; `~` at the beginning of a path is the home folder.

    Args:
        path: YAML file. Paths inside it are relative to the current folder.
        overrides: strings `section.key=value`, the value in YAML syntax.

    Raises:
        ConfigError: with every fault found, each with its key.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(yaml_text.LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({_reason(error)}). `medtransfer configs` lists the examples."
        ) from error
    values = yaml_text.parse(yaml_text.decode(content, str(path)), str(path))
    if not isinstance(values, dict):
        missing = (
            "nothing"
            if values == ""
            else "a list"
            if isinstance(values, list)
            else f"the text {str(values)[:60]!r}"
        )
        remedy = yaml_text.lacks_space(values) if isinstance(values, str) else ""
        raise ConfigError(
            f"{path}: expected sections such as `cohort:` and `arms:`, found "
            f"{missing}{remedy and '; '}{remedy}."
        )
    for override in overrides:
        _apply_override(values, override)
    return make_config(values, str(path))


def make_config(values: dict[str, Any], source: str = "configuration") -> StudyConfig:
    """Validates nested plain values. `source` names them in messages.

    Raises:
        ConfigError: with every fault found, each with its key.
    """
    return _validate(StudyConfig, values, source)


def make_choices(values: dict[str, Any], overrides: Sequence[str]) -> Settings:
    """The section `evaluate` alone, from plain values and `key=value` overrides.

    Raises:
        ConfigError: with every fault found, each with its key.
    """
    for override in overrides:
        _apply_override(values, override)
    return _validate(Settings, values, "evaluate")


def make_rule(values: dict[str, Any]) -> HitRule:
    """The section `detection` alone.

    Raises:
        ConfigError: with every fault found, each with its key.
    """
    return _validate(HitRule, values, "detection")


_Model = TypeVar("_Model", bound=Section)


def _validate(model: type[_Model], values: dict[str, Any], source: str) -> _Model:
    try:
        return model.model_validate(yaml_text.settle(values, model))
    except ValidationError as error:
        faults = [_describe_fault(item, model) for item in error.errors()]
        raise ConfigError(list_unusable(source, faults)) from error


def configs_folder() -> Path:
    """Folder of the example configurations: inside the installed package, else beside it in a
    checkout.
    """
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts) or len(parts) > yaml_text.DEEPEST:
        raise ConfigError(
            f"override {override!r}: expected section.key=value, such as image.size=224"
        )
    value = yaml_text.parse(text, f"override {override!r}", comments=False)
    section = values
    for part in parts[:-1]:
        below = section.get(part)
        if not isinstance(below, dict) and below not in (None, *yaml_text.NOTHING):
            raise ConfigError(f"override {override!r}: {part} is a value, not a section")
        # Aliases make several sections of one mapping, and an override is of one alone.
        section[part] = dict(below) if isinstance(below, dict) else {}
        section = section[part]
    section[parts[-1]] = value


def _describe_fault(item: Any, model: type[Section]) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "top level"
    if item["type"] == "extra_forbidden":
        known = yaml_text.known_keys(item["loc"][:-1], model)
        if remedy := yaml_text.lacks_space(str(item["loc"][-1])):
            return f"{where}: {remedy}"
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{where}: missing"
    if item["input"] is None and item["type"] != "value_error":
        return f"{where}: has no value; write one, or leave the key out"
    if item["type"] in {"model_type", "dict_type"}:
        given = item["input"]
        remedy = yaml_text.lacks_space(given) if isinstance(given, str) else ""
        if not remedy:
            remedy = f"write its keys below it, each as `key: value` (found {_shown(given)[:80]})"
        return f"{where}: is a section; {remedy}"
    message = item["msg"].removeprefix("Value error, ")
    shown = _shown(item["input"])
    return f"{where}: {message}" + (
        f" (found {shown})" if len(shown) < 80 and item["type"] != "value_error" else ""
    )


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes out no number of thousands of digits
        return "a number of thousands of digits"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
