"""The command kdstream: its verbs, and what is said before any of them runs."""

from __future__ import annotations

import importlib

import pytest
from commands import modules_that_help_loads

from kdstream import __version__
from kdstream.cli import VERBS, main


def test_every_verb_is_a_module_with_a_main_and_a_line_of_help(capsys):
    assert main([]) == 0
    usage = capsys.readouterr().out
    for verb, what in VERBS.items():
        assert callable(importlib.import_module(f"kdstream.cli.{verb}").main)
        assert f"{verb}  " in usage
        assert what in usage
    assert max(map(len, usage.splitlines())) <= 80


def test_an_unknown_verb_is_one_line_and_exit_code_2(capsys):
    assert main(["shard", "digits"]) == 2
    assert capsys.readouterr() == ("", "error: unknown verb 'shard': did you mean 'shards'?\n")


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kdstream {__version__}\n"


@pytest.mark.parametrize("verb", [*VERBS, None])
def test_how_a_verb_is_used_is_told_without_torch(verb):
    text, loaded = modules_that_help_loads("kdstream.cli", *([verb] if verb else []))
    assert not loaded
    assert text.startswith("usage: ")
    assert not verb or f"kdstream {verb}" in text.splitlines()[0]
