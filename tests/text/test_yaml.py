"""What is written in a YAML file is what a study gets, or the error says why not."""

from __future__ import annotations

import typing
from pathlib import Path
from types import NoneType

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from medtransfer.config.arm import RecipeSettings
from medtransfer.config.study_config import StudyConfig, load_config, make_choices, make_config
from medtransfer.errors import ConfigError
from medtransfer.text.section import Section
from medtransfer.text.yaml import DEEPEST, LARGEST_BYTES

from yaml_mutants import CONFIG, Mutant, try_mutant, yaml_mutants
from yaml_mutants import settings as mutant_settings

COHORT = "cohort: {manifest: m.csv, labels: [a]}\n"
ARMS = "arms: {a: {backbone: resnet18}}\n"
WORDS = (
    "yes",
    "No",
    "on",
    "OFF",
    "true",
    "y",
    "n",
    "007",
    "1",
    "1e3",
    "1_000",
    "0x1F",
    "2020-01-01",
    "12:30",
    "12:30:45",
    ".5",
    "=",
    "<<",
)


def read(tmp_path: Path, content: str | bytes, *overrides: str) -> StudyConfig:
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_config(path, overrides)


def refusal(tmp_path: Path, content: str | bytes, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, content, *overrides)
    assert overrides or str(tmp_path / "c.yaml") in str(caught.value)
    return str(caught.value)


# Text is taken as it is written.


@pytest.mark.parametrize("word", [*WORDS, "null", "~"])
def test_words_of_yaml_are_names_where_text_is_meant(tmp_path, word):
    config = read(
        tmp_path,
        f"cohort:\n  classes: [{word}, other]\n  positive: other\n{ARMS}evaluate: {{subgroups: "
        f"[{word}]}}\n",
    )
    assert config.cohort.classes == (word, "other")
    assert config.evaluate.subgroups == (word,)
    name = word.replace(":", "-") if word not in {"~", "<<"} else "x"  # of a folder, and no merge
    assert (
        read(tmp_path, f"{COHORT}arms: {{{name}: {{backbone: {word}}}}}\n").arms[name].backbone
        == word
    )


@pytest.mark.parametrize("word", WORDS)
def test_one_text_is_a_list_of_one_and_overrides_follow_the_same_rule(tmp_path, word):
    config = read(
        tmp_path,
        f"cohort:\n  manifest: m.csv\n  labels: {word}\n  boxes: b.csv\n  kinds: {word}\n{ARMS}",
    )
    assert config.cohort.labels == config.cohort.kinds == (word,)
    assert read(
        tmp_path, f"cohort: {{manifest: m.csv, labels: a}}\n{ARMS}", f"cohort.labels=[{word}]"
    ).cohort.labels == (word,)
    assert (
        read(
            tmp_path, f"cohort: {{classes: [{word}, b]}}\n{ARMS}", f"cohort.positive={word}"
        ).cohort.positive
        == word
    )
    assert make_choices({}, [f"subgroups={word}", f"weight={word}"]).model_dump(
        include={"subgroups", "weight"}
    ) == {
        "subgroups": (word,),
        "weight": word,
    }


@pytest.mark.parametrize("nothing", ["", "null", "~", "Null"])
def test_an_optional_text_is_unset_by_nothing_and_set_by_quotes(tmp_path, nothing):
    base = f"cohort:\n  classes: [a, b]\n  positive: {{}}\n{ARMS}protocol:\n  leave_out: {{}}\n".replace(  # noqa: E501
        "{}", "{0}"
    ).replace(ARMS, "")
    assert read(tmp_path, base.format(nothing) + ARMS).cohort.positive is None
    assert read(tmp_path, base.format(nothing) + ARMS).protocol.leave_out is None
    assert read(tmp_path, base.format(f"'{nothing}'") + ARMS).cohort.positive == nothing


def test_one_number_is_a_list_of_one(tmp_path):
    content = (
        f"{COHORT}{ARMS}protocol: {{seeds: 3}}\nevaluate: {{prevalences: 0.1}}\nreport: "
        f"{{figures: png}}\n"
    )
    config = read(tmp_path, content, "learning_curve=20", "arms.a.recipe={mean: 0.5, std: 1}")
    assert (config.protocol.seeds, config.evaluate.prevalences, config.report.figures) == (
        (3,),
        (0.1,),
        ("png",),
    )
    assert config.learning_curve.sizes == (20,)
    assert config.arms["a"].recipe == RecipeSettings(mean=(0.5,), std=(1.0,))
    assert make_config(
        {"cohort": {"manifest": "m", "labels": "a"}, "arms": {"a": {"backbone": "b"}}}
    ).cohort.labels == ("a",)


# The type of a setting decides, whichever it is.

TRUE, FALSE, NOTHING = (
    ("yes", "Yes", "ON", "on", "true", "TRUE"),
    ("no", "NO", "Off", "off", "false"),
    ("", "null", "~", "NULL"),
)
BASES = {
    "cohort.classes": {"cohort": {}},
    "cohort.positive": {"cohort": {"classes": ["a", "b"]}},
    "cohort.kinds": {"cohort": {"manifest": "m.csv", "labels": ["a"], "boxes": "b.csv"}},
    "cohort.patient": {"task": "detection", "cohort": {"boxes": "yolo"}},
    "cohort.parts": {"task": "detection", "cohort": {"boxes": "yolo"}},
    "cohort.unnamed": {"task": "detection", "cohort": {"boxes": "yolo", "patient": "x"}},
    "arms.a.recipe.mean": {"arms": {"a": {"backbone": "b", "recipe": {"std": [1, 1][:1]}}}},
    "arms.a.recipe.std": {"arms": {"a": {"backbone": "b", "recipe": {"mean": [1]}}}},
    "plan.finest": {"task": "detection", "cohort": {"manifest": "m.csv", "boxes": "yolo"}},
    "arms.a.plan.finest": {"task": "detection", "cohort": {"manifest": "m.csv", "boxes": "yolo"}},
    "task": {"cohort": {"manifest": "m.csv", "labels": ["a"], "boxes": "yolo"}},
}


def parts_of(kind: typing.Any) -> list[typing.Any]:
    """The types an annotation admits, one by one."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return parts_of(args[0])
    return (
        [part for arg in args for part in parts_of(arg)]
        if origin in {typing.Union, type(int | None)}
        else [kind]
    )


def fields_of(
    section: type[Section], path: str = ""
) -> typing.Iterator[tuple[str, list[typing.Any]]]:
    for name, field in section.model_fields.items():
        kinds = parts_of(field.annotation)
        if typing.get_origin(kinds[0]) is dict and isinstance(typing.get_args(kinds[0])[1], type):
            name, kinds = f"{name}.a", parts_of(typing.get_args(kinds[0])[1])  # noqa: PLW2901
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        yield from fields_of(below[0], f"{path}{name}.") if below else [(f"{path}{name}", kinds)]


def candidates(kinds: list[typing.Any]) -> typing.Iterator[tuple[str, typing.Any]]:
    """What is written, and the value that is meant."""
    text = {str, Path}.intersection(kind for kind in kinds if typing.get_origin(kind) is None)
    for kind in kinds:
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind in {str, Path}:
            yield from ((word, word) for word in WORDS)
            yield "percentile", "percentile"
        elif kind is NoneType:
            yield from ((word, None) for word in NOTHING)
        elif kind is bool or (
            origin is typing.Literal and True in args and bool in map(type, args)
        ):
            yield from [*((word, True) for word in TRUE), *((word, False) for word in FALSE)]
        elif kind in {int, float}:
            numbers = [
                ("1", 1),
                ("3", 3),
                ("+64", 64),
                ("007", 7),
                ("1_000", 1000),
                ("0x40", 64),
                ("2e2", 200.0),
                ("-1", -1),
            ]
            decimals = [("0.5", 0.5), (".25", 0.25), ("1e-3", 0.001), ("1.5E-1", 0.15), ("1.", 1.0)]
            yield from [*numbers, *(decimals if kind is float else [])]
        elif origin in {tuple, list} and args[0] is not typing.Any:
            parts = parts_of(args[0])
            words = [pair for pair in candidates(parts) if pair[1] is not None]
            yield from ((f"[{word}]", [value]) for word, value in words)
            yield from (pair for pair in words if not text)
            yield f"[{words[0][0]}, {words[-1][0]}]", [words[0][1], words[-1][1]]
        elif origin is dict:
            yield from (
                (f"{{{word}: {key}}}", {word: key})
                for word in WORDS
                if word != "<<"
                for key, _ in candidates([args[1]])
            )
        if origin is typing.Literal:
            yield from ((str(word), word) for word in args if not isinstance(word, bool))


def outcome(make: typing.Callable[[], StudyConfig]) -> StudyConfig | str:
    try:
        return make()
    except ConfigError as error:
        return str(error).partition(":")[2].replace("c.yaml", "")


@pytest.mark.parametrize(
    ("path", "kinds"),
    [*fields_of(StudyConfig)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_in_yaml_is_the_setting_in_python(tmp_path, path, kinds):
    base = {
        "cohort": {"manifest": "m.csv", "labels": ["a"]},
        "arms": {"a": {"backbone": "b"}},
        **BASES.get(path, {}),
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(base))
    *sections, name = path.split(".")
    valid = 0
    for word, value in candidates(kinds):
        values = yaml.safe_load(yaml.safe_dump(base))
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
        written = outcome(lambda: load_config(tmp_path / "c.yaml", [f"{path}={word}"]))  # noqa: B023
        assert written == outcome(lambda: make_config(values, str(tmp_path / "c.yaml"))), (  # noqa: B023
            path,
            word,
        )
        valid += isinstance(written, StudyConfig)
    assert valid, path


@pytest.mark.parametrize(
    ("written", "window"),
    [
        ("lung", "lung"),
        ("[40, 400]", (40.0, 400.0)),
        ("[-600, 1.5e3]", (-600.0, 1500.0)),
        ("[lung, [40, 400], bone]", ("lung", (40.0, 400.0), "bone")),
    ],
)
def test_windows_are_names_and_numbers(tmp_path, written, window):
    assert (
        read(
            tmp_path, f"cohort: {{manifest: m, labels: a}}\n{ARMS}image: {{window: {written}}}\n"
        ).image.window
        == window
    )


def test_weights_with_a_space_behind_their_colon(tmp_path):
    base = f"cohort: {{manifest: m, labels: a}}\n{ARMS}"
    assert read(tmp_path, base, "arms.a.weights=file: 007.pth").arms["a"].weights == "file:007.pth"
    assert "radimagenet:PATH" in refusal(tmp_path, base, "arms.a.weights={radimagenet: }")
    assert read(tmp_path, base, "arms.a.weights=None").arms["a"].weights is None


# The home folder.


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = read(
        tmp_path,
        "task: detection\ncohort: {root: ~/x, manifest: ~/m.csv, boxes: 'masks:~/b'}\n"
        "arms: {a: {backbone: b, weights: file:~/w.pth}, b: {backbone: b, weights: 'study:~'}, c: "
        "{backbone: b, weights: "
        "radimagenet:~/r}}\n",
    )
    assert (config.cohort.root, config.cohort.manifest) == (
        Path("/home/me/x"),
        Path("/home/me/m.csv"),
    )
    assert config.cohort.boxes == "masks:/home/me/b"
    assert [arm.weights for arm in config.arms.values()] == [
        "file:/home/me/w.pth",
        "study:/home/me",
        "radimagenet:/home/me/r",
    ]
    for boxes, opened in (
        ("~/b.csv", "/home/me/b.csv"),
        ("yolo", "yolo"),
        ("a~b.csv", "a~b.csv"),
        ("masks:a~", "masks:a~"),
    ):
        assert (
            read(
                tmp_path, f"cohort: {{manifest: m, boxes: '{boxes}', labels: a}}\n{ARMS}"
            ).cohort.boxes
            == opened
        )
    assert read(
        tmp_path, f"cohort: {{root: ~, manifest: m, labels: a}}\n{ARMS}"
    ).cohort.root == Path("/home/me")
    assert make_config(
        {"cohort": {"root": Path("~/x"), "classes": ["a", "b"]}, "arms": {"a": {"backbone": "b"}}}
    ).cohort.root == Path("/home/me/x")
    assert read(tmp_path, config.to_yaml()) == config
    assert "not known here" in refusal(
        tmp_path, f"cohort: {{root: ~nobody-of-this-name/x, classes: [a, b]}}\n{ARMS}"
    )


# What disappears in YAML without a word.


def test_a_key_given_twice_is_refused_with_its_lines(tmp_path):
    message = refusal(
        tmp_path,
        f"{COHORT}{ARMS}image:\n  size: 64\n  slices: 3\n  size: 96\nprotocol: {{folds: 3, folds: "
        f"4}}\nimage:\n",
    )
    assert message.count("\n  - ") == 3
    assert "size: is given twice, in lines 4 and 6; keep one" in message
    assert "folds: is given twice, in line 7; keep one" in message
    assert "image: is given twice, in lines 3 and 8" in message
    assert "is given 3 times, in lines 1, 2 and 3" in refusal(tmp_path, "1: a\n\"1\": b\n'1': c\n")
    assert "is given 9 times, first in lines 1, 2, 3 and 4; keep one" in refusal(
        tmp_path, "a: b\n" * 9
    )
    assert "twice" in refusal(tmp_path, COHORT + ARMS, "image={size: 64, size: 96}")


def test_anchors_aliases_and_merges_are_read(tmp_path):
    content = (
        f"{COHORT}arms:\n  a: &a {{backbone: b, weights: imagenet}}\n  b: *a\n  c:\n    <<: *a\n  "
        "  weights: none\n"
        "  d: {<<: [*a, {channels: 1}], budget: 2}\n"
    )
    config = read(tmp_path, content, "arms.b.channels=1")
    assert [arm.weights for arm in config.arms.values()] == [
        "imagenet",
        "imagenet",
        None,
        "imagenet",
    ]
    assert [arm.channels for arm in config.arms.values()] == [
        3,
        1,
        3,
        1,
    ]  # an override is of one arm, whatever it shares
    assert config.arms["d"].budget == 2
    assert read(
        tmp_path,
        "cohort: {manifest: m, labels: [!!str 7, !!str null]}\nimage: {size: !!int '64'}\n" + ARMS,
    ).cohort.labels == (
        "7",
        "null",
    )


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_encoding_with_one_reading_is_read(tmp_path, encoding, ends):
    content = f"cohort: {{manifest: m.csv, labels: [tumör]}}\n{ARMS}image:\n  size:\t64\t# a tab\n\t\n  slices: 3\n".replace(  # noqa: E501
        "\n", ends
    )
    config = read(tmp_path, content.encode(encoding))
    assert (config.cohort.labels, config.image.size, config.image.slices) == (("tumör",), 64, 3)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (f"{COHORT}---\n{ARMS}", "line 2: a line of --- begins a second document"),
        (f"{COHORT}image:\n\tsize: 64\n", "line 3: the line is indented with a tab"),
        (f"{COHORT}image:\n  size: 64\n\tslices: 3\n", "line 4: the line is indented with a tab"),
        (
            f"{COHORT}image:\n  size:64\n  slices: 3\n",
            "line 3: a space is missing after the colon: write `size: 64`",
        ),
        (
            f"{COHORT}image:\n  slices: 3\n  size:64\n{ARMS}",
            "line 4: a space is missing after the colon: write `size: 64`",
        ),
        (
            f'{COHORT}image:\n  "size":64\n',
            'line 3: a space is missing after the colon: write `"size": 64`',
        ),
        (
            f"{COHORT}{ARMS}image:\n  size:64\n",
            "image: is a section; a space is missing after the colon: write `size: 64`",
        ),
        (
            f"{COHORT}{ARMS}image: {{size:64}}\n",
            "image.size:64: a space is missing after the colon: write `size: 64`",
        ),
        (
            f"{COHORT}{ARMS}task:detection\n",
            "line 3: a space is missing after the colon: write `task: detection`",
        ),
        (
            "task:detection\n",
            (
                "found the text 'task:detection'; a space is missing after the colon: write `task: "
                "detection`"
            ),
        ),
        (
            'cohort: {root: "C:\\data", classes: [a, b]}\n',
            "line 1: a backslash in double quotes begins an escape",
        ),
        (
            'cohort: {root: "C:\\Users", classes: [a, b]}\n',
            "line 1: a backslash in double quotes begins an escape",
        ),
        (
            f'cohort: {{root: "C:\\new\\test", classes: [a, b]}}\n{ARMS}',
            "cohort.root: 'C:\\new\\test' holds a control character",
        ),
        ("cohort: {labels: [tumör]}\n".encode("latin-1"), "line 1 is not UTF-8"),
        (b"\xff\xfe\x00\xd8\x00", "is not UTF-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not UTF-8"),
        ("cohort: \x01\n", "line 1: it holds a control character"),
        ("", "found nothing"),
        ("# nothing yet\n", "found nothing"),
        ("- 1\n", "found a list"),
        ("big\n", "found the text 'big'"),
        (
            f"{COHORT}{ARMS}image: big\n",
            "image: is a section; write its keys below it, each as `key: value` (found 'big')",
        ),
        (f"{COHORT}arms: [a, b]\n", "arms: is a section; write its keys below it"),
        (f"{COHORT}arms: {{a: resnet18}}\n", "arms.a: is a section; write its keys below it"),
        (
            f"{COHORT}{ARMS}image: {{size: }}\n",
            "image.size: has no value; write one, or leave the key out",
        ),
        (f"cohort:\n  classes: [a, b]\n  labels:\n{ARMS}", "cohort.labels: has no value"),
        (f"cohort:\n  classes:\n  - a\n  -\n{ARMS}", "cohort.classes.1: has no value"),
        (
            f"cohort:\n  classes:\n  - a\n   - b\n{ARMS}",
            "line 4: the item of a list is indented otherwise",
        ),
        (f"cohort:\n  classes: a\n  - b\n{ARMS}", "line 3: the "),
        (
            f"cohort:\n  classes: a\n   - b\n{ARMS}",
            "line 3: the item of a list is indented otherwise",
        ),
        ("cohort:\n  patient: *.dcm\n", "line 2: & and * refer to another part of the file"),
        ("cohort:\n  patient: *dcm\n", "line 2: & and * refer to another part of the file"),
        ("cohort:\n  patient: [0-9]+\n", "line 2: text behind a closed quote or bracket"),
        ("cohort:\n  positive: 'a' b\n", "line 2: text behind a closed quote or bracket"),
        ("cohort:\n  positive: @a\n", "line 2: no value begins with the character '@'"),
        ("cohort:\n  positive: >5\n", "line 2: | and > begin a text of several lines"),
        ("cohort:\n  positive: > 5\n", "line 2: | and > begin a text of several lines"),
        ("cohort:\n  positive: >50\n", "line 2: | and > begin a text of several lines"),
        ("cohort:\n  positive: !a b\n", "line 2: ! begins a type"),
        ("cohort:\n  positive: a: b\n", "line 2: a second colon"),
        (
            "cohort:\n  positive: 'a\n  labels: [b]\n",
            "line 2: the quote that is opened there is never closed",
        ),
        (
            "cohort:\n  labels: [a, b\nimage: {}\n",
            "line 2: the bracket that is opened there is not closed",
        ),
        ("image\n  size: 64\n", "line 1: there is no colon"),
        ("image:\n  slices: 3\n  size 64\narms: {}\n", "line 3: there is no colon"),
        ("image:\n  size: 64\n    slices: 3\n", "line 3: the line is indented otherwise"),
        ("image:\n    size: 64\n  slices: 3\n", "line 3: the line is indented otherwise"),
        ("image: {{size}}\n", "line 1: a key is a list or a mapping"),
        ("image: {size: !!int big}\n", "not valid YAML"),
        ("image: {size: !!bool big}\n", "not valid YAML"),
        ('image: {size: "\\UFFFFFFFF"}\n', "not valid YAML"),
        ("a: &a [1]\nb: &a [2]\n", "line 2: the name behind & is given to another part"),
    ],
)
def test_the_message_names_the_true_cause(tmp_path, content, cause):
    message = refusal(tmp_path, content)
    assert cause in message
    assert "\n\n" not in message and "unicode string" not in message


def test_a_comment_in_an_override_is_refused(tmp_path):
    base = f"cohort: {{classes: [a, b]}}\n{ARMS}"
    for value in ("#1", "grade #1"):
        assert "# begins a comment" in refusal(tmp_path, base, f"cohort.positive={value}")
    assert read(tmp_path, base, "cohort.positive='grade #1'").cohort.positive == "grade #1"
    assert read(tmp_path, base, "cohort.positive=a#1").cohort.positive == "a#1"


def test_an_empty_section_is_its_defaults(tmp_path):
    for nothing in ("", " null", " ~"):
        config = read(
            tmp_path,
            f"{COHORT}{ARMS}image:{nothing}\nplan:{nothing}\nlearning_curve:{nothing}\n",
            "image.slices=3",
        )
        assert config.model_copy(update={"image": None}) == read(
            tmp_path, COHORT + ARMS
        ).model_copy(update={"image": None})
        assert (config.image.size, config.image.slices) == (128, 3)


def test_a_number_too_long_to_be_written_is_refused(tmp_path):
    for number in ("9" * 5000, f"0x{'f' * 5000}", f"!!int 0x{'f' * 5000}"):
        assert "image.size: " in refusal(tmp_path, f"{COHORT}{ARMS}image: {{size: {number}}}\n")


def test_unknown_keys_are_named_wherever_they_are(tmp_path):
    assert "arms.a.recipe.men: unknown key; did you mean mean?" in refusal(
        tmp_path, COHORT + ARMS, "arms.a.recipe={men: 1, std: 1}"
    )
    assert "arms.a.plan.veiws: unknown key; did you mean views?" in refusal(
        tmp_path, COHORT + ARMS, "arms.a.plan.veiws=1"
    )
    assert "a.b: unknown key" not in refusal(tmp_path, COHORT + ARMS, ".".join(["a"] * 2000) + "=1")
    assert "arms.a.backbone" in refusal(tmp_path, COHORT + ARMS, "arms.a.backbone={}")


# What fills the memory.


@pytest.mark.parametrize(
    "content",
    [
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
        "a0: &a0 {x: y}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: v}}\n" for i in range(1, 60)),
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 400)),
        "a: " + "[" * 100_000,
        "a: " + "{a: " * 100_000,
        "".join(f"{' ' * i}a:\n" for i in range(1000)),
        "- " * 50_000,
        "? " * 50_000,
        "a: &a [*a]\n",
        "a: &a {<<: *a}\n",
        "a: [" + "x, " * 150_000 + "]\n",
        "#" * (LARGEST_BYTES + 1),
    ],
    ids=[
        "laughs",
        "merges",
        "chain",
        "brackets",
        "braces",
        "indents",
        "dashes",
        "questions",
        "loop",
        "merged loop",
        "long",
        "large",
    ],
)
def test_bombs_are_refused(tmp_path, content):
    message = refusal(tmp_path, content)
    assert len(message) < 500
    assert any(
        cause in message
        for cause in (
            f"more than {DEEPEST} levels",
            "stands within what it stands for",
            "bytes, so it is no",
        )
    )


# There and back.

TEXT = st.one_of(
    st.text(),
    st.text(st.sampled_from(" :#'\"~-?[]{}\n\r\t\\\x85\u2028é,&*!|>%@`")),
    st.sampled_from([*WORDS, "null", "~", "", " a ", "a: b"]),
)
NAME = TEXT.filter(
    lambda text: (
        text == text.strip() and text not in {"", ".", ".."} and not set(text) & set('/\\:*?"<>|')
    )
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(labels=st.lists(TEXT, min_size=1, max_size=4), texts=st.tuples(*[TEXT] * 8), arm=NAME)
def test_every_text_is_read_back_as_it_was(tmp_path, labels, texts, arm):
    positive, leave_out, weight, patient, backbone, weights, root, boxes = texts
    sections = {
        "protocol": {"leave_out": leave_out},
        "evaluate": {"subgroups": labels, "weight": weight},
    }
    try:
        config = make_config(
            {
                "cohort": {
                    "root": root,
                    "classes": labels,
                    "positive": positive,
                    "boxes": boxes,
                    "kinds": labels,
                },
                "arms": {arm: {"backbone": backbone, "weights": weights}},
                **sections,
            }
        )
    except ConfigError as error:
        assume(
            "control character" not in str(error)
            and "home folder" not in str(error)
            and "features" not in str(error)
        )
        raise
    assert read(tmp_path, config.to_yaml()) == config
    assert (
        make_config(yaml.safe_load(config.to_yaml())) == config
    )  # readers that know nothing of this one
    given = {"boxes": "yolo", "patient": patient, "parts": dict.fromkeys(labels, "train")}
    detection = make_config(
        {"task": "detection", "cohort": given, "arms": {arm: {"backbone": "b"}}}
    )
    assert read(tmp_path, detection.to_yaml()) == detection


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    numbers=st.lists(st.floats(1e-9, 0.999), min_size=1, max_size=4),
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4, unique=True),
    window=st.tuples(st.floats(-1e4, 1e4), st.floats(1e-6, 1e4)),
    truth=st.booleans(),
)
def test_every_number_is_read_back_as_it_was(tmp_path, numbers, seeds, window, truth):
    values = {
        "cohort": {"manifest": "m.csv", "labels": ["a"], "skip_unreadable": truth},
        "image": {
            "window": ["lung", window, window],
            "slice_spacing": numbers[0],
            "spacing": numbers[0],
        },
        "arms": {
            "a": {
                "backbone": "b",
                "budget": numbers[0],
                "recipe": {"mean": numbers, "std": numbers},
                "plan": {"mix": truth},
            }
        },
        "protocol": {"seeds": seeds},
        "train": {"weight_decay": numbers[0], "compile": truth},
        "evaluate": {"prevalences": numbers, "sensitivity": None},
    }
    config = make_config(values)
    assert read(tmp_path, config.to_yaml()) == config


def test_a_long_text_that_is_folded_is_read_back(tmp_path):
    long = f"{'a' * 90} - {'b' * 90} -- # c"
    config = make_config(
        {
            "cohort": {"root": long, "manifest": "m.csv", "labels": [long, f"- {long}"]},
            "arms": {"a": {"backbone": long}},
        }
    )
    assert (
        len(config.to_yaml().splitlines())
        > len(read(tmp_path, COHORT + ARMS).to_yaml().splitlines()) + 2
    )
    assert read(tmp_path, config.to_yaml()) == config


# Whatever is done to a configuration.


def test_damaged_configurations_are_read_or_refused(tmp_path):
    read(tmp_path, CONFIG)
    mutants = list(yaml_mutants(0, 154))
    assert sum(bool(mutant.lost) for mutant in mutants) >= 40
    assert len({mutant.content for mutant in mutants}) > 140
    assert len(mutant_settings()) > 35
    assert [fault for mutant in mutants if (fault := try_mutant(mutant, tmp_path))] == []


def test_a_lost_setting_would_be_seen(tmp_path):
    assert "though its line is gone" in try_mutant(
        Mutant(CONFIG.encode(), "nothing", ("image", "size")), tmp_path
    )
    assert "unknown key sise was taken" in try_mutant(
        Mutant(CONFIG.encode(), "nothing", ("image", "size"), "sise"), tmp_path
    )
    changed = CONFIG.replace("  size: 96\n", "").replace("slices: 12", "slices: 13")
    assert "other settings are changed" in try_mutant(
        Mutant(changed.encode(), "two lines", ("image", "size")), tmp_path
    )
