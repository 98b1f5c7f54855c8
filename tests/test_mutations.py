"""Tars, indices and JPEGs with bytes changed, lost and added: one line, a counted skip or the right samples; no hang.

KDSTREAM_TEST_EVERY=1 makes a thousand of them."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from every import EVERY
from tars import image_bytes, write_tar

from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.stream.decode import decode
from kdstream.stream.stream import Stream

COUNTS = {"tar": 400 if EVERY else 20, "index": 300 if EVERY else 15, "jpeg": 300 if EVERY else 20}
SAMPLES = [(f"{number}.jpg", image_bytes(number, (24, 24))) for number in range(6)]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes, changed in one to four ways."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place, length = draw.randrange(len(found)), draw.choice((1, 1, 2, 8, 100, 512, 5000))
        how = draw.choice(("flip", "set", "zero", "lose", "add", "double", "cut", "number"))
        if how == "flip":
            found[place] ^= 1 << draw.randrange(8)
        elif how == "set":
            found[place : place + length] = draw.randbytes(len(found[place : place + length]))
        elif how == "zero":
            found[place : place + length] = bytes(len(found[place : place + length]))
        elif how == "lose":
            del found[place : place + length]
        elif how == "add":
            found[place:place] = draw.randbytes(length)
        elif how == "double":
            found[place:place] = found[place : place + length]
        elif how == "cut":
            del found[place:]
        else:
            found[place : place + 8] = draw.choice((b"\xff" * 8, b"77777777", b"\x7f" + b"\xff" * 7, b"-1      "))
        if not found:
            return b""
    return bytes(found)


def members(images: list[tuple[str, bytes]]) -> list[tuple[str, bytes | str]]:
    return [one for name, data in images for one in ((name, data), (f"{name[0]}.cls", name[0].encode()))]


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def late(*_):
        raise AssertionError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def said(error: UserError) -> str:
    assert str(error)
    assert "\n" not in str(error)
    return "refused"


def outcome(place: Path, listed: Path) -> str:
    """What comes of reading a split to its end: "refused", "skipped" or "read"; every batch is whole."""
    try:
        with no_longer_than(60):
            stream = Stream(place, 3, on_error="skip", skipped_file=listed) | decode
            batches = list(stream)
    except UserError as error:
        return said(error)
    assert len(batches) == stream.steps
    assert sum(map(len, batches)) == len(stream.dataset)
    return "skipped" if stream.skipped else "read"


@pytest.mark.parametrize("kind", ["tar", "jpeg"])
def test_a_damaged_set_of_tars_is_one_line_or_a_counted_skip(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = write_tar(tmp_path / "whole.tar", members(SAMPLES)).read_bytes()
    found: Counter[str] = Counter()
    for seed in range(COUNTS[kind]):
        draw, place = random.Random(seed), tmp_path / "set" / "train"
        if kind == "tar":
            place.mkdir(parents=True)
            (place / "a.tar").write_bytes(mutated(whole, draw))
        else:
            number = draw.randrange(len(SAMPLES))
            images = list(SAMPLES)
            images[number] = (images[number][0], mutated(images[number][1], draw))
            write_tar(place / "a.tar", members(images))
        try:
            found[outcome(place, tmp_path / f"{seed}.jsonl")] += 1
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}: {type(error).__name__}") from error
        shutil.rmtree(tmp_path / "set")
    print(kind, dict(found))
    assert set(found) <= {"refused", "skipped", "read"}
    assert found["refused" if kind == "tar" else "skipped"]


def test_a_damaged_index_is_one_line_or_the_right_samples(photo_shards, tmp_path):
    place = Path(shutil.copytree(photo_shards, tmp_path / "set"))
    index = next(place.glob("*.npz"))
    split, whole = index.name.partition(".")[0], index.read_bytes()
    right = open_shards(place / split)
    wanted = [right.read(number) for number in range(0, len(right), 29)]
    found: Counter[str] = Counter()
    for seed in range(COUNTS["index"]):
        index.write_bytes(mutated(whole, random.Random(seed)))
        try:
            with no_longer_than(60):
                shards = open_shards(place / split)
                read = [shards.read(number) for number in range(0, len(right), 29)]
        except UserError as error:
            found[said(error)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}") from error
        else:
            same = [one["__key__"] == other["__key__"] for one, other in zip(read, wanted, strict=True)]
            found["read" if all(same) else "other"] += 1
    print("index", dict(found))
    assert found["refused"]
    # npz carries a checksum of every array: what is read is what was written.
    assert not found["other"]
