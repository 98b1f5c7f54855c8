"""compare from Python: what it asks the command for, and what it gives back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

import kdstream as kd
from kdstream.api import compare as module
from kdstream.cli.compare import _parser


def test_it_is_the_command_with_these_arguments(tmp_path, monkeypatch):
    asked = []

    def run(words):
        asked.append(_parser().parse_args(words))
        asked[-1].out.mkdir(parents=True)
        for name in ("compare.html", "compare.md", "compare.json"):
            (asked[-1].out / name).write_text(json.dumps({"title": "<t>"}))

    monkeypatch.setattr(module, "run", run)
    monkeypatch.chdir(tmp_path)
    given = {"teacher": "published:resnet56@cifar100", "student": "resnet8", "methods": ["kd", "ckd"], "seeds": 3}
    found = kd.compare("shards/birds", **given, tune=["optimizer.lr=1,2"], epochs=4, optimizer={"lr": 0.1}, cpu=True)
    (options,) = asked
    assert (options.place, options.overrides) == ("shards/birds", ["epochs=4", 'optimizer={"lr": 0.1}'])
    assert (options.teacher, options.student, options.methods) == (given["teacher"], "resnet8", "kd,ckd")
    assert (options.seeds, options.tune, options.cpu, options.jobs) == (3, ["optimizer.lr=1,2"], True, 1)
    assert found.folder == options.out == Path("runs/compare-birds-published_resnet56_cifar100-resnet8")
    assert found.found == {"title": "<t>"}
    assert "&lt;t&gt;" in found._repr_html_()
    with pytest.raises(kd.UserError, match="teacher is a name or weights"):
        kd.compare("shards/birds", teacher=nn.Identity())
