"""The verb completion: the shells that are here complete what their scripts say."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kdstream.cli.completion import main, script, words

ASK = """
COMP_WORDS=(kdstream {words}); COMP_CWORD={at}
_kdstream 2> /dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
"""compopt works within a completion only, which says so on stderr."""


def completed(*typed: str) -> list[str]:
    text = script("bash") + ASK.format(words=" ".join(typed), at=len(typed))
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (("tra",), ["train"]),
        (("table",), ["tables", "table"]),
        (("train", "quick"), ["quickstart"]),
        (("train", "--fr"), ["--fresh"]),
        (("train", "quickstart", "batch_"), ["batch_size="]),
        (("report", "ckd/table5"), ["ckd/table5"]),
        (("objectives", "--js"), []),
    ],
)
def test_bash(typed, found):
    assert completed(*typed) == found


def test_every_shells_script_is_one_that_it_reads(tmp_path):
    shells = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]
    assert "bash" in shells
    for shell in shells:
        file = tmp_path / shell
        file.write_text(script(shell))
        subprocess.run([shell, "-n", str(file)], check=True)


def test_words_are_names_and_options_alone():
    for verb, own in words().items():
        for word in own:
            assert word.replace("-", "").replace("/", "").replace("_", "").removesuffix("=").isalnum(), (verb, word)
    assert "--dry-run" in words()["table"]


def test_fish_says_what_a_verb_does(capsys):
    assert main(["fish"]) == 0
    said = capsys.readouterr().out
    assert "-a train -d 'distil a student as a recipe says'" in said
    assert "'__fish_seen_subcommand_from train' -l fresh" in said
