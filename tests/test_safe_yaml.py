"""YAML within bounds: what is read, what is refused and in which line, and that plain values come back unchanged."""

from __future__ import annotations

import datetime
import json
import os
import tracemalloc
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.safe_yaml import LARGEST, MOST_BYTES, MOST_LEVELS, parse_yaml, plain, read_yaml


def test_plain_values_are_read_as_yaml_gives_them():
    text = "a: [1, -2, 0x1f, 0, 1_000, 0.5, 1.0e-3, true, no, null, ~, '07', 08, 1e-3]\nb: {c: 'x: y'}\n"
    assert parse_yaml(text, "x:") == {
        "a": [1, -2, 31, 0, 1000, 0.5, 0.001, True, False, None, None, "07", "08", "1e-3"],
        "b": {"c": "x: y"},
    }
    assert parse_yaml("", "x:") is None
    assert parse_yaml("x: [.nan, .inf, -.INF]", "x:")["x"][1:] == [float("inf"), -float("inf")]


def test_anchors_and_merges_save_typing():
    text = "base: &base {lr: 1, clip: 2}\nslow: {<<: *base, lr: 0.1}\nagain: *base\n"
    assert parse_yaml(text, "x:") == {
        "base": {"lr": 1, "clip": 2},
        "slow": {"lr": 0.1, "clip": 2},
        "again": {"lr": 1, "clip": 2},
    }


def bomb(width: int, depth: int, item: str = "[{}]") -> str:
    """Lists of lists by aliases: a few hundred bytes that stand for width ** depth values."""
    lines = [f"a0: &a0 {item.format(', '.join(['x'] * width))}"]
    lines += [f"a{i}: &a{i} {item.format(', '.join([f'*a{i - 1}'] * width))}" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(10, 9),
        bomb(2, 40),
        bomb(300, 4),
        "a0: &a0 {k: 1}\n" + "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 30)}]}}" for i in range(1, 8)),
        "a0: &a0 {k: 1}\n" + "\n".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 30)),
    ],
)
def test_a_bomb_of_aliases_does_not_grow(text):
    tracemalloc.start()
    with pytest.raises(
        UserError, match=r"^x: not readable as YAML: line \d+: more than 100000 values, aliases written out$"
    ):
        parse_yaml(text, "x:")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "an alias for what it is a part of"),
        ("a: &a {b: *a}", "an alias for what it is a part of"),
        ("a: *b", "found undefined alias 'b'"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' stands there twice, first in line 1"),
        ("x:\n  lr: 1\n  lr: 1\n", "line 3: 'lr' stands there twice, first in line 2"),
        ("{1: a, 1.0: b}", "1.0 stands there twice, first in line 1"),
        ("a: 1\nb: 1:30", "line 2: 1:30 would be read in base 60: quote it ('1:30') or write it out"),
        ("1:30:00", "1:30:00 would be read in base 60"),
        ("12:30.5", "12:30.5 would be read in base 60"),
        ("[0777]", "0777 would be read in base 8: quote it ('0777') or write it out"),
        ("-010", "-010 would be read in base 8"),
        ("x: 2024-01-01", "2024-01-01 would be read as a date: quote it ('2024-01-01')"),
        ("x: 2024-13-45", "2024-13-45 would be read as a date"),
        ("x: " + "9" * 10000, "the number " + "9" * 40 + "... is too large"),
        ("x: 0x" + "f" * 10000, "is too large"),
        ("x: 9223372036854775808", "the number 9223372036854775808 is too large"),
        ("x: 1.0e+999", "the number 1.0e+999 is too large"),
        ("x: !!python/object/apply:os.system [x]", "!!python/object/apply:os.system is no plain value"),
        ("x: !!binary aGk=", "!!binary is no plain value"),
        ("x: !!set {a, b}", "!!set is no plain value"),
        ("x: !mine 3", "!mine is no plain value"),
        ("x: !!bool 3", "not what its tag !!bool says"),
        ("x: !!int y", "not what its tag !!int says"),
        ("x: !!map [a]", "not what its tag !!map says"),
        ("? [a]\n: b", "line 1: a list or group as a key"),
        ("? {a: 1}\n: b", "line 1: a list or group as a key"),
        ("a: 1\n---\nb: 1", "line 2: expected a single document in the stream but found another document"),
        ("a: 1\nb:\n\tc: 1", "line 3: while scanning for the next token found character '\\t' that cannot start"),
        ("a: 1\nb: \0", "line 2: the character #x0000 is not allowed"),
        ("a:\n  [b, c\nd: 1", "line 3: while parsing a flow sequence that begins in line 2: expected ',' or ']'"),
        ("a: 1\nb: [\n", "line 3: while parsing a flow node expected the node content"),
        ("[" * 100_000, f"lists or groups in each other, more than {MOST_LEVELS} levels deep"),
        ("{a: " * 100_000, f"lists or groups in each other, more than {MOST_LEVELS} levels deep"),
        ("- " * 100_000, f"lists or groups in each other, more than {MOST_LEVELS} levels deep"),
    ],
)
def test_what_is_refused_is_one_line(text, message):
    with pytest.raises(UserError) as error:
        parse_yaml(text, "x:")
    assert f"x: not readable as YAML: {message}" in str(error.value) or message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@given(st.text() | st.text("[]{}:,&*a1-!|>'\" \n\t.#~?<%"))
@hypothesis.example("!!timestamp x")
@hypothesis.example("=")
@hypothesis.example('"\\U00110000"')
def test_any_text_is_a_plain_value_or_refused(text):
    value, said = None, ""
    try:
        value = parse_yaml(text, "x:")
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    json.dumps(value)


def test_files(tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as error:
            read_yaml(path)
        return str(error.value).removeprefix(f"{path}: ")

    (tmp_path / "good.yaml").write_bytes("\ufeffa: größe\n".encode())
    assert read_yaml(tmp_path / "good.yaml") == {"a": "größe"}
    assert refused(tmp_path) == "is a folder: name a YAML file"
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == "is no regular file: name a YAML file"
    assert refused(Path("/dev/zero")) == "is no regular file: name a YAML file"
    assert refused(tmp_path / "none") == "cannot be read: No such file or directory"
    (tmp_path / "latin").write_bytes("a: 1\nb: größe\n".encode("latin-1"))
    assert refused(tmp_path / "latin") == "not readable as YAML: line 2: it is not UTF-8"
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(100 * MOST_BYTES)
    assert refused(tmp_path / "huge") == "is larger than 1 MiB, which no recipe is"


# --- plain values

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cc", "Cs"]))
    | st.sampled_from(
        ["no", "on", "1:30", "0777", "1_000", "2024-01-01", "1e3", "=", "<<", "~", "", " x ", "0x1f", ".inf"]
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cc", "Cs"])), inner),
    max_leaves=12,
)


@given(values)
def test_plain_values_come_back_from_yaml_and_json(value):
    assert plain(value, "x") == value
    assert parse_yaml(yaml.safe_dump(value), "x:") == value
    assert json.loads(json.dumps(value)) == value


def test_what_is_like_a_plain_value_becomes_one():
    made = plain({"a": (1, (2.5,)), "b": np.float64(0.5), "c": np.str_("x")}, "x")
    assert made == {"a": [1, [2.5]], "b": 0.5, "c": "x"}
    assert type(made["b"]) is float
    assert type(made["c"]) is str


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "nan is no finite number"),
        (-float("inf"), "-inf is no finite number"),
        (10**500, "the number is too large"),
        (LARGEST + 1, "the number is too large"),
        (datetime.date(2024, 1, 1), "a date is no plain value"),
        (b"x", "a bytes is no plain value"),
        ({1, 2}, "a set is no plain value"),
        (Path("x"), "a PosixPath is no plain value"),
        (np.float32(1), "a float32 is no plain value"),
        ("\ud800", "cannot be written in UTF-8"),
        ("a\0b", "holds a control character"),
        ("\x1b[31m", "holds a control character"),
        ({True: 1}, "the key True is no text, put it in quotes: YAML reads yes, no, on and off so"),
        ({1: 1}, "the key 1 is no text, put it in quotes"),
        ({"\x07": 1}, "holds a control character"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_place(value, message):
    with pytest.raises(UserError) as error:
        plain({"a": [0, {"b": value}]}, "x")
    assert str(error.value).startswith("x: a.1.b: ")
    assert message in str(error.value)


def test_what_holds_itself_is_refused():
    value: dict = {}
    value["a"] = value
    with pytest.raises(UserError, match=f"more than {MOST_LEVELS} levels deep"):
        plain(value, "x")
