"""The images below a folder: links, pipes and files that are none."""

from __future__ import annotations

import os

from source_places import message, write_image

from kdstream.convert.image_listing import LeftOut, find_images
from kdstream.convert.open_source import open_source


def test_imagefolder_follows_links_but_not_in_circles(tmp_path):
    image = write_image(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "2.jpg").symlink_to(image)
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    split = open_source(f"imagefolder:{tmp_path / 'data'}").splits["train"]
    assert [item.key for item in split] == ["cat/2", "dog/1"]


def test_imagefolder_with_a_pipe_or_a_broken_link(tmp_path):
    write_image(tmp_path / "cat" / "1.jpg")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    assert "2.jpg: it is no file" in message(f"imagefolder:{tmp_path}")
    (tmp_path / "cat" / "2.jpg").unlink()
    (tmp_path / "cat" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "2.jpg: No such file" in message(f"imagefolder:{tmp_path}")


def test_files_left_out_are_counted_and_those_that_hold_images_said(tmp_path):
    image = write_image(tmp_path / "cat" / "1.png").read_bytes()
    for name, data in (("2.txt", b"hello"), ("3.dat", image), (".4.png", image), ("5.heic", b"\0\0\0\x18ftypheic")):
        (tmp_path / "cat" / name).write_bytes(data)
    left_out = LeftOut()
    found = sorted(find_images(tmp_path / "cat", "cat", left_out))
    assert [(file.path, file.size) for file in found] == [("cat/1.png", len(image)), ("cat/5.heic", 12)]
    assert found[0].refused is None
    assert found[1].refused.startswith("a HEIC photograph")
    assert left_out.count == 2
    assert left_out.notes()[1] == "1 of them hold images, e.g. cat/3.dat: to use them, let their names end so"
