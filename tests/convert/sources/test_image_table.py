"""csv: labels, delimiters and headers as people and programs write them; recognised, or refused with the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_bytes import encoded
from PIL import Image
from source_places import message, write_image

from kdstream.convert.open_source import open_source
from kdstream.convert.sources.image_table import csv_table
from kdstream.errors import UserError

PNG = encoded(Image.new("RGB", (4, 4)), "PNG")


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(PNG)
    return tmp_path


def read(folder: Path, text: str | bytes, splits=None):
    (folder / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return csv_table(str(folder / "t.csv"), splits)


def table(folder: Path, *labels: str):
    """A table of images with these labels."""
    return read(folder, "path,label\n" + "".join(f"{'abcdef'[i]}.png,{label}\n" for i, label in enumerate(labels)))


def refusal(folder: Path, *labels: str, text: str | bytes | None = None, splits=None) -> str:
    with pytest.raises(UserError) as caught:
        table(folder, *labels) if text is None else read(folder, text, splits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "numbers", "note"),
    [
        (("0", "2", "1"), [0, 2, 1], None),
        (("0.0", "10.0", "2.0"), [0, 10, 2], "e.g. 0.0 as 0"),
        (("0", "1", "2.", "+3", "-0"), [0, 1, 2, 3, 0], "e.g. 2. as 2"),
        ((" 3", "1 ", "0"), [3, 1, 0], None),
        (("1e1", "0", "1E+0"), [10, 0, 1], "e.g. 1e1 as 10"),
        (("٣", "0", "２"), [3, 0, 2], "e.g. ٣ as 3"),
        (('"2"', '"0"', "1"), [2, 0, 1], None),
        (("007", "010", "0"), [7, 10, 0], "e.g. 007 as 7"),
    ],
)
def test_whole_numbers_are_class_numbers(folder, labels, numbers, note):
    source = table(folder, *labels)
    assert source.splits["train"].labels.tolist() == numbers
    assert source.classes == [str(i) for i in range(max(numbers) + 1)]
    said = [line for line in source.notes if "labels are read as class numbers" in line]
    assert [line for line in said if line.endswith(note or "?")] == said
    assert bool(said) == bool(note)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            ("0", "-1", "1"),
            "line 3: label -1 is negative, as images without a label often are marked: remove such rows",
        ),
        (("0", "-1.0"), "line 3: label -1.0 is negative"),
        (("0", "1", "nan"), "line 4: the label is missing (nan): write its class, or remove the row"),
        (("cat", "NaN"), "line 3: the label is missing (NaN)"),
        (("cat", "<NA>"), "line 3: the label is missing (<NA>)"),
        (("0", "", "1"), "line 3: the label is empty: write its class, or remove the row"),
        (("cat", " "), "line 3: the label is empty"),
        (("0", "1.5"), "line 3: label 1.5 is no whole number"),
        (("0", "inf"), "line 3: label inf is no whole number"),
        (("cat", "-1"), "line 3: label -1 among names"),
        (("cat", "7", "7.0"), "line 4: label 7.0, and 7 in line 3, are one number"),
    ],
)
def test_labels_that_are_refused(folder, labels, expected):
    assert expected in refusal(folder, *labels)


def test_names(folder):
    source = table(folder, "True", "False", "True")
    assert (source.classes, source.splits["train"].labels.tolist()) == (["False", "True"], [1, 0, 1])
    source = table(folder, "9", "A", "a", "10")
    assert source.classes == ["10", "9", "A", "a"]
    assert any("some labels are numbers (9), some are not (A): all are read as names" in note for note in source.notes)
    assert any("classes 'A' and 'a' differ in how they are written only" in note for note in source.notes)
    source = table(folder, "20240101", "20240102")
    assert source.classes == ["20240101", "20240102"]
    assert "too large for class numbers" in source.notes[0]
    assert "one class only, 'cat'" in table(folder, "cat", "cat").notes[0]
    assert table(folder, "none", "scratch").classes == ["none", "scratch"]  # "none" is a name, and in real sets is one


def test_a_file_with_two_labels_is_said(folder):
    source = read(folder, "a.png,cat\nb.png,dog\na.png,dog\na.png,cat\n")
    assert "1 rows give a file another label than an earlier row does" in source.notes


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_line_ends_and_marks(folder, end, delimiter, head, encoding):
    lines = [["a.png", "cat"], ["b.png", "dög"]]
    text = "".join(delimiter.join(line) + end for line in ([["path", "label"]] if head else []) + lines)
    source = read(folder, text.encode(encoding))
    assert (source.classes, source.splits["train"].labels.tolist()) == (["cat", "dög"], [0, 1])
    assert bool(source.notes) == (delimiter != ",")


def test_excel_and_commas_in_names(folder):
    (folder / "a,b.png").write_bytes(PNG)
    assert read(folder, "sep=;\na,b.png;cat\nb.png;dog\n").splits["train"].names == ["a,b.png", "b.png"]
    assert read(folder, 'path,label\n"a,b.png","cat, small"\n').classes == ["cat, small"]
    assert read(folder, "path, label\na.png, cat\n").classes == ["cat"]


@pytest.mark.parametrize(
    ("head", "note"),
    [
        ("Path,LABEL", None),
        ("filename,class", "'filename' is the path, 'class' is the label"),
        ("Image Path,Class-Name", "'Image Path' is the path, 'Class-Name' is the label"),
        ("file_name,category,label", None),  # label is meant
    ],
)
def test_headers(folder, head, note):
    cells = ["a.png", "cat"] if head.count(",") == 1 else ["a.png", "x", "cat"]
    source = read(folder, f"{head}\n{','.join(cells)}\n")
    assert source.classes == ["cat"]
    assert note is None or any(note in line for line in source.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photo,bird\na.png,cat\n", "a header must name the columns path and label (seen: 'photo', 'bird')"),
        ("path,class,class_id\na.png,cat,0\n", "the columns 'class', 'class_id' may all be the label"),
        ("a.png,cat,train\n", "3 columns ('a.png', 'cat', 'train'), but no header"),
        ("cat,a.png\n", "a header must name the columns path and label (seen: 'cat', 'a.png')"),
        ("path,label\nx\\a.png,cat\n", "write / between folders"),
        ("id,breed\na,cat\n", "write the extension as well"),
        (b"a.png,c\xe4t\n", "no CSV file in UTF-8"),
        ("path;label\na.png;cat\nb.png\n", "line 3: 1 columns instead of 2"),
    ],
)
def test_tables_that_are_refused(folder, text, expected):
    assert expected in refusal(folder, text=text)


def test_splits_by_other_names(folder):
    source = read(folder, "path,label,Set\na.png,0,Training\nb.png,1,Training\nc.png,0,valid\nd.png,1,extra\n")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 2, "val": 1, "extra": 1}
    assert "the split 'Training' is read as 'train'" in source.notes
    assert "split 'val' has no image of 1 of the classes ('1')" in source.notes
    both = "path,label,split\na.png,0,val\nb.png,1,valid\n"
    assert "line 3: split 'valid', and 'val' before it, both say 'val'" in refusal(folder, text=both)
    assert list(read(folder, both, ["val", "valid"]).splits) == ["val", "valid"]


def test_photographs_that_cannot_be_read(folder):
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "b.jpg").write_bytes(b"")
    source = read(folder, "a.heic,cat\nb.jpg,dog\nc.png,dog\n")
    assert [reason[:18] for _, reason in sorted(source.splits["train"].refused.items())] == [
        "a HEIC photograph:",
        "an empty file (0 b",
    ]


def csv_source(folder: Path, text: str):
    for name in ("a", "b", "c"):
        write_image(folder / "img" / f"{name}.jpg", ord(name))
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return f"csv:{folder / 't.csv'}"


def test_csv_with_names_header_and_splits(tmp_path):
    text = (
        "\ufefflabel,split,path\nzebra,train,img/a.jpg\n\nant,val,img/b.jpg\nant,train,img/a.jpg\nant,train,img/a.jpg\n"
    )
    source = open_source(csv_source(tmp_path, text))
    assert source.classes == ["ant", "zebra"]
    train = list(source.splits["train"])
    assert [(item.key, item.label) for item in train] == [("zebra/a", 1), ("ant/a", 0), ("ant/a-2", 0)]
    assert train[0].data == (tmp_path / "img" / "a.jpg").read_bytes()
    assert [item.key for item in source.splits["val"]] == ["ant/b"]


def test_csv_with_numbers_and_no_header(tmp_path):
    source = open_source(csv_source(tmp_path, f"img/a.jpg,3\n{tmp_path}/img/b.jpg,0\nimg/c.jpg,10\n"))
    assert source.classes == [str(i) for i in range(11)]
    assert [item.label for item in source.splits["train"]] == [3, 0, 10]
    assert source.notes == ["8 of the classes 0..10 have no row, e.g. 1"]
    assert list(open_source(source.name, ["test"]).splits) == ["test"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("img/a.jpg\n", "line 1: 1 columns instead of 2"),
        ("path,label\nimg/a.jpg,x\nimg/nope.jpg,x\n", "line 3: there is no file"),
        ("photo,bird\nimg/a.jpg,x\n", "a header must name the columns path and label (seen: 'photo', 'bird')"),
        ("img/a.jpg,\n", "line 1: the label is empty"),
        (",x\n", "line 1: the path is empty"),
        ("path,label,split\nimg/a.jpg,x,my split\n", "split 'my split' is no name"),
        ("img,x\n", "img' is no file"),
        ("t.csv,x\n", "does not end in .jpg"),
    ],
)
def test_csv_messages(tmp_path, text, expected):
    assert expected in message(csv_source(tmp_path, text))


def test_csv_that_is_none(tmp_path):
    assert "needs a file" in message("csv")
    assert "cannot read" in message(f"csv:{tmp_path / 'no.csv'}")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    assert "no CSV file in UTF-8" in message(f"csv:{tmp_path / 'x.csv'}")
    assert "makes one split, not 2" in message(csv_source(tmp_path, "img/a.jpg,x\n"), ["a", "b"])
