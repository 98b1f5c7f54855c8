from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.training.metrics import MetricsLog, read_metrics, read_speed


def epoch_row(epoch: int, **more) -> dict:
    return {"phase": "main", "epoch": epoch, "step": 10 * (epoch + 1), "loss": 1 / (epoch + 3), **more}


def write_epochs(folder, epochs, position=None) -> dict:
    with MetricsLog(folder, position, tensorboard=False) as log:
        for epoch in epochs:
            log.write("epoch", epoch_row(epoch))
            log.write_speed({"epoch": epoch, "images_per_s": 100.5})
        return log.position


def test_rows_come_back_in_order_with_their_keys_in_order(tmp_path):
    with MetricsLog(tmp_path, None, tensorboard=False) as log:
        log.write("epoch", {"phase": "main", "loss": 0.1, "a": 1, "loss/kd": 1e-300})
        log.write_speed({"seconds": 2.5})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"kind": "epoch", "phase": "main", "loss": 0.1, "a": 1, "loss/kd": 1e-300}\n'
    )
    assert read_speed(tmp_path) == [{"seconds": 2.5}]


@settings(max_examples=50, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_survives_exactly(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("log")
    with MetricsLog(folder, None, tensorboard=False) as log:
        log.write("epoch", {"loss": value})
    assert read_metrics(folder)[0]["loss"] == value


def test_non_finite_is_null_and_foreign_scalars_are_plain(tmp_path):
    values = [float("nan"), float("inf"), -np.inf, torch.tensor(float("nan"))]
    with MetricsLog(tmp_path, None, tensorboard=True) as log:
        for value in values:
            log.write("epoch", {"step": 1, "loss": value, "n": np.int64(3), "t": torch.tensor(0.5), "name": "müde"})
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read_metrics(tmp_path) == [{"kind": "epoch", "step": 1, "loss": None, "n": 3, "t": 0.5, "name": "müde"}] * 4


def test_resumed_record_equals_the_undisturbed_one(tmp_path):
    write_epochs(tmp_path / "whole", range(5))
    position = write_epochs(tmp_path / "killed", range(3))
    position = json.loads(json.dumps(position))  # as a checkpoint stores it
    write_epochs(tmp_path / "killed", [3], position)  # lost: no checkpoint was written after it
    with (tmp_path / "killed" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "epo')  # killed while it wrote
    write_epochs(tmp_path / "killed", [3, 4], position)
    for name in ("metrics.jsonl", "speed.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [row["epoch"] for row in read_metrics(tmp_path / "killed")] == [0, 1, 2, 3, 4]


def test_position_counts_bytes_and_remembers_the_step(tmp_path):
    position = write_epochs(tmp_path, range(2))
    assert position["metrics.jsonl"] == (tmp_path / "metrics.jsonl").stat().st_size > 0
    assert position["speed.jsonl"] == (tmp_path / "speed.jsonl").stat().st_size > 0
    assert position["step"] == 20
    assert write_epochs(tmp_path, [], position) == position


def test_fresh_log_empties_the_folder(tmp_path):
    write_epochs(tmp_path, range(4))
    write_epochs(tmp_path, [7])
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [7]
    assert len(read_speed(tmp_path)) == 1


def test_rows_outlive_a_killed_process(tmp_path):
    code = (
        "import os, signal, sys; from kdstream.training.metrics import MetricsLog\n"
        "log = MetricsLog(sys.argv[1], None, tensorboard=False); log.write('epoch', {'step': 3})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert read_metrics(tmp_path) == [{"kind": "epoch", "step": 3}]


@pytest.mark.parametrize("damage", ["missing", "shorter", "other"])
def test_record_that_is_not_the_checkpoints_is_refused_and_left_alone(tmp_path, damage):
    position = write_epochs(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    if damage == "missing":
        path.unlink()
    elif damage == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"x" * position["metrics.jsonl"] * 2)
    speed = (tmp_path / "speed.jsonl").read_bytes() + b"later\n"
    (tmp_path / "speed.jsonl").write_bytes(speed)
    with pytest.raises(UserError, match=r"metrics\.jsonl.*put it back"):
        MetricsLog(tmp_path, position, tensorboard=False)
    assert (tmp_path / "speed.jsonl").read_bytes() == speed


def test_position_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not say where"):
        MetricsLog(tmp_path, {"bytes": 3}, tensorboard=False)


@given(cut=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_a_torn_last_line_is_left_out(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("log")
    write_epochs(folder, range(2))
    whole = (folder / "metrics.jsonl").read_bytes()
    kept = whole[: min(cut, len(whole))]
    (folder / "metrics.jsonl").write_bytes(kept)
    rows = read_metrics(folder)
    assert rows == [json.loads(line) for line in whole.splitlines()][: len(rows)]
    # A line that lacks nothing but its end-of-line mark is whole.
    assert len(rows) - kept.count(b"\n") in (0, 1)


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    write_epochs(tmp_path, range(2))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    with pytest.raises(UserError, match="line 1"):
        read_metrics(tmp_path)


def test_no_file_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []
    assert read_speed(tmp_path / "nowhere") == []


def board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_grouped_curves_without_what_was_lost(tmp_path):
    with MetricsLog(tmp_path, None) as log:
        log.write("epoch", {"phase": "fitnet.hint", "epoch": 0, "step": 5, "loss": 9.0})
        log.write("epoch", {"phase": "main", "epoch": 0, "step": 10, "lr": 0.5, "loss": 1.0, "loss/kd": 0.5})
        log.write_speed({"step": 10, "images_per_s": 100.0})
        position = log.position
        log.write("epoch", {"phase": "main", "epoch": 1, "step": 20, "loss": 77.0})
    with MetricsLog(tmp_path, position) as log:
        log.write("epoch", {"phase": "main", "epoch": 1, "step": 20, "loss": 2.0, "val/top1": None})
        log.write_speed({"images_per_s": 200.0})
    assert board(tmp_path) == {
        "fitnet.hint/loss/total": [(5, 9.0)],
        "lr": [(10, 0.5)],
        "loss/total": [(10, 1.0), (20, 2.0)],
        "loss/kd": [(10, 0.5)],
        "speed/images_per_s": [(10, 100.0), (20, 200.0)],
    }


def test_fresh_log_drops_the_old_curves(tmp_path):
    for loss in (1.0, 2.0):
        with MetricsLog(tmp_path, None) as log:
            log.write("epoch", {"step": 3, "loss": loss})
    assert board(tmp_path) == {"loss/total": [(3, 2.0)]}


def test_tensorboard_is_imported_only_when_used(tmp_path):
    code = (
        "import sys; from kdstream.training.metrics import MetricsLog\n"
        "MetricsLog(sys.argv[1], None, tensorboard=False).write('epoch', {'step': 1})\n"
        "sys.exit('torch.utils.tensorboard' in sys.modules or 'tensorboard' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
