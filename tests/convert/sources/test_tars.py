"""tars: shards that exist become others, image by image the same bytes."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from source_places import message
from tars import image_bytes, write_tar

from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import ShardSet, open_shards


def contents(shards: ShardSet) -> dict[str, tuple[bytes, int]]:
    """Key -> image and label."""
    samples = (shards.read(i) for i in range(len(shards)))
    return {s["__key__"]: (next(s[e] for e in ("jpg", "png") if e in s), int(s["cls"])) for s in samples}


def test_own_shards_are_cut_anew(photo_shards, tmp_path):
    made = make_shards(f"tars:{photo_shards}", tmp_path / "set", shard_count=3, seed=7)
    assert (made.info.classes, made.info.splits["train"].count) == (["cat", "dog"], 300)
    assert len(made.info.splits["train"].shards) == 3
    assert contents(open_shards(tmp_path / "set" / "train")) == contents(open_shards(photo_shards / "train"))
    some = make_shards(f"tars:{photo_shards}/train-00000{{0..3}}.tar", tmp_path / "some", resize=8, hold_out=0.1)
    assert (some.info.splits["train"].count, some.info.splits["val"].count) == (90, 10)
    assert some.info.splits["train"].image_size.max == (8, 8)
    sample = open_shards(tmp_path / "some" / "val").read(0)
    assert Image.open(io.BytesIO(sample["jpg"])).size == (8, 8)
    assert (
        "90 of 90 images in train were made smaller, to a shorter side of 8 pixels, as JPEG of quality 95" in some.notes
    )


@pytest.fixture
def foreign(tmp_path):
    """Tars of somebody else: two splits in one folder, another member beside the image."""
    for split, count in (("train", 4), ("val", 2)):
        members = []
        for i in range(count):
            members += [(f"{i}.jpg", image_bytes(i)), (f"{i}.cls", b"%d" % (i % 2)), (f"{i}.json", b"{}")]
        write_tar(tmp_path / "x" / f"pets-{split}-0.tar", members)
    return tmp_path / "x"


def test_foreign_tars_by_folder_pattern_and_split(foreign, tmp_path):
    made = make_shards(f"tars:{foreign}", tmp_path / "all")
    assert {name: part.count for name, part in made.info.splits.items()} == {"train": 4, "val": 2}
    assert "train: images and classes are taken; left out: .json" in made.notes
    one = make_shards(f"tars:{foreign}/*-val-*.tar", tmp_path / "val")
    assert {name: part.count for name, part in one.info.splits.items()} == {"val": 2}
    assert contents(open_shards(tmp_path / "val" / "val")) == contents(open_shards(tmp_path / "all" / "val"))


def test_what_is_not_there(foreign, tmp_path):
    assert "needs a folder of shards" in message("tars")
    assert "is called other-*.tar" in message(f"tars:{foreign}/other-*.tar")
    assert "no shards at" in message(f"tars:{tmp_path / 'nothing'}")
    assert "the braces of '{a.tar' do not fit" in message(f"tars:{foreign}/{{a.tar")
