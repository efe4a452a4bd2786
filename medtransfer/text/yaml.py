"""The text of a configuration: from the bytes of a YAML file to plain values.

YAML takes unquoted text by its looks: `no` is false, 007 is 7, 12:30 is 750, 2020-01-01 is a date.
Here it stays text as it was written, and the type of its setting says what it means.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from yaml.constructor import ConstructorError

from medtransfer.errors import ConfigError, list_unusable

# A configuration is a page of text. Whatever is larger is another file, or made to fill the memory.
LARGEST_BYTES = 1_000_000
MOST_VALUES = 100_000
DEEPEST = 40
NOTHING = {"", "~", "null", "Null", "NULL"}

# Column behind which PyYAML folds a text.
_FOLDED = 80
_TAG = "tag:medtransfer,unquoted"
_MERGE = "tag:yaml.org,2002:merge"
_TRUTH = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_NO_SPACE = re.compile(r"""\s*((["']?)[A-Za-z_][\w.-]+\2):(?!//)(?=\S)""")
_BLANK_LINE = re.compile("[\t ]*[\0#\r\n\x85\u2028\u2029]")
_DASH = re.compile(r"([^\r\n]*)(\r\n?|\n)\s*- ")
_NUMBER = re.compile(r"[-+]?\.?\d[\w.+-]*", re.ASCII)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Unquoted(str):
    """Text that stood without quotes; see `settle`."""


def decode(content: bytes, where: str) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 as Windows writes them.

    Raises:
        ConfigError: too large, or in another encoding; `where` names the file.
    """
    if len(content) > LARGEST_BYTES:
        raise ConfigError(
            f"{where}: has more than {LARGEST_BYTES:,} bytes, so it is no configuration. Name the "
            "YAML file of the study."
        )
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(content) % 2 == 0 and 3 * content.count(0) > len(content):
        encoding = "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{where}: line {line} is not {encoding.upper().removesuffix('-SIG')} (byte "
            f"{error.start}). Save the file as UTF-8."
        ) from error


def parse(text: str, where: str, comments: bool = True) -> Any:
    """The values of a YAML text, mappings and lists as they are, unquoted text as `Unquoted`.

    Args:
        text: one document.
        where: names it in messages.
        comments: whether `#` may begin one; else it is refused there.

    Raises:
        ConfigError: not YAML, a key given twice, or more than a configuration can hold; with the
            line and the remedy.
    """
    try:
        loader = _Loader(text)
        loader.comments = comments
        node = loader.get_single_node()
        values = Unquoted() if node is None else loader.construct_document(node)
    # PyYAML lets through what Python says of a wrong `!!int` or `!!bool`, or of an escape beyond
    # Unicode.
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        TypeError,
    ) as error:
        raise ConfigError(f"{where}: not valid YAML: {_explain(error, text)}") from error
    if loader.faults:
        raise ConfigError(list_unusable(where, loader.faults))
    return values


def write(values: Any) -> str:
    """YAML that `parse` and every other reader of YAML reads back as these values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def settle(value: Any, kind: Any) -> Any:
    """Values with their unquoted text taken as the type of each setting has it.

    Where text is meant, it is the text as written; where none can be, numbers, `yes`, `off` and
    `null` are what YAML says. `null`, `~` and nothing at all are None where a setting may be None.

    Args:
        value: of `parse`; other values stay as they are.
        kind: type of the setting: a section, or an annotation.
    """
    kinds = _alternatives(kind)
    if isinstance(value, Unquoted):
        return _read_unquoted(str(value), kinds)
    if isinstance(value, dict):
        plain = {
            str(key) if isinstance(key, Unquoted) else key: item for key, item in value.items()
        }
        return {key: settle(item, _kind_below(key, kind)) for key, item in plain.items()}
    if type(value) in {list, tuple, set}:
        item_kind: Any = Union[_of_items(kinds) or (Any,)]  # noqa: UP007
        return type(value)(settle(item, item_kind) for item in value)
    return value


def holds_items(kind: Any) -> bool:
    """Whether a setting is a list and nothing else, so that one value alone is a list of one."""
    kinds = [one for one in _alternatives(kind) if one is not NoneType]
    return bool(kinds) and all(_is_list(one) for one in kinds)


def known_keys(place: Sequence[Any], kind: Any) -> list[str]:
    """The keys of the section at this place of a configuration, or in a part of it, of which `kind`
    is the type.
    """
    for key in place:
        kind = _kind_below(key, kind)
    return [name for one in _alternatives(kind) if _is_section(one) for name in one.model_fields]


_Place = TypeVar("_Place", str, Path)


def open_home(place: _Place) -> _Place:
    """A path, alone or behind `WORD:`, with the home folder in place of a `~` at its beginning.

    Raises:
        ValueError: nobody's home folder, or a path that no file can have.
    """
    text = str(place)
    if re.search(r"[\x00-\x1f]", text):
        raise ValueError(
            f"{text!r} holds a control character, as \\t and \\n make them in double quotes. Use "
            "single quotes, or none"
        )
    word, colon, path = text.partition(":")
    if text.startswith("~") or not path.startswith("~"):
        word, colon, path = "", "", text
    opened = os.path.expanduser(path)
    if opened.startswith("~"):
        raise ValueError(
            f"{path!r} names the home folder of a user who is not known here. Write the whole "
            "path, or ./~ for such a name"
        )
    return type(place)(f"{word}{colon}{opened}")


def lacks_space(text: str) -> str:
    """How `key:value` is to be written, where a text looks like that; else ""."""
    match = _NO_SPACE.match(text)
    return (
        f"a space is missing after the colon: write `{match[1]}: {text[match.end() :].strip()}`"
        if match
        else ""
    )


class _Dumper(yaml.SafeDumper):
    """Writes line breaks that YAML takes for others as escapes."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str",
        text,
        style='"' if re.search("[\r\x85\u2028\u2029]", text) else None,
    )


_Dumper.add_representer(str, _write_text)


class _Loader(yaml.SafeLoader):
    """Takes no unquoted text by its looks, and counts what aliases stand for before anything is
    made of it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.comments = True
        self.faults: list[str] = []
        self._values = self._depth = self._reached = 0
        self._extents: dict[str, tuple[int, int]] = {}

    def scan_to_next_token(self) -> None:
        begun = self.pointer
        super().scan_to_next_token()
        # Tabs are blanks like others, but for those that indent a block.
        while self.peek() == "\t" and (self.flow_level or self._is_apart()):
            while self.peek() in "\t ":
                self.forward()
            super().scan_to_next_token()
        if not self.comments and "#" in self.buffer[begun : self.pointer]:
            raise yaml.MarkedYAMLError(problem="found a comment", problem_mark=self.get_mark())

    def _is_apart(self) -> bool:
        before = self.buffer[self.pointer - self.column : self.pointer]
        return bool(before.strip(" \ufeff") or _BLANK_LINE.match(self.buffer, self.pointer))

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        alias, anchor, begun, outside = (
            isinstance(event, yaml.AliasEvent),
            event.anchor,
            self._values,
            self._reached,
        )
        self._depth += 1
        self._reached = self._depth
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="found nesting", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        if alias and anchor not in self._extents:
            raise yaml.MarkedYAMLError(
                problem="found an alias in itself", problem_mark=event.start_mark
            )
        values, height = self._extents[anchor] if alias else (1, 1)
        self._values += values
        self._reached = max(self._reached, self._depth + height - 1)
        if self._values > MOST_VALUES or self._reached > DEEPEST:
            raise yaml.MarkedYAMLError(problem="found nesting", problem_mark=event.start_mark)
        if anchor is not None and not alias:
            self._extents[anchor] = (self._values - begun, self._reached - self._depth + 1)
        self._reached = max(outside, self._reached)
        self._depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.style in {"|", ">"} and not node.value:
            raise yaml.MarkedYAMLError(
                problem="found an empty block scalar", problem_mark=node.start_mark
            )
        begun = node.start_mark
        dash = (
            _DASH.match(self.buffer, begun.index, node.end_mark.index)
            if node.style is None
            else None
        )
        # A text that was folded when it was written fills its first line.
        if dash and begun.column + len(dash[1]) <= _FOLDED:
            raise yaml.MarkedYAMLError(
                problem="found a dash", problem_mark=yaml.Mark("", 0, begun.line + 1, 0, "", 0)
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, list[int]] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines.setdefault(key.value, []).append(key.start_mark.line + 1)
        for name, given in lines.items():
            if len(given) > 1:
                several = sorted(set(given))
                where = (
                    f"lines {', '.join(map(str, several[:4][:-1]))} and {several[:4][-1]}"
                    if len(several) > 1
                    else f"line {given[0]}"
                )
                times = (
                    "twice, in"
                    if len(given) == 2
                    else f"{len(given)} times, {'first ' if len(several) > 4 else ''}in"
                )
                self.faults.append(f"{name[:60]}: is given {times} {where}; keep one")
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == _TAG and key.value == "<<":
                key.tag = _MERGE
        super().flatten_mapping(node)


_Loader.add_constructor(_TAG, lambda _, node: Unquoted(node.value))


def _read_unquoted(text: str, kinds: Sequence[Any]) -> Any:
    items = _of_items(kinds)
    words = [
        word for one in (*kinds, *items) if get_origin(one) is Literal for word in get_args(one)
    ]
    alone, among = (
        {str, Path}.intersection(scalars)
        for scalars in ([k for k in kinds if not _is_list(k)], items)
    )
    if not text or (text in NOTHING and (NoneType in kinds or not alone)):
        return None
    if alone or among or text in [word for word in words if isinstance(word, str)]:
        return text
    if (bool in kinds or any(isinstance(word, bool) for word in words)) and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    return _read_number(text)


def _read_number(text: str) -> int | float | str:
    readers: tuple[Callable[[str], int | float], ...] = (int, lambda digits: int(digits, 0), float)
    for reader in readers if _NUMBER.fullmatch(text) else ():
        try:
            return reader(text)
        except ValueError:
            continue
    return text


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in {Union, UnionType}:
        return [one for part in get_args(kind) for one in _alternatives(part)]
    return [kind]


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in {tuple, list, set, frozenset}


def _of_items(kinds: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(
        one
        for kind in kinds
        if _is_list(kind)
        for part in get_args(kind)
        if part is not ...
        for one in _alternatives(part)
    )


def _kind_below(key: Any, kind: Any) -> Any:
    for one in _alternatives(kind):
        if _is_section(one):
            return one.model_fields[key].annotation if key in one.model_fields else Any
        if get_origin(one) is dict:
            return get_args(one)[1]
    return kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


# What PyYAML says, and what it means to whoever wrote the file.
_CAUSES = (
    (r"character '\\t'", "the line is indented with a tab. Indent it with spaces"),
    (
        r"unknown escape|escape sequence",
        r"a backslash in double quotes begins an escape such as \n. Use single quotes, or none",
    ),
    (
        r"(character '.+') that cannot start",
        "no value begins with the {0}. Put the value in quotes",
    ),
    (
        r"alphabetic or numeric|undefined alias",
        (
            "& and * refer to another part of the file, and here is no such part. Put the text in "
            "quotes"
        ),
    ),
    (
        r"chomping|empty block|a comment or a line",
        "| and > begin a text of several lines, and here is none. Put the text in quotes",
    ),
    (
        r"constructor for the tag",
        "! begins a type, and there is none of this name. Put the text in quotes",
    ),
    (r"another document", "a line of --- begins a second document. Keep one in a file"),
    (r"an alias in itself", "an alias stands within what it stands for. Write out what is meant"),
    (
        r"found nesting",
        (
            f"more than {MOST_VALUES:,} values, aliases written out, or more than {DEEPEST} "
            "levels of "
            "nesting"
        ),
    ),
    (r"second occurrence", "the name behind & is given to another part further up. Choose another"),
    (
        r"found a dash",
        (
            "the item of a list is indented otherwise than the item above. Begin all items in the "
            "same column"
        ),
    ),
    (r"found a comment", "# begins a comment. Put the text in quotes"),
    (
        r"unhashable",
        "a key is a list or a mapping, as braces and brackets begin one. Put the text in quotes",
    ),
    (r"special characters", "it holds a control character, as files that are not text do"),
)


def _explain(error: Exception, text: str) -> str:
    problem, mark = (
        str(getattr(error, "problem", None) or getattr(error, "reason", error)),
        getattr(error, "problem_mark", None),
    )
    opened, lines = getattr(error, "context_mark", None), text.splitlines() or [""]
    # The end of a text lies behind its last line.
    number = (
        text.count("\n", 0, getattr(error, "position", 0))
        if mark is None
        else min(mark.line, len(lines) - 1)
    )
    line = f"line {number + 1}: " if mark is not None or isinstance(error, yaml.YAMLError) else ""
    for pattern, cause in _CAUSES:
        if match := re.search(pattern, problem):
            return f"{line}{cause.format(*match.groups())}."
    if mark is None or isinstance(error, ConstructorError):
        return f"{line}{problem}."
    begun = number if opened is None else opened.line
    if "end of stream" in problem and "quoted" in str(getattr(error, "context", "")):
        return f"line {begun + 1}: the quote that is opened there is never closed."
    return _explain_place(problem, lines, begun, number, mark.column)


def _explain_place(problem: str, lines: Sequence[str], begun: int, at: int, column: int) -> str:
    """What is wrong with an arrangement of lines: the first fault that people make and that is
    there.
    """
    before = next(
        (number for number in range(at - 1, -1, -1) if lines[number].split("#")[0].strip()), at
    )
    colon, key = "values are not allowed" in problem, "expected ':'" in problem
    for number in (*range(begun, at), before, at):
        if remedy := lacks_space(lines[number]):
            return f"line {number + 1}: {remedy}."
    line, remedy = at, f"{problem}. Put a text that holds signs of YAML in quotes"
    if "expected ',' or" in problem:
        line, remedy = (
            begun,
            (
                "the bracket that is opened there is not closed, or a comma is missing before line "
                f"{at + 1}"
            ),
        )
    elif colon and re.search(r":\s", lines[at][:column]):
        remedy = "a second colon. Put the text in quotes"
    elif (colon or key) and ":" not in lines[begun if key else before]:
        line, remedy = begun if key else before, "there is no colon. Write `key: value`"
    elif colon or re.search("block (mapping|sequence) start|'-'", problem):
        remedy = (
            "the line is indented otherwise than those it belongs to. Begin all keys of a "
            "section in the same column"
        )
    elif "'<scalar>'" in problem:
        remedy = "text behind a closed quote or bracket. Put the whole value in quotes"
    return f"line {line + 1}: {remedy}."
