"""Names and messages of anybody reach a terminal as text and nothing else."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.display.report import RunRecord, write_report
from kdstream.terminal import quoted, say_error, shown, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ünï 日本 👩‍🚀 naïve", "Ünï 日本 👩‍🚀 naïve"),
        ("a\x1b[31mred\x1b[0m", "a\\x1b[31mred\\x1b[0m"),
        ("\x9b31m \x85", "\\x9b31m  "),
        ("title\x1b]0;owned\x07", "title\\x1b]0;owned\\x07"),
        ("two\nlines\r\tand\u2028more\u2029", "two lines  and more "),
        ("photo\u202egnp.exe", "photo\\u202egnp.exe"),
        ("\u2067x\u2069", "\\u2067x\\u2069"),
        ("caf\udce9", "caf\\udce9"),
        ("[red]x[/red]", "[red]x[/red]"),
        (7, "7"),
    ],
)
def test_what_acts_on_a_terminal_is_spelt_out(text, shown):
    assert visible(text) == shown


@given(st.text())
def test_nothing_is_left_that_acts(text):
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in shown)
    assert visible(shown) == shown


def test_lines_may_stay():
    assert visible("a\nb\x07", keep="\n") == "a\nb\\x07"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a b", "'a b'"),
        ("it's\n\x1b[2J", '"it\'s\\n\\x1b[2J"'),
        ("photo\u202egnp", "'photo\\u202egnp'"),
        ("caf\udce9 日本", "'caf\\udce9 日本'"),
        ("", "''"),
    ],
)
def test_a_name_is_quoted_on_one_line(text, said):
    assert quoted(text) == said


def test_a_long_name_keeps_both_ends():
    assert quoted("a" * 500 + ".jpg", most=60) == f"'{'a' * 36}...{'a' * 15}.jpg'"
    assert len(quoted("\n" * 500)) == 200
    assert quoted("x" * 198) == f"'{'x' * 198}'"


@pytest.mark.parametrize(
    ("value", "said"),
    [("a b", "a b"), ("日本", "日本"), ("a\x1b", "'a\\x1b'"), (["é"], "['\\xe9']"), (None, "None"), (0.5, "0.5")],
)
def test_what_a_file_holds_is_shown_plainly(value, said):
    assert shown(value) == said
    assert len(shown(["x" * 500])) == 80


def test_an_error_is_one_line(capsys):
    say_error("error: no class 'a\x1b[2J\nb'")
    assert capsys.readouterr().err == "error: no class 'a\\x1b[2J b'\n"


def test_a_closed_standard_error_is_no_error(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    say_error("error: nobody hears it")


EVIL = "[red]x[/red]\x1b[31m\u202ey"


def test_a_report_shows_names_as_they_are(tmp_path):
    run = RunRecord(EVIL, [{"phase": "main", "epoch": 1, "loss": 1.0, "val/top1": 2.0}], [], {"top1": 2.0})
    text = write_report(
        tmp_path / "r.html", EVIL, [run], facts={EVIL: EVIL}, recipe_text=f"a: 1\nname: {EVIL}"
    ).read_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a: 1\nname: [red]" in text
