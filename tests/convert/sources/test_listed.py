"""Lists of words and numbers, read with care; files that a list names."""

from __future__ import annotations

import pytest
from source_places import write_image

from kdstream.convert.sources.listed import folder_of, named_files, number, rows
from kdstream.errors import UserError


def test_rows_and_numbers(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("1 a b.jpg\n\n  22   c.jpg \n")
    assert list(rows(file, 2)) == [(1, ["1", "a b.jpg"]), (3, ["22", "c.jpg"])]
    with pytest.raises(UserError, match=r"list\.txt, line 3: 2 words instead of 3"):
        list(rows(file, 3))
    file.write_bytes(b"\xff\xfe1")
    with pytest.raises(UserError, match=r"list\.txt is no text"):
        list(rows(file, 1))
    assert number(file, 1, "7", 7) == 7
    for word in ("0", "8", "-1", "1.0", "\u0663"):
        with pytest.raises(UserError, match=r"line 4: .* is no number from 1 to 7"):
            number(file, 4, word, 7)


def test_files_and_folders(tmp_path):
    write_image(tmp_path / "inner" / "a" / "1.jpg")
    assert folder_of("x", str(tmp_path), ["inner"], ["a"]) == tmp_path / "inner"
    part = named_files(tmp_path / "inner", ["a/1.jpg", "a/1.jpg"], [1, 0], ["wren", "robin"])
    assert (part.keys, part.labels.tolist()) == (["robin/1", "wren/1"], [1, 0])
    with pytest.raises(UserError, match=r"2\.jpg: No such file .*1 of 2 files that the list names are missing"):
        named_files(tmp_path / "inner", ["a/1.jpg", "a/2.jpg"], [0, 0], ["wren"])
    for place, message in (("", "needs a folder: x:DIR"), (str(tmp_path / "none"), "does not exist")):
        with pytest.raises(UserError, match=message):
            folder_of("x", place, [], ["a"])
    with pytest.raises(UserError, match=r"x: .* has no b: name the folder that holds a, b"):
        folder_of("x", str(tmp_path / "inner"), [], ["a", "b"])
