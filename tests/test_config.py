from __future__ import annotations

import pytest
import yaml
from medtransfer.config.study_config import StudyConfig, configs_folder, load_config, make_config
from medtransfer.errors import ConfigError

MINIMAL = {
    "cohort": {"manifest": "m.csv", "labels": ["y"]},
    "arms": {"a": {"backbone": "resnet18"}},
}


def write(tmp_path, values):
    path = tmp_path / "c.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_defaults_are_written_out_and_read_back(tmp_path):
    config = make_config(MINIMAL)
    again = load_config(write(tmp_path, config.to_yaml()))
    assert again == config
    text = config.to_yaml()
    for key in ("folds: 5", "seeds:", "percentile", "bootstrap: 2000", "skip_unreadable: false"):
        assert key in text


def test_every_example_is_valid_and_states_its_command():
    files = sorted(configs_folder().glob("*.yaml"))
    assert len(files) >= 2
    for path in files:
        assert isinstance(load_config(path), StudyConfig)
        assert path.read_text().startswith("# medtransfer ")


def test_overrides_are_applied_in_yaml_syntax(tmp_path):
    config = load_config(
        write(tmp_path, MINIMAL),
        [
            "image.size=64",
            "image.window=[40, 400]",
            "protocol.seeds=[1, 2]",
            "arms.b={backbone: resnet34, weights: none}",
        ],
    )
    assert (config.image.size, config.image.window, config.protocol.seeds) == (
        64,
        (40.0, 400.0),
        (1, 2),
    )
    assert config.arms["b"].weights is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image.sise=64", "image.sise: unknown key; did you mean size"),
        ("imgae.size=64", "imgae: unknown key; did you mean image"),
        ("arms.a.weight=none", r"arms.a.weight: unknown key; did you mean weights"),
        ("image.size=big", "image.size: .*integer.*'big'"),
        ("image.size=7", "image.size: .*greater than or equal to 32"),
        ("image.window=lungs", "image.window"),
        ("image.window=[40, 0]", "window width must be above 0"),
        ("protocol.folds=1", "protocol.folds"),
        ("protocol.seeds=[1, 1]", "seeds must differ"),
        ("arms={}", "arms: .*at least 1"),
        ("arms.a.budget=0", "arms.a.budget: a number above 0, at most 100, or level, not 0"),
        (
            "arms.a.budget=levle",
            "arms.a.budget: a number above 0, at most 100, or level, not 'levle'",
        ),
        ("arms.f={kind: features, budget: 2}", "kind: features takes no budget"),
        ("plan.finest=4", "plan.finest: is of the pyramid of a detector"),
        ("arms.a.plan={finest: 4}", "plan.finest: is of the pyramid of a detector"),
        ("plan.finest=5", "plan.finest: .*4, 8 or 16"),
        ("arms.x/y={backbone: resnet18}", "used as a folder name"),
        ("cohort.classes=[a, b]", "either manifest .* or classes, not both"),
        ("cohort.labels=[]", "manifest needs labels"),
        ("image", "expected section.key=value"),
        ("image.size.x=1", "size is a value, not a section|image.size"),
        ("train.epochs=[", "not valid YAML"),
    ],
)
def test_faults_name_the_key_and_the_remedy(tmp_path, override, message):
    path = write(tmp_path, {**MINIMAL, "image": {"size": 64}})
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_all_faults_are_reported_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(
            write(tmp_path, MINIMAL), ["image.sise=1", "protocol.folds=0", "train.precision=fp8"]
        )
    message = str(caught.value)
    assert message.count("\n  - ") == 3
    assert all(key in message for key in ("image.sise", "protocol.folds", "train.precision"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "expected sections"), ("", "expected sections")],
)
def test_what_is_no_configuration_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_yaml_runs_no_code(tmp_path):
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write(tmp_path, "cohort: !!python/object/apply:os.system ['true']"))


def test_the_schema_describes_every_section():
    schema = StudyConfig.model_json_schema()
    sections = {
        "cohort",
        "image",
        "augment",
        "arms",
        "protocol",
        "plan",
        "train",
        "learning_curve",
        "evaluate",
        "audit",
        "report",
        "detection",
    }
    assert set(schema["properties"]) == {"format", "task", *sections, "engine"}
