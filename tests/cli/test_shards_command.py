"""make_shards, the command: killed or interrupted it goes on, what it prints, and whose folders it leaves alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from commands import one_line, run_from_a_clone
from PIL import Image
from tars import assert_same_files

from kdstream.cli.shards import main
from kdstream.convert import make_shards as convert
from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import open_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_shards.py"


@pytest.fixture
def run(run_main):
    return partial(run_main, main)


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options, preexec_fn=_hear_interrupts)


def _hear_interrupts() -> None:
    """Whatever the tests run under: what a shell starts in the background does not hear Ctrl-C, nor do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_killed_and_continued_gives_the_same_bytes(photos, photo_shards, tmp_path):
    """kill -9 once a number of shards is finished, four times, with various numbers of processes; what was finished
    stays. The killed process's workers have to end by themselves."""
    dest, rng = tmp_path / "set", random.Random(0)
    arguments = (f"imagefolder:{photos}", dest, "--shard-count", 12)
    kept: dict[str, int] = {}
    for wanted in (1, 3, 6, 9):
        process = start(*arguments, "--processes", rng.choice([1, 2, 3]))
        while process.poll() is None and len(list(dest.glob("*.tar"))) < wanted:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        for name, stamp in kept.items():
            assert (dest / name).stat().st_mtime_ns == stamp
        kept = {path.name: path.stat().st_mtime_ns for path in dest.glob("*.tar")}
        if (dest / "dataset.json").exists():
            break
        with pytest.raises(UserError, match="half-made"):
            open_shards(dest / "train")
    if not (dest / "dataset.json").exists():
        process = start(*arguments, "--processes", 2)
        assert process.wait() == 0, process.stderr.read()
    for name, stamp in kept.items():
        assert (dest / name).stat().st_mtime_ns == stamp
    assert_same_files(photo_shards, dest)


def test_workers_end_with_a_killed_parent(tmp_path):
    """Large images, so that two workers would need seconds for the rest."""
    (tmp_path / "in" / "cat").mkdir(parents=True)
    Image.new("RGB", (4000, 4000)).save(tmp_path / "in" / "cat" / "0.jpg")
    for i in range(1, 60):
        (tmp_path / "in" / "cat" / f"{i}.jpg").hardlink_to(tmp_path / "in" / "cat" / "0.jpg")
    dest = tmp_path / "set"
    process = start(f"imagefolder:{tmp_path / 'in'}", dest, "--shard-count", 30, "--processes", 2)
    while process.poll() is None and not list(dest.glob("*.tar")):
        time.sleep(0.001)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.01)
    assert len(list(dest.glob("*.tar"))) < 30


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("sent", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_interrupted_says_how_to_go_on(photos, photo_shards, tmp_path, processes, sent, code, word):
    for attempt in range(10):  # on a busy machine a conversion may end before it is interrupted
        dest = tmp_path / f"set{attempt}"
        process = start(f"imagefolder:{photos}", dest, "--shard-count", 12, "--processes", processes)
        while process.poll() is None and not list(dest.glob("*.tar")):
            time.sleep(0.001)
        process.send_signal(getattr(signal, sent))
        _, errors = process.communicate()
        if not (dest / "dataset.json").exists():
            break
    assert process.returncode == code
    assert one_line(errors) == (f"{word}: finished shards are kept, run the same command again to continue\n")
    result = make_shards(f"imagefolder:{photos}", dest, shard_count=12)
    assert result.kept_shards >= 1
    assert_same_files(photo_shards, dest)


def test_output_that_cannot_be_written(photos, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, SCRIPT, f"imagefolder:{photos}", tmp_path / "set"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unreadable_image_stops_and_can_be_skipped(run, damaged, tmp_path, processes):
    dest = tmp_path / "set"
    arguments = (f"imagefolder:{damaged}", dest, "--shard-count", 4, "--processes", processes)
    code, _, error = run(*arguments)
    assert code == 2
    assert any(str(damaged / name) in one_line(error) for name in ("cat/text.jpg", "dog/cut.png", "dog/empty.png"))
    assert "--on-error skip" in error
    assert not (dest / "dataset.json").exists()
    code, out, _ = run(*arguments, "--on-error", "skip")  # goes on from where it stopped
    assert code == 0
    assert "3 unreadable images" in out
    skipped = {
        entry["file"] for entry in json.loads((dest / "dataset.json").read_bytes())["splits"]["train"]["skipped"]
    }
    assert skipped == {str(damaged / name) for name in ("cat/text.jpg", "dog/cut.png", "dog/empty.png")}
    assert len(open_shards(dest / "train")) == 12
    assert verify(dest).samples == 12


def test_photographs_that_cannot_be_read_stop_before_anything_is_written(run, damaged, tmp_path):
    (damaged / "cat" / "text.jpg").unlink()
    (damaged / "dog" / "cut.png").unlink()
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (damaged / "cat" / "a.heic").write_bytes(heic)
    (damaged / "cat" / "b.jpg").write_bytes(heic)  # found when it is opened
    (damaged / "dog" / "c.HEIC").write_bytes((damaged / "dog" / "0.png").read_bytes())  # a PNG, whatever its name
    dest = tmp_path / "set"
    code, _, error = run(f"imagefolder:{damaged}", dest)
    assert code == 2
    assert f"cannot read image {damaged}/cat/a.heic: it is a HEIC photograph: convert it to JPEG or PNG" in error
    assert "one of 2 such files: 1 x a HEIC photograph, 1 x an empty file (0 bytes)" in one_line(error)
    assert not dest.exists()
    code, out, _ = run(f"imagefolder:{damaged}", dest, "--on-error", "skip")
    assert code == 0
    assert "1 are of another format than their name says" in out
    split = json.loads((dest / "dataset.json").read_bytes())["splits"]["train"]
    assert {Path(entry["file"]).name: entry["error"].split(":")[0] for entry in split["skipped"]} == {
        "a.heic": "it is a HEIC photograph",
        "b.jpg": "it is a HEIC photograph",
        "empty.png": "it is an empty file (0 bytes)",
    }
    shards = open_shards(dest / "train")
    members = {shards.read(i)["__key__"]: set(shards.read(i)) for i in range(len(shards))}
    assert "png" in members["dog/c"]


def test_a_bound_on_pixels(run, tmp_path, monkeypatch):
    for name, size in (("cat", 30), ("dog", 10)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (size, size), (i, 0, 0)).save(tmp_path / "in" / name / f"{i}.png")
    arguments = (f"imagefolder:{tmp_path / 'in'}", tmp_path / "set", "--shard-count", 6)
    code, _, error = run(*arguments, "--max-pixels", 899)
    assert code == 2
    assert "an image of 30 x 30 pixels, more than the 899 that are allowed; --max-pixels allows more" in one_line(error)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        assert run(*arguments, "--max-pixels", 899, "--on-error", "skip")[0] == 130
    assert run(*arguments, "--max-pixels", 900)[0] == 0  # what was left out under the lower bound is not
    assert len(open_shards(tmp_path / "set" / "train")) == 6
    assert run(*arguments, "--max-pixels", 899, "--on-error", "skip", "--force")[0] == 0
    assert len(open_shards(tmp_path / "set" / "train")) == 3
    assert run(*arguments, "--max-pixels", 0)[0] == 2


def test_a_finished_set_is_replaced_by_force_only(run, photos, tmp_path):
    dest = tmp_path / "set"
    arguments = (f"imagefolder:{photos}", dest, "--limit", 20)
    assert run(*arguments, "--shard-count", 3)[0] == 0
    (dest / "mine.txt").write_text("stays")
    code, _, error = run(*arguments)
    assert code == 2
    assert "already holds a finished data set: replace it with --force" in one_line(error)
    assert len(list(dest.glob("*.tar"))) == 3
    assert run(*arguments, "--force")[0] == 0
    assert sorted(os.listdir(dest)) == ["dataset.json", "mine.txt", "train-000000.tar", "train.index.npz"]


def test_a_half_made_folder_belongs_to_its_command(run, photos, tmp_path, monkeypatch):
    dest = tmp_path / "set"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        code, _, error = run(f"imagefolder:{photos}", dest, "--limit", 20)
    assert code == 130
    assert "interrupted" in one_line(error)
    code, _, error = run(f"imagefolder:{photos}", dest, "--limit", 20, "--seed", 4)
    assert code == 2
    assert "half-made by another command (seed 0, now 4)" in one_line(error)
    assert run(f"imagefolder:{photos}", dest, "--limit", 20, "--seed", 4, "--force")[0] == 0


def test_folders_of_others_are_left_alone(run, photos, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train-000000.tar").write_bytes(b"theirs")
    (tmp_path / "styled").mkdir()
    (tmp_path / "styled" / "dataset.json").write_text('{"labels": []}')
    (tmp_path / "file").write_text("")
    for dest, expected in (
        ("other", "is not empty and holds no shards made by make_shards"),
        ("styled", "was not made by make_shards"),
        ("file", "is a file"),
        ("file/below", "cannot write to"),
    ):
        code, _, error = run(f"imagefolder:{photos}", tmp_path / dest, "--force")
        assert code == 2
        assert expected in one_line(error)
    assert (tmp_path / "other" / "train-000000.tar").read_bytes() == b"theirs"
    assert (tmp_path / "styled" / "dataset.json").read_text() == '{"labels": []}'
    code, _, error = run(f"imagefolder:{photos}", photos / "shards")
    assert code == 2
    assert "lies inside the source" in one_line(error)
    assert not (photos / "shards").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name a SOURCE and a DEST"),
        (["digits"], "name a SOURCE and a DEST"),
        (["foo", "DEST"], "unknown source 'foo': known: cifar10, cifar100, cifar100c, cifar10c, csv, cub200, "),
        (["digits", "DEST", "--nope"], "unrecognized arguments: --nope; see --help"),
        (["digits", "DEST", "--split", "test"], "has no split 'test': found train, val"),
        (["digits", "DEST", "--limit", "0"], "the limit must be at least 1"),
        (["digits", "DEST", "--processes", "x"], "invalid int value: 'x'"),
        (["digits", "DEST", "--shard-size", "12X"], "'12X' is no size"),
        (["digits", "DEST", "--shard-size", "1M", "--shard-count", "2"], "not both"),
        (["digits", "DEST", "--on-error", "maybe"], "invalid choice: 'maybe'"),
        (["digits", "DEST", "--verify", "DEST"], "takes no SOURCE"),
        (["digits", "DEST", "--quality", "90"], "--quality is that of images that --resize makes smaller"),
        (["digits", "DEST", "--hold-out", "0.1"], "digits has the split 'val' already"),
        (["digits", "DEST", "--resize", "0"], "the shorter side must have at least 1 pixel"),
        (["--verify", "DEST"], "no shards at"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, tmp_path, arguments, expected):
    dest = tmp_path / "set"
    code, _, error = run(*[dest if argument == "DEST" else argument for argument in arguments])
    assert code == 2
    assert expected in one_line(error)
    assert not dest.exists()


def test_from_a_clone_without_installation(tmp_path):
    done = run_from_a_clone(SCRIPT, "digits", str(tmp_path / "digits"), "--limit", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(open_shards(tmp_path / "digits" / "val")) == 30


def test_summary_and_verify(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    dest = tmp_path / "digits"
    code, out, error = run("digits", dest, "--limit", 60)
    assert (code, error) == (0, "")
    assert "10 classes" in out
    for split in ("train", "val"):
        row = next(line for line in out.splitlines() if line.split()[:1] == [split] and "KB" in line)
        assert row.split()[1:3] == ["60", "1"]
        assert "16 x 16" in row
    assert "120 images in" in out
    assert f"data.path={dest}" in out
    code, out, _ = run("--verify", dest)
    assert code == 0
    assert "120 samples in 2 shards of 2 splits" in out
    data = bytearray((dest / "val-000000.tar").read_bytes())
    data[900] ^= 1
    (dest / "val-000000.tar").write_bytes(data)
    code, _, error = run("--verify", dest)
    assert code == 2
    assert "val-000000.tar is damaged: its checksum differs" in one_line(error)
