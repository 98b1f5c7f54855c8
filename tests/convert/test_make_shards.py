"""make_shards: the same bytes however it is run, what it leaves out or refuses, and what it writes down."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tars import assert_same_files

from kdstream.convert import make_shards as convert
from kdstream.convert.make_shards import make_shards, parse_size
from kdstream.data.shards import open_shards
from kdstream.errors import UserError


@pytest.mark.parametrize("processes", [2, 5])
def test_any_number_of_processes_gives_the_same_bytes(photos, photo_shards, tmp_path, processes):
    make_shards(f"imagefolder:{photos}", tmp_path / "set", shard_count=12, processes=processes)
    assert_same_files(photo_shards, tmp_path / "set")


def test_killed_at_the_end_the_same_command_succeeds(photos, photo_shards, tmp_path, monkeypatch):
    """Between dataset.json and the removal of the work folder."""

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    arguments = {"source": f"imagefolder:{photos}", "dest": tmp_path / "set", "shard_count": 12}
    with monkeypatch.context() as patch:
        patch.setattr(convert, "_remove_work", killed)
        with pytest.raises(KeyboardInterrupt):
            make_shards(**arguments)
    assert (tmp_path / "set" / ".making").is_dir()
    assert make_shards(**arguments).converted == 0
    assert_same_files(photo_shards, tmp_path / "set")


def test_a_worker_that_dies_is_told_and_the_rest_continues(photos, photo_shards, tmp_path, monkeypatch):
    real, parent = convert.write_shard, os.getpid()

    def write_shard(images, path, *rest, **settings):
        if os.getpid() != parent and path.name == "train-000007.tar":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(images, path, *rest, **settings)

    arguments = {"source": f"imagefolder:{photos}", "dest": tmp_path / "set", "shard_count": 12}
    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_shard", write_shard)
        with pytest.raises(UserError, match="exit code -9"):
            make_shards(**arguments, processes=2)
    make_shards(**arguments)
    assert_same_files(photo_shards, tmp_path / "set")


def test_order_and_limit(photos, photo_shards, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    make_shards(f"imagefolder:{photos}", first, shard_count=1, limit=40)
    make_shards(f"imagefolder:{photos}", other, shard_count=1, limit=40, seed=1)
    whole = [open_shards(photo_shards / "train").key(i) for i in range(300)]
    keys = [open_shards(first / "train").key(i) for i in range(40)]
    assert keys == whole[:40]
    assert keys != [open_shards(other / "train").key(i) for i in range(40)]
    labels = open_shards(first / "train").labels
    assert 10 <= int(labels.sum()) <= 30  # a shuffle, not the first class


def test_shard_size(photos, tmp_path):
    make_shards(f"imagefolder:{photos}", tmp_path / "set", shard_size=100_000)
    sizes = [path.stat().st_size for path in (tmp_path / "set").glob("*.tar")]
    assert len(sizes) > 4
    assert max(sizes) < 110_000
    counts = [shard.count for shard in convert.load_dataset_info(tmp_path / "set").splits["train"].shards]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("text", "size"), [("100M", 10**8), ("2.5G", 25 * 10**8), ("7k", 7000), ("512", 512), ("1MB", 10**6)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "12X", "-3M", "0", "1e5"])
def test_no_sizes(text):
    with pytest.raises(UserError, match="is no size"):
        parse_size(text)


def test_dataset_json_says_how_it_was_made(photos, photo_shards):
    info = json.loads((photo_shards / "dataset.json").read_bytes())
    assert info["schema"] == 1
    assert info["classes"] == ["cat", "dog"]
    assert info["source"] == f"imagefolder:{photos}"
    assert info["made"]["by"].startswith("kdstream ")
    assert info["made"]["options"]["seed"] == 0
    train = info["splits"]["train"]
    assert train["count"] == 300 == sum(shard["count"] for shard in train["shards"])
    assert train["image_size"] == {"min": [16, 16], "max": [16, 16]}
    assert len(train["shards"]) == 12
    assert train["skipped"] == []


def test_skipped_images_do_not_slip_through_a_run_that_stops(damaged, tmp_path, monkeypatch):
    """Half made with skip, continued without: the skipped image is reported, not accepted."""
    arguments = {"source": f"imagefolder:{damaged}", "dest": tmp_path / "set", "shard_count": 4, "processes": 1}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        with pytest.raises(KeyboardInterrupt):
            make_shards(**arguments, on_error="skip")
    with pytest.raises(UserError, match="cannot read image"):
        make_shards(**arguments)


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "1.jpg").write_text("hello")
    with pytest.raises(UserError, match="none of the images of split 'train' could be read"):
        make_shards(f"imagefolder:{tmp_path / 'in'}", tmp_path / "set", on_error="skip")


def test_other_formats_and_rotations_pass_through(tmp_path):
    folder = tmp_path / "in" / "cat"
    folder.mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by a quarter
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "web.webp", lossless=True)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "few.gif")
    image.save(folder / "bits.BMP")
    made = make_shards(f"imagefolder:{tmp_path / 'in'}", tmp_path / "set")
    split = made.info.splits["train"]
    assert (split.image_size.min, split.image_size.max) == ((6, 6), (9, 9))  # one of them is upright, and so counted
    assert split.adjusted == {"orientation": 1}
    assert any("1 are turned upright, as their EXIF data says" in note for note in made.notes)
    shards = open_shards(tmp_path / "set" / "train")
    files = {f"cat/{path.stem}": path for path in folder.iterdir()}
    for i in range(len(shards)):
        sample = shards.read(i)
        path = files.pop(sample["__key__"])
        assert sample[path.suffix[1:].lower()] == path.read_bytes()
    assert not files


def test_a_source_that_changed_meanwhile(damaged, tmp_path, monkeypatch):
    for name in ("cat/text.jpg", "dog/cut.png", "dog/empty.png"):
        (damaged / name).unlink()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_finish_split", killed)
        with pytest.raises(KeyboardInterrupt):
            make_shards(f"imagefolder:{damaged}", tmp_path / "set")
    os.utime(damaged / "cat" / "0.png", ns=(5, 5))
    with pytest.raises(UserError, match="the source has changed since"):
        make_shards(f"imagefolder:{damaged}", tmp_path / "set")


def test_two_at_once_in_one_folder(photos, tmp_path, monkeypatch):
    import fcntl

    (tmp_path / "set" / ".making").mkdir(parents=True)
    monkeypatch.setattr(convert, "LOCK_SECONDS", 0.3)
    with open(tmp_path / "set" / ".making" / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as kdstream of old holds it, too
        with pytest.raises(UserError, match="another make_shards is writing"):
            make_shards(f"imagefolder:{photos}", tmp_path / "set")


def test_progress_is_shown_on_the_console_that_is_given(photos, tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    make_shards(f"imagefolder:{photos}", tmp_path / "set", shard_count=4, processes=2, console=console)
    assert "300/300" in screen.getvalue()
    assert "images/s" in screen.getvalue()
