"""YAML that people write, read within bounds: plain values only, and one clear line, with its number, for what is none.

Everything in kdstream that reads YAML reads it here; plain values are those that come back as they were when they are
written as YAML or JSON and read again.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdstream.errors import UserError

MOST_BYTES = 2**20
"""The largest file that is read: a recipe has a few hundred bytes."""
MOST_VALUES = 100_000
"""So many values at most, each alias (``*name``) counted as all that it stands for."""
MOST_LEVELS = 50
"""So deep at most may lists and groups stand in each other."""
LARGEST = 2**63 - 1
"""Whole numbers lie in +-LARGEST: what takes them further on has 64 bits."""

_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses what it would misread, or what grows beyond all bounds."""

    def __init__(self, text: str):
        super().__init__(text)
        self.level = 0
        self.sizes: dict[int, int] = {}
        """Values in each node that is complete, by its id: what an alias for it adds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            node = super().compose_node(parent, index)
            if id(node) not in self.sizes:
                raise _Refused("an alias for what it is a part of", mark)
            return node
        mark = self.peek_event().start_mark
        self.level += 1
        if self.level > MOST_LEVELS:
            raise _Refused(f"lists or groups in each other, more than {MOST_LEVELS} levels deep", mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        size = 1
        if isinstance(node, yaml.SequenceNode):
            size += sum(self.sizes[id(item)] for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            size += sum(self.sizes[id(key)] + self.sizes[id(value)] for key, value in node.value)
        if size > MOST_VALUES:
            raise _Refused(f"more than {MOST_VALUES} values, aliases written out", mark)
        self.sizes[id(node)] = size
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # by a tag that does not fit: !!bool 3
            raise _Refused(f"not what its tag {_tag(node)} says", node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _Refused(f"not what its tag {_tag(node)} says", node.start_mark)
        seen: dict[Any, int] = {}
        for key in (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
            name = self.construct_object(key, deep=True)
            if not isinstance(name, Hashable):
                raise _Refused("a list or group as a key", key.start_mark)
            if name in seen:
                raise _Refused(f"{name!r} stands there twice, first in line {seen[name]}", key.start_mark)
            seen[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def number(self, node: Any) -> Any:
        """A number as most people read it: no octal by a leading zero, no base 60, nothing infinite by its size."""
        text = self.construct_scalar(node)
        if _SEXAGESIMAL.fullmatch(text) or _OCTAL.fullmatch(text):
            kind = "base 60" if ":" in text else "base 8"
            said = f"{text} would be read in {kind}: quote it ('{text}') or write it out"
            raise _Refused(said, node.start_mark)
        if node.tag == "tag:yaml.org,2002:float":
            value: float = self.construct_yaml_float(node)
            large = math.isinf(value) and "inf" not in text.lower()
        else:
            # Python itself refuses to read thousands of digits.
            large = len(text) > 100 or abs(value := self.construct_yaml_int(node)) > LARGEST
        if large:
            raise _Refused(f"the number {_short(text)} is too large", node.start_mark)
        return value

    def date(self, node: Any) -> Any:
        """No setting is a date: it is text that lacks its quotes."""
        text = self.construct_scalar(node)
        raise _Refused(f"{text} would be read as a date: quote it ('{text}')", node.start_mark)

    def no_value(self, node: Any) -> Any:
        raise _Refused(f"{_tag(node)} is no plain value", node.start_mark)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.date)
for _kind in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.no_value)
_Loader.add_constructor(None, _Loader.no_value)


class _Refused(yaml.MarkedYAMLError):
    """Something that YAML allows and we do not."""

    def __init__(self, problem: str, mark: yaml.Mark):
        super().__init__(problem=problem, problem_mark=mark)


def parse_yaml(text: str, what: str) -> Any:
    """The value of a YAML document.

    Args:
        text: the document.
        what: how messages begin, such as "my.yaml:".

    Returns:
        None, bool, int (within +-:data:`LARGEST`), float, str, or lists and dicts of such.

    Raises:
        UserError: no YAML, or a document that repeats a key, grows beyond the bounds above, holds tags for other than
            plain values, or a value that YAML 1.1 reads as few expect (``0777``, ``1:30``, dates). The message has the
            line's number where the text has several lines.
    """
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = error.context
        begun = error.context_mark
        if context and context.startswith("while ") and begun and mark and begun.line != mark.line:
            context += f" that begins in line {begun.line + 1}:"
        said = " ".join(filter(None, (context, error.problem)))
        raise UserError(
            f"{what} not readable as YAML: {_place(text, mark.line if mark else None)}{_one_line(said)}"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) if isinstance(error.position, int) else None
        char = ord(error.character) if isinstance(error.character, str) else error.character
        raise UserError(
            f"{what} not readable as YAML: {_place(text, line)}the character #x{char:04x} is not allowed"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what} not readable as YAML: {_one_line(str(error)) or type(error).__name__}") from None
    finally:
        if loader is not None:
            loader.dispose()


def plain(value: Any, what: str, path: tuple[str, ...] = ()) -> Any:
    """The value in types that YAML and JSON keep: None, bool, int, float, str, lists, dicts with texts as keys.

    Args:
        value: such a value; tuples become lists.
        what: names in messages what holds it.
        path: the keys that lead to it.

    Raises:
        UserError: what would come back as another value, or not at all: numbers that are not finite or beyond
            +-:data:`LARGEST`, control characters, text that has no UTF-8, dates, bytes, sets, other objects.
    """

    def refused(problem: str) -> UserError:
        return UserError(": ".join(filter(None, (what, ".".join(path), problem))))

    if len(path) > MOST_LEVELS:
        raise refused(f"lists or groups in each other, more than {MOST_LEVELS} levels deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > LARGEST:
            raise refused("the number is too large: it needs more than 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise refused(f"{float(value)} is no finite number")
        return float(value)
    if isinstance(value, str):
        if problem := _text_problem(value):
            raise refused(problem)
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item, what, (*path, str(i))) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise refused(f"a {type(value).__name__} is no plain value: write a number, text, a list or a group")
    copy: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            hint = ": YAML reads yes, no, on and off so" if isinstance(key, bool) else ""
            raise refused(f"the key {_short(repr(key))} is no text, put it in quotes{hint}")
        if problem := _text_problem(key):
            raise refused(problem)
        copy[str(key)] = plain(item, what, (*path, _short(key)))
    return copy


def _text_problem(text: str) -> str:
    """Why a text cannot be kept; empty if it can."""
    for char in text:
        category = unicodedata.category(char)
        if category == "Cs":
            return f"the text {_short(ascii(text))} cannot be written in UTF-8"
        if category == "Cc" and char not in "\t\n\r":
            return f"the text {_short(ascii(text))} holds a control character"
    return ""


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; see :func:`parse_yaml`.

    Raises:
        UserError: a file that cannot be read, is no regular one, is larger than :data:`MOST_BYTES` or no UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise UserError(f"{path}: is {kind}: name a YAML file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: is larger than {MOST_BYTES // 2**20} MiB, which no recipe is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: not readable as YAML: line {line}: it is not UTF-8") from None
    return parse_yaml(text, f"{path}:")


def line_of(path: Path, keys: Sequence[str | int]) -> int | None:
    """The line of a file, from 1, in which the setting at these keys stands, or the innermost group on the way to it
    that the file has; None where it has not even the first."""
    try:
        node = yaml.compose(path.read_bytes().decode("utf-8-sig"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    line = None
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and str(key).isdigit() and int(key) < len(node.value):
            found = (node.value[int(key)],) * 2
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _tag(node: yaml.Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


def _place(text: str, line: int | None) -> str:
    return "" if line is None or "\n" not in text.strip() else f"line {line + 1}: "


def _one_line(text: str) -> str:
    return _short(" ".join(text.split()), 300)


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
