from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.errors import DiskError, UserError
from kdstream.training.metrics import MetricsLog, read_metrics, read_speed


def epoch_row(epoch: int, **more) -> dict:
    return {"phase": "main", "epoch": epoch, "step": 10 * (epoch + 1), "loss": 1 / (epoch + 3), **more}


def write_epochs(folder, epochs, position=None) -> dict:
    with MetricsLog(folder, position) as log:
        for epoch in epochs:
            log.write("epoch", epoch_row(epoch))
            log.write_speed({"epoch": epoch, "images_per_s": 100.5})
        return log.position


def test_rows_come_back_in_order_with_their_keys_in_order(tmp_path):
    with MetricsLog(tmp_path, None) as log:
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
    with MetricsLog(folder, None) as log:
        log.write("epoch", {"loss": value})
    assert read_metrics(folder)[0]["loss"] == value


def test_non_finite_is_null_and_foreign_scalars_are_plain(tmp_path):
    values = [float("nan"), float("inf"), -np.inf, torch.tensor(float("nan"))]
    with MetricsLog(tmp_path, None) as log:
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
        "log = MetricsLog(sys.argv[1], None); log.write('epoch', {'step': 3})\n"
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
        MetricsLog(tmp_path, position)
    assert (tmp_path / "speed.jsonl").read_bytes() == speed


def test_position_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not say where"):
        MetricsLog(tmp_path, {"bytes": 3})


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


# --- a disk without room


class Disk(io.FileIO):
    """A file on a disk with room for so many more bytes; ``None``: enough."""

    room: int | None = None
    stuck = False

    def write(self, data):
        if Disk.room is None:
            return super().write(data)
        if not Disk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = super().write(memoryview(data)[: Disk.room])
        Disk.room -= count
        return count

    def truncate(self, size=None):
        if Disk.stuck:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().truncate(size)


@pytest.fixture
def disk(monkeypatch):
    """Rows go to such a disk."""
    monkeypatch.setattr(Disk, "room", None)
    monkeypatch.setattr(Disk, "stuck", False)
    plain = Path.open
    monkeypatch.setattr(
        Path, "open", lambda *given, **more: Disk(given[0], "ab") if "ab" in given else plain(*given, **more)
    )
    return Disk


def append(log, kind, epoch):
    log.write("epoch", epoch_row(epoch)) if kind == "metrics.jsonl" else log.write_speed(
        {"epoch": epoch, "seconds": 1.5}
    )


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("name", ["metrics.jsonl", "speed.jsonl"])
@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_row_is_written_whole_or_not_at_all(disk, tmp_path, name, room, stuck):
    """``stuck``: the part that was written cannot be cut off at once either."""
    folder = tmp_path
    log = MetricsLog(folder)
    for epoch in range(2):
        append(log, name, epoch)
    whole = (folder / name).read_bytes()
    before = log.position
    disk.room, disk.stuck = room, stuck
    with pytest.raises(DiskError, match=rf"cannot write .*{name}: No space left on device; make room, then") as error:
        append(log, name, 2)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)
    assert error.value.errno == errno.ENOSPC
    disk.room = disk.stuck = None
    assert log.position == before, "it does not point into a row"
    assert (folder / name).read_bytes() == whole
    append(log, name, 3)
    rows = [row["epoch"] for row in (read_metrics if name == "metrics.jsonl" else read_speed)(folder)]
    assert rows == [0, 1, 3]
    log.close()
    MetricsLog(folder, before).close()
    assert (folder / name).read_bytes() == whole


def test_a_row_that_is_written_in_parts_is_whole(monkeypatch, disk, tmp_path):
    monkeypatch.setattr(Disk, "write", lambda self, data: io.FileIO.write(self, memoryview(data)[:7]))
    write_epochs(tmp_path, range(3))
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2]


def test_an_interrupt_within_a_row_leaves_none_of_it(monkeypatch, disk, tmp_path):
    def interrupt(self, data):
        io.FileIO.write(self, memoryview(data)[:7])
        raise KeyboardInterrupt

    with MetricsLog(tmp_path) as log:
        append(log, "metrics.jsonl", 0)
        with monkeypatch.context() as patch:
            patch.setattr(Disk, "write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                append(log, "metrics.jsonl", 1)
        append(log, "metrics.jsonl", 2)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 2]


def test_a_folder_that_cannot_be_written_to_is_said_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot write .*file.below: Not a directory") as error:
        MetricsLog(tmp_path / "file" / "below")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_real_full_device(tmp_path):
    with MetricsLog(tmp_path) as log:
        (tmp_path / "speed.jsonl").unlink()
        (tmp_path / "speed.jsonl").symlink_to("/dev/full")
        log._speed._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
        with pytest.raises(DiskError, match=r"speed\.jsonl: No space left on device"):
            log.write_speed({"seconds": 1.0})
