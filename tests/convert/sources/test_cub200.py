"""CUB-200-2011 on a stand-in of its files' form."""

from __future__ import annotations

import pytest
from source_places import write_image

from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import open_source
from kdstream.data.shards import open_shards
from kdstream.errors import UserError


@pytest.fixture
def birds(tmp_path):
    root = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross/a.jpg", "001.Black_footed_Albatross/b.jpg", "002.Laysan_Albatross/a.jpg"]
    for name in names:
        write_image(root / "images" / name)
    (root / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 2\n")
    (root / "classes.txt").write_text("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n")
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 1\n")
    return root


def test_cub200(birds, tmp_path):
    for place in (birds, birds.parent):
        source = open_source(f"cub200:{place}")
        assert source.classes == ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
        assert {name: part.labels.tolist() for name, part in source.splits.items()} == {"train": [0, 1], "test": [0]}
    make_shards(f"cub200:{birds}", tmp_path / "s", processes=1)
    assert len(open_shards(tmp_path / "s/train")) == 2


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train_test_split.txt", "1 2\n", "line 1: '2' is neither 1 .train. nor 0 .test."),
        ("train_test_split.txt", "9 1\n", "has an image '9', which images.txt does not name"),
        ("image_class_labels.txt", "1 3\n", "line 1: '3' is no number from 1 to 2"),
        ("image_class_labels.txt", "1 1\n", "has no image '2', which images.txt names"),
        ("classes.txt", "1\n", "line 1: 1 words instead of 2"),
        ("images.txt", "1 c.jpg\n2 d.jpg\n3 e.jpg\n", "No such file or directory .2 of 2 files"),
    ],
)
def test_what_is_wrong_with_birds(birds, file, text, message):
    (birds / file).write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(f"cub200:{birds}")
