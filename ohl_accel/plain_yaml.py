"""YAML files of a user's as plain data: null, booleans, numbers, text, lists and mappings, and nothing else.

A file may come from anywhere. How large it is, how deep it is nested, and how much its aliases expand to is bounded
before anything is made of it.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ohl_accel.errors import shortened

MAX_BYTES = 256 * 1024
"""Of a file: some thousand elements of a space, which is the largest thing that a recipe holds."""
_MAX_DEPTH = 50
_MAX_VALUES = 50_000
_MAX_DIGITS = 100
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, for plain data; a key that is given twice is noted instead of silently replaced."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does it, after noting the keys."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a single word", key_node.start_mark
                )
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in seen:
                self.duplicates.append(f"{shortened(key)}: given twice, in lines {seen[key]} and {line}")
            seen[key] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number that can be computed with and printed."""
        try:
            if len(node.value) > _MAX_DIGITS:
                raise ValueError(f"it has {len(node.value)} digits")
            if node.tag.endswith(":int"):
                return int(self.construct_yaml_int(node))
            return float(self.construct_yaml_float(node))
        except (ValueError, OverflowError, LookupError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"not a number: {shortened(node.value)} ({error})", node.start_mark
            ) from None

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        """true or false."""
        try:
            return bool(self.construct_yaml_bool(node))
        except LookupError:
            raise yaml.constructor.ConstructorError(
                None, None, f"not true or false: {shortened(node.value)}", node.start_mark
            ) from None


_constructors: Mapping[str | None, Any] = yaml.SafeLoader.yaml_constructors
_Loader.yaml_constructors = {
    tag: make
    for tag, make in _constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _PLAIN
}
_Loader.yaml_implicit_resolvers = {  # 2020-01-02 is text: nothing in a recipe is a date
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.construct_truth)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, is too large, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than the {MAX_BYTES} bytes that it may have")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse(text: str) -> tuple[Any, list[str]]:
    """The values of a YAML document, and messages about keys that are given twice.

    Raises:
        ValueError: if it is not YAML, not plain data, nested too deeply or expands to too much.
    """
    try:
        _check_size(text)
        loader = _Loader(text)
        try:
            values = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(_printable(shortened(str(error), 1000))) from None
    return values, loader.duplicates


def text_problems(values: Any, path: str = "", depth: int = 0) -> Iterator[str]:
    """What is wrong with text anywhere in plain values: control characters, or what is not Unicode."""
    if depth > _MAX_DEPTH:
        yield f"{path}: nested more than {_MAX_DEPTH} deep"
    elif isinstance(values, str):
        bad = next((letter for letter in values if _is_control(letter)), None)
        if bad is not None:
            yield f"{path or 'value'}: holds the character {bad!a}, not text: {shortened(ascii(values))}"
    elif isinstance(values, Mapping):
        for key, value in values.items():
            name = shortened(_printable(str(key)))
            if isinstance(key, str) and any(map(_is_control, key)):
                yield f"{path}: the key {name} holds characters that are not text"
            yield from text_problems(value, f"{path}.{name}" if path else name, depth + 1)
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from text_problems(value, f"{path}[{number}]", depth + 1)


def _is_control(letter: str) -> bool:
    return letter not in "\t\n" and unicodedata.category(letter) in ("Cc", "Cs")


def _printable(text: str) -> str:
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]", lambda found: ascii(found[0])[1:-1], text)


def _check_size(text: str) -> None:
    """Raise YAMLError if a document is deeper than it may be or, its aliases expanded, larger, or holds itself."""
    sizes: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = [(None, 0)]  # (anchor, values in it so far) of each collection
    for event in yaml.parse(text, yaml.SafeLoader):
        anchor, size = getattr(event, "anchor", None), 0
        match event:
            case yaml.CollectionStartEvent():
                open_ones.append((anchor, 1))
                if len(open_ones) > _MAX_DEPTH:
                    raise _refusal(f"nested more than {_MAX_DEPTH} deep", event)
            case yaml.CollectionEndEvent():
                anchor, size = open_ones.pop()
            case yaml.ScalarEvent():
                size = 1
            case yaml.AliasEvent():
                if any(anchor == holder for holder, _ in open_ones):
                    raise _refusal(f"{shortened(str(anchor))} holds itself", event)
                size = sizes.get(str(anchor), 1)
        if size:
            if anchor is not None and not isinstance(event, yaml.AliasEvent):
                sizes[anchor] = size
            holder, before = open_ones[-1]
            open_ones[-1] = (holder, before + size)
            if before + size > _MAX_VALUES:
                raise _refusal(f"it expands to more than {_MAX_VALUES} values", event)


def _refusal(problem: str, event: yaml.Event) -> yaml.YAMLError:
    line = "" if event.start_mark is None else f", in line {event.start_mark.line + 1}"
    return yaml.YAMLError(f"{problem}{line}")
