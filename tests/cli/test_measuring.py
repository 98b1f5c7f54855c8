"""What kdstream evaluate and peakiness share: their options, and one line for every mistake."""

from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch
from commands import refused

from kdstream.models import build
from kdstream.models.export import save_student


@pytest.mark.parametrize("command", ["evaluate", "peakiness"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit", "0"], "limit is 0"),
        (["--limit", "x"], "invalid int value"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--size", "0"], "size is 0"),
        (["--split", "test"], "no split 'test'"),
        (["--device", "abacus"], "--device abacus"),
        (["--model", "resnet20"], "resnet8"),
        (["--out", "taken/out"], "is a file"),
        (["--bogus"], "--bogus"),
    ],
)
def test_bad_options_give_one_line_and_no_output(run_verb, command, exported, digits, tmp_path, options, says):
    (tmp_path / "taken").write_text("")
    refused(run_verb(command, exported, digits, *options), says)
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluat"], "unknown verb 'evaluat': did you mean 'evaluate'?"),
        (["evaluate", "x.pth"], "the following arguments are required: SHARDS; see --help"),
        (["evaluate", "x.pth", "set", "--nope"], "unrecognized arguments: --nope; see --help"),
    ],
)
def test_a_bad_command_line(run_verb, arguments, says):
    refused(run_verb(*arguments), says)


def test_interrupted(run_verb, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdstream.cli.evaluate.prepare", interrupt)
    assert run_verb("evaluate", "x.pth", "set") == (130, "", "interrupted: nothing written\n")


def test_classes_in_the_order_that_one_says(run_verb, exported, digits, tmp_path):
    common = ("evaluate", exported, digits, "--device", "cpu", "--out")
    code, plain, _ = run_verb(*common, "plain")
    assert (code, "note" in plain) == (0, False)
    code, out, _ = run_verb(*common, "turned", "--classes=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]")
    assert (code, "note: " in out, "'0' = output 9" in " ".join(out.split())) == (0, True, True)
    plain, turned = (
        json.loads((tmp_path / name / "evaluate.json").read_text())["confusion"] for name in ("plain", "turned")
    )
    assert turned == {
        label: {str(9 - int(answer)): count for answer, count in sorted(row.items(), reverse=True)}
        for label, row in plain.items()
    }
    for option, says in (
        ("--classes=[0, 3]", "--classes has 2 entries, the data has 10 classes"),
        ("--classes=all", "--classes 'all': it is same, or a list"),
        ("--classes=[", "--classes '['"),
        ("--num-classes=12", "is for 10 classes, the data has 12 ('0', '1', '2', ...): it must know all of them"),
        ("--num-classes=9", "has a sample of class 9, so there are not 9"),
    ):
        code, _, err = run_verb(*common, "refused", option)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("command", ["evaluate", "peakiness"])
def test_bad_networks_and_shards_give_one_line(run_verb, command, exported, digits, tmp_path):
    odd = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2, 2)}, odd)
    save_student(tmp_path / "seven", build("resnet8", 7))
    (tmp_path / "empty").mkdir()
    for teacher, shards, says in (
        (tmp_path / "nowhere", digits, "no such file or folder"),
        (tmp_path / "empty", digits, "student.json"),
        (odd, digits, "name the model"),
        ("ftp://host/w.pth", digits, "only http"),
        (tmp_path / "seven", digits, "is for 7 classes, the data has 10"),
        (exported, tmp_path / "empty", "empty"),
    ):
        code, out, err = run_verb(command, teacher, shards, "--limit", 10)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert says in err
    code, _, err = run_verb("divine")
    assert (code, err.count("\n")) == (2, 1)
    assert "divine" in err
    assert not (tmp_path / "runs").exists()
