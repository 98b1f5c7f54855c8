"""The command kdstream: its verbs, and what is said before any of them runs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

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
    """In a process of its own, as python -m kdstream does."""
    code = (
        "import sys\nfrom kdstream.cli import main\ntry:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print(code or 0, sorted({'torch', 'torchvision', 'kornia', 'numba'} & set(sys.modules)))"
    )
    arguments = [verb, "--help"] if verb else ["--help"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert done.stdout.startswith("usage: ")
    if verb:
        assert f"kdstream {verb}" in done.stdout.splitlines()[0]
