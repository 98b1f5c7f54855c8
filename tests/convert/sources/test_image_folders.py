"""imagefolder: how people arrange images; recognised, or refused with what was seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_bytes import encoded
from PIL import Image
from source_places import message, write_image

from kdstream.convert.open_source import open_source
from kdstream.convert.split import Source

PNG = encoded(Image.new("RGB", (4, 4), (9, 8, 7)), "PNG")


def arrange(root: Path, *places: str) -> str:
    """An image at each of the places; ``a/*`` for a folder with two images. Returns the source's name."""
    for place in places:
        for number in range(2) if place.endswith("*") else (None,):
            path = root / place.replace("*", f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PNG)
    return f"imagefolder:{root}"


def counts(source: Source) -> dict[str, list[int]]:
    """Images of each class in each split."""
    return {
        name: [int((split.labels == c).sum()) for c in range(len(source.classes))]
        for name, split in source.splits.items()
    }


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("Train", "Val"), ["train", "val"]),
        (("Training", "Testing"), ["train", "test"]),
        (("training", "validation", "test"), ["train", "val", "test"]),
        (("seg_train", "seg_test"), ["train", "test"]),
        (("train_set", "TestSet"), ["train", "test"]),
        (("train", "valid"), ["train", "val"]),
        (("train", "dev"), ["train", "val"]),
        (("TRAIN", "eval"), ["train", "val"]),
        (("train2017", "val2017"), ["train", "val"]),
        (("birds_train", "birds_test"), ["train", "test"]),
        (("birds-training-data", "birds-valid-data"), ["train", "val"]),
        (("training images", "test images"), ["train", "test"]),
    ],
)
def test_splits_by_other_names(tmp_path, folders, splits):
    name = arrange(tmp_path, *(f"{folder}/{c}/*" for folder in folders for c in ("cat", "dog")))
    source = open_source(name)
    assert (source.classes, counts(source)) == (["cat", "dog"], {split: [2, 2] for split in splits})
    assert list(source.splits["train"].keys) == ["cat/0", "cat/1", "dog/0", "dog/1"]
    for folder, split in zip(folders, splits, strict=True):
        assert (f"the folder {folder!r} is read as the split {split!r}" in source.notes) == (folder != split)
    assert list(open_source(name, ["train"]).splits) == ["train"]
    own = open_source(name, [folders[1]])  # under the name that the user gives
    assert counts(own) == {folders[1]: [2, 2]}


@pytest.mark.parametrize(
    ("wrapped", "kept"),
    [
        ("archive/{}", "archive"),
        ("archive/birds-1.0/{}", "archive/birds-1.0"),
    ],
)
def test_one_level_too_many(tmp_path, wrapped, kept):
    inside = ("train/cat/*", "train/dog/*", "val/cat/*", "val/dog/*")
    source = open_source(arrange(tmp_path / "splits", *(wrapped.format(place) for place in inside)))
    assert counts(source) == {"train": [2, 2], "val": [2, 2]}
    assert source.notes == [f"{tmp_path / 'splits'} holds nothing but the folder {kept}: read from there"]
    source = open_source(arrange(tmp_path / "classes", *(wrapped.format(place) for place in ("cat/*", "dog/*"))))
    assert (source.classes, counts(source)) == (["cat", "dog"], {"train": [2, 2]})
    assert source.notes == [f"{tmp_path / 'classes'} holds nothing but the folder {kept}: read from there"]
    doubled = arrange(
        tmp_path / "twice", "seg_train/seg_train/cat/*", "seg_train/seg_train/dog/*", "seg_test/seg_test/cat/*"
    )
    assert open_source(doubled).classes == ["cat", "dog"]
    assert "train/images holds nothing" not in str(open_source(doubled).notes)


def test_the_only_folder_is_a_split(tmp_path):
    source = open_source(arrange(tmp_path, "test/cat/*", "test/dog/*"))
    assert (source.classes, counts(source)) == (["cat", "dog"], {"test": [2, 2]})


def test_splits_inside_of_classes(tmp_path):
    source = open_source(arrange(tmp_path / "a", "cat/train/*", "cat/test/*", "dog/train/*", "dog/test/x.png"))
    assert (source.classes, counts(source)) == (["cat", "dog"], {"train": [2, 2], "test": [2, 1]})
    assert source.splits["train"].keys[0] == "cat/0"
    assert source.splits["test"].load(2) == PNG
    assert source.notes == ["splits were found inside the class folders: train, test"]
    assert list(open_source(source.name, ["test"]).splits) == ["test"]
    assert "no split 'val': found train, test" in message(source.name, ["val"])
    lacking = open_source(arrange(tmp_path / "b", "cat/Training/*", "cat/Validation/*", "dog/Training/*"))
    assert counts(lacking) == {"train": [2, 2], "val": [2, 0]}
    mixed = message(arrange(tmp_path / "c", "cat/train/*", "cat/test/*", "dog/*"))
    assert "'cat' holds split folders such as 'test', 'dog' does not" in mixed
    assert "two folders that say 'val'" in message(arrange(tmp_path / "d", "cat/val/*", "cat/valid/*", "dog/val/*"))


def test_a_class_that_is_called_train(tmp_path):
    source = open_source(arrange(tmp_path, "bus/*", "car/*", "train/*"))
    assert (source.classes, counts(source)) == (["bus", "car", "train"], {"train": [2, 2, 2]})
    assert "it is taken for a class, not for a split" in source.notes[0]
    deep = open_source(arrange(tmp_path / "split", "train/bus/*", "train/train/*", "test/bus/*", "test/train/*"))
    assert deep.classes == ["bus", "train"]


def test_images_without_class_folders(tmp_path):
    assert "has no class folders (it holds 2 images directly, e.g. 0.png)" in message(arrange(tmp_path / "a", "*"))
    assert "csv:FILE" in message(arrange(tmp_path / "a", "*"))
    flat = message(arrange(tmp_path / "b", "train/cat/*", "train/dog/*", "test/*"))
    assert f"{tmp_path / 'b' / 'test'} has no class folders (it holds 2 images directly" in flat
    assert "--split" in flat
    assert counts(open_source(f"imagefolder:{tmp_path / 'b'}", ["train"])) == {"train": [2, 2]}
    assert "has no class folders" in message(arrange(tmp_path / "c", "train/*", "val/*"))
    assert "has no class folders" in message(arrange(tmp_path / "d", "train/*"))
    assert "has no class folders (it holds no images)" in message(
        f"imagefolder:{(tmp_path / 'e').mkdir() or tmp_path / 'e'}"
    )


def test_folders_that_hold_parts_and_no_class(tmp_path):
    for number, places in enumerate([("images/*",), ("images/*", "annotations/*"), ("JPEGImages/*", "cat/*")]):
        assert "does not look like a class" in message(arrange(tmp_path / str(number), *places))
    tiny = arrange(tmp_path / "tiny", "train/n01/images/*", "train/n02/images/*", "val/images/*")
    assert "have no class in common: 'train' has the folders 'n01', 'n02', the others 'images'" in message(tiny)
    assert counts(open_source(tiny, ["train"])) == {"train": [2, 2]}


def test_one_class_is_said(tmp_path):
    source = open_source(arrange(tmp_path, "cat/*"))
    assert (source.classes, counts(source)) == (["cat"], {"train": [2]})
    assert source.notes == ["there is one class only, 'cat': nothing can be told apart"]


def test_splits_by_unknown_names_are_not_taken_for_classes(tmp_path):
    name = arrange(tmp_path, *(f"{fold}/{c}/*" for fold in ("fold1", "fold2", "fold3") for c in ("cat", "dog")))
    assert "'fold1', 'fold2', 'fold3'" in message(name)
    assert "--split fold1 fold2 fold3" in message(name)
    assert counts(open_source(name, ["fold1", "fold3"])) == {"fold1": [2, 2], "fold3": [2, 2]}
    office = arrange(tmp_path / "o", *(f"{d}/images/{c}/*" for d in ("amazon", "dslr") for c in ("cup", "pen")))
    assert "--split amazon dslr" in message(office)


def test_a_folder_beside_the_splits(tmp_path):
    name = arrange(tmp_path, "seg_train/cat/*", "seg_train/dog/*", "seg_test/cat/*", "seg_test/dog/*", "seg_pred/*")
    said = message(name)
    assert "also the folder 'seg_pred' (2 images without class folders)" in said
    assert "--split seg_test seg_train" in said
    assert counts(open_source(name, ["seg_train", "seg_test"])) == {"seg_test": [2, 2], "seg_train": [2, 2]}
    assert counts(open_source(name, ["train", "test"])) == {"train": [2, 2], "test": [2, 2]}
    (tmp_path / "w" / "lists").mkdir(parents=True)
    (tmp_path / "w" / "lists" / "train.txt").write_text("0.png")
    source = open_source(arrange(tmp_path / "w", "train/cat/*", "train/dog/*", "val/cat/*", "val/dog/*"))
    assert source.notes == ["the folder 'lists' holds no images: left out"]


def test_two_folders_for_one_split(tmp_path):
    name = arrange(tmp_path, *(f"{split}/{c}/*" for split in ("train", "val", "valid") for c in ("cat", "dog")))
    assert "'val' and 'valid', and both say 'val'" in message(name)
    assert list(open_source(name, ["train", "valid"]).splits) == ["train", "valid"]


def test_a_class_that_a_split_lacks(tmp_path):
    source = open_source(arrange(tmp_path, "train/a/*", "train/c/*", "val/a/*", "val/b/*", "val/c/*", "test/c/*"))
    assert source.classes == ["a", "b", "c"]
    assert counts(source) == {"train": [2, 0, 2], "val": [2, 2, 2], "test": [0, 0, 2]}
    assert source.notes[0] == (
        "split 'train' has no image of 1 of the 3 classes ('b'; 2 images in the other splits): labels are numbered "
        "over the classes of all splits"
    )
    assert source.notes[1].startswith("split 'test' has no image of 2 of the 3 classes ('a', 'b'; 6 images")
    case = message(arrange(tmp_path / "case", "train/Cat/*", "train/dog/*", "val/cat/*", "val/dog/*"))
    assert "the split 'train'" in case
    assert "a class 'Cat', another 'cat'" in case
    letters = open_source(arrange(tmp_path / "letters", "train/A/*", "train/a/*", "val/A/*", "val/a/*"))
    assert letters.classes == ["A", "a"]


def test_a_class_folder_unlike_the_others_is_said(tmp_path):
    source = open_source(arrange(tmp_path, "cat/*", "dog/*", "animals/cat/*", "animals/dog/*"))
    assert counts(source) == {"train": [4, 2, 2]}
    assert source.notes == [
        "unlike the other classes, 'animals' holds images in folders of its own only ('cat', 'dog'): all are taken for "
        "that class"
    ]


def test_loose_images_are_counted(tmp_path):
    source = open_source(arrange(tmp_path / "a", "cat/*", "dog/*", "x.png"))
    assert source.notes == [
        f"1 images that lie directly in {tmp_path / 'a'} belong to no class and are left out, e.g. x.png"
    ]
    source = open_source(arrange(tmp_path / "b", "train/cat/*", "train/dog/*", "train/x.png", "val/cat/*", "val/dog/*"))
    assert f"1 images that lie directly in {tmp_path / 'b' / 'train'}" in source.notes[0]


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "birds.zip").write_bytes(b"PK\x03\x04")
    assert "is a file; unpack it first" in message(f"imagefolder:{tmp_path / 'birds.zip'}")


def test_files_that_are_no_usual_images(tmp_path):
    name = arrange(tmp_path, "cat/*", "dog/*")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    contents = {
        "a.HEIC": heic,
        "b.nef": b"II*\0" + bytes(40),
        "c.png.crdownload": PNG[:40],
        "d.psd": b"8BPS\0\1",
        "e.mov": b"\0\0\0\x14ftypqt  " + bytes(8),
        "f.jpg": b"",
        "g.svg": b"<svg/>",
        "h.pdf": b"%PDF-1.4",
        "i.heic": PNG,  # an ordinary image under that name
        "j.txt": b"words",
        "k.part": b"words",
        "l.unknown": PNG,
        "Thumbs.db": b"\xd0\xcf",
        ".DS_Store": b"",
    }
    for file, data in contents.items():
        (tmp_path / "cat" / file).write_bytes(data)
    source = open_source(name)
    split = source.splits["train"]
    said = {Path(split.where(i)).name: reason.partition(":")[0] for i, reason in split.refused.items()}
    assert said == {
        "a.HEIC": "a HEIC photograph",
        "b.nef": "a camera's RAW file (NEF)",
        "c.png.crdownload": "an unfinished download (.crdownload)",
        "d.psd": "a Photoshop file (PSD)",
        "e.mov": "a video",
        "f.jpg": "an empty file (0 bytes)",
        "g.svg": "an SVG drawing",
        "h.pdf": "a PDF document",
    }
    assert any(Path(split.where(i)).name == "i.heic" for i in range(len(split)))
    assert source.notes[0].startswith("4 files without an image's extension left out, e.g. cat/")
    assert source.notes[1] == "1 of them hold images, e.g. cat/l.unknown: to use them, let their names end so"
    half = split.subset([i for i in range(len(split)) if i % 2])
    assert {half.where(i): reason for i, reason in half.refused.items()} == {
        split.where(i): reason for i, reason in split.refused.items() if i % 2
    }


def test_imagefolder_with_one_split(tmp_path):
    a = write_image(tmp_path / "hen" / "1.jpg", 1)
    b = write_image(tmp_path / "hen" / "1.png", 2)
    c = write_image(tmp_path / "cat" / "deep" / "x.y.JPEG", 3)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._x.jpg").write_text("a Mac's")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".hidden").mkdir()
    source = open_source(f"imagefolder:{tmp_path}")
    assert source.classes == ["cat", "hen"]
    assert list(source.splits) == ["train"]
    split = source.splits["train"]
    assert len(split) == 3
    assert list(split) == [
        ("cat/deep/x_y", c.read_bytes(), "jpg", 0),
        ("hen/1", a.read_bytes(), "jpg", 1),
        ("hen/1-2", b.read_bytes(), "png", 1),
    ]
    assert split.nbytes() == sum(len(item.data) for item in split)
    assert source.notes == ["1 files without an image's extension left out, e.g. cat/notes.txt"]
    assert list(open_source(f"imagefolder:{tmp_path}", ["val"]).splits) == ["val"]


def test_imagefolder_with_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for name in ("b", "a"):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.jpg", i)
    source = open_source(f"imagefolder:{tmp_path}")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "val": 4, "test": 2}
    assert source.classes == ["a", "b"]
    assert list(open_source(f"imagefolder:{tmp_path}", ["test", "train"]).splits) == ["train", "test"]
    write_image(tmp_path / "extra" / "a" / "0.jpg")
    write_image(tmp_path / "extra" / "b" / "0.jpg")
    assert "also the folder 'extra'" in message(f"imagefolder:{tmp_path}")
    assert list(open_source(f"imagefolder:{tmp_path}", ["train", "extra"]).splits) == ["train", "extra"]
    assert "no split 'nope'" in message(f"imagefolder:{tmp_path}", ["train", "nope"])
    write_image(tmp_path / "val" / "c" / "0.jpg")


def test_imagefolder_messages(tmp_path):
    assert "needs a folder" in message("imagefolder")
    assert "nothing follows the colon" in message("imagefolder:")
    assert "does not exist" in message(f"imagefolder:{tmp_path / 'no'}")
    image = write_image(tmp_path / "flat" / "1.jpg")
    assert "is a file" in message(f"imagefolder:{image}")
    assert "has no class folders" in message(f"imagefolder:{tmp_path / 'flat'}")
    write_image(tmp_path / "some" / "cat" / "1.jpg")
    (tmp_path / "some" / "dog").mkdir()
    assert "class folder 'dog'" in message(f"imagefolder:{tmp_path / 'some'}")
    (tmp_path / "some" / "dog").rmdir()
    os.mkdir(os.fsencode(tmp_path / "some") + b"/\xff")
    assert "not valid UTF-8" in message(f"imagefolder:{tmp_path / 'some'}")
    assert "did you mean imagefolder:" in message(str(tmp_path))
    assert "did you mean 'imagefolder'?" in message("imagefoldr:x")
    assert "makes one split, not 2" in message(f"imagefolder:{tmp_path / 'some'}", ["a", "b"])
