"""The course of a training, read from its folder."""

from __future__ import annotations

import json

import pytest
import torch

from kdstream.errors import UserError
from kdstream.training.checkpoint import save_checkpoint
from kdstream.training.curves import course, page


def test_the_main_phase_of_a_log_is_read(tmp_path):
    rows = [
        {"kind": "epoch", "phase": "fitnet.hint", "epoch": 1, "student/entropy": 2.0},
        {"kind": "epoch", "phase": "main", "epoch": 2, "student/entropy": 1.5, "student/divergence": None},
        {"kind": "epoch", "phase": "main", "epoch": 3, "student/entropy": 1.0, "val/top1": 61.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "speed.jsonl").write_text('{"seconds": 30}\n{"seconds": 40.5}\n')
    one = course("run", tmp_path)
    assert one.curves == {"student/entropy": ([1, 2], [1.5, 1.0]), "val/top1": ([2], [61.0])}
    assert (one.top1, one.seconds, one.parameters, one.additional) == (61.0, 70.5, None, None)
    (tmp_path / "result.json").write_text('{"top1": 62.5, "seconds": 99.0, "params": 1000}')
    distiller = {"student.module.fc.weight": torch.ones(9), "terms.0.connect.weight": torch.ones(3, 4)}
    save_checkpoint({"fingerprint": "f", "distiller": distiller}, tmp_path / "last.pt")
    one = course("run", tmp_path)
    assert (one.top1, one.seconds, one.parameters, one.additional) == (62.5, 99.0, 1000, 12)
    shown = page([one])
    assert shown.tables[0].rows == [("run", ["62.50", "1:39", "1,000", "12"])]
    assert shown.tables[1].rows == [("run", ["1.0000", "-", "-", "-"])]
    assert [chart.title for chart in shown.charts][:2] == [
        "Validation top-1, %",
        "Entropy of the student's answers, nats",
    ]


def test_a_folder_without_a_log_is_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        course("x", tmp_path)
