"""Data sets with lists of their own, on stand-ins of their files' form."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import open_source
from kdstream.data.shards import open_shards
from kdstream.errors import UserError


def image(path: Path, seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)).save(path, "JPEG")
    return path.name


def told(source: str, splits=None) -> str:
    with pytest.raises(UserError) as caught:
        open_source(source, splits)
    return str(caught.value)


def labelled(source, split: str) -> dict[str, str]:
    """File name -> class."""
    part = source.splits[split]
    return {os.path.basename(part.where(i)): source.classes[part.labels[i]] for i in range(len(part))}


# --- imagenet

WNIDS = ("n01440764", "n01443537", "n02085620")
VAL = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 7)]
CLASS_OF = dict(zip(VAL, [WNIDS[i] for i in (2, 0, 1, 1, 2, 0)], strict=True))


@pytest.fixture
def imagenet(tmp_path):
    root = tmp_path / "imagenet"
    for wnid in WNIDS:
        for i in range(3):
            image(root / "train" / wnid / f"{wnid}_{i}.JPEG", i)
    for name in VAL:
        image(root / "val" / name)
    return root


def devkit(root: Path) -> None:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    ids = {WNIDS[1]: 1, WNIDS[2]: 2, WNIDS[0]: 3}  # another order than the synsets'
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    savemat(data / "meta.mat", {"synsets": np.array([(number, wnid, "a fish") for wnid, number in ids.items()], kind)})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{ids[CLASS_OF[n]]}\n" for n in VAL))


def pairs(root: Path) -> None:
    (root / "val.txt").write_text("".join(f"{n} {WNIDS.index(CLASS_OF[n])}\n" for n in reversed(VAL)))


def synsets(root: Path) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("".join(f"{CLASS_OF[n]}\n" for n in VAL))


def kaggle(root: Path) -> None:
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        rows.writerows([Path(n).stem, f"{CLASS_OF[n]} 1 2 3 4 {CLASS_OF[n]} 5 6 7 8"] for n in VAL)


@pytest.mark.parametrize("write", [devkit, pairs, synsets, kaggle])
def test_a_flat_validation_folder_is_labelled_by_its_list(imagenet, write):
    write(imagenet)
    source = open_source(f"imagenet:{imagenet}")
    assert (source.classes, labelled(source, "val")) == (list(WNIDS), CLASS_OF)
    assert {len(part) for part in source.splits.values()} == {9, 6}
    assert list(open_source(f"imagenet:{imagenet}", ["val"]).splits) == ["val"]


def test_kaggles_folders_and_class_folders(imagenet, tmp_path):
    inner = tmp_path / "k" / "ILSVRC" / "Data" / "CLS-LOC"
    inner.parent.mkdir(parents=True)
    imagenet.rename(inner)
    kaggle(tmp_path / "k")
    assert labelled(open_source(f"imagenet:{tmp_path / 'k'}"), "val") == CLASS_OF
    for name, wnid in CLASS_OF.items():
        (inner / "val" / wnid).mkdir(exist_ok=True)
        (inner / "val" / name).rename(inner / "val" / wnid / name)
    assert labelled(open_source(f"imagenet:{inner}"), "val") == CLASS_OF


def test_what_is_wrong_with_imagenet(imagenet):
    assert "nothing says their classes: put the development kit" in told(f"imagenet:{imagenet}")
    (imagenet / "val.txt").write_text(f"{VAL[0]} 0\n")
    assert "val.txt says no class for 5 of 6 images" in told(f"imagenet:{imagenet}")
    (imagenet / "val.txt").write_text("0\n" * 5)
    assert "has 5 lines for 6 images in val" in told(f"imagenet:{imagenet}")
    (imagenet / "val.txt").write_text("".join(f"{n} 3\n" for n in VAL))
    assert "line 1: '3' is no class of the training images" in told(f"imagenet:{imagenet}")
    assert "has no train" in told(f"imagenet:{imagenet / 'val'}")


def test_one_percent_by_a_list_and_so_many_a_class(imagenet, tmp_path):
    pairs(imagenet)
    chosen = tmp_path / "1percent.txt"
    chosen.write_text(f"{WNIDS[0]}_2.JPEG\n{WNIDS[1]}/{WNIDS[1]}_0.JPEG\n\n{WNIDS[1]}_1\n")
    info = make_shards(f"imagenet:{imagenet}", tmp_path / "s", only=chosen, processes=1).info
    assert (info.splits["train"].count, info.splits["val"].count) == (3, 6)
    keys = {open_shards(tmp_path / "s/train").key(i) for i in range(3)}
    assert keys == {f"{WNIDS[0]}/{WNIDS[0]}_2", f"{WNIDS[1]}/{WNIDS[1]}_0", f"{WNIDS[1]}/{WNIDS[1]}_1"}
    info = make_shards(f"imagenet:{imagenet}", tmp_path / "two", per_class=2, processes=1).info
    assert (info.splits["train"].count, info.splits["val"].count) == (6, 6)
    assert np.bincount(open_shards(tmp_path / "two/train").labels).tolist() == [2, 2, 2]
    chosen.write_text("n01440764_99.JPEG\n")
    with pytest.raises(UserError, match=r"1percent\.txt, line 1: 'n01440764_99\.JPEG' is no image of the split"):
        make_shards(f"imagenet:{imagenet}", tmp_path / "x", only=chosen)
    with pytest.raises(UserError, match=r"chosen from the split 'train', .* has val"):
        make_shards(f"imagenet:{imagenet}", tmp_path / "x", splits=["val"], per_class=1)
    assert not (tmp_path / "x").exists()


# --- cub200


@pytest.fixture
def birds(tmp_path):
    root = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross/a.jpg", "001.Black_footed_Albatross/b.jpg", "002.Laysan_Albatross/a.jpg"]
    for name in names:
        image(root / "images" / name)
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


# --- stanford_dogs


def dogs(root: Path, **lists: list[tuple[str, int]]) -> Path:
    for split, rows in lists.items():
        files = np.empty((len(rows), 1), object)
        for i, (path, _) in enumerate(rows):
            image(root / "Images" / path)
            files[i, 0] = path
        labels = np.array([[label] for _, label in rows], np.uint8)
        savemat(root / f"{split}_list.mat", {"file_list": files, "labels": labels, "annotation_list": files})
    return root


def test_stanford_dogs(tmp_path):
    root = dogs(
        tmp_path,
        train=[("n02085620-Chihuahua/a.jpg", 1), ("n02085782-Japanese_spaniel/b.jpg", 2)],
        test=[("n02085620-Chihuahua/c.jpg", 1)],
    )
    source = open_source(f"stanford_dogs:{root}")
    assert source.classes == ["Chihuahua", "Japanese_spaniel"]
    assert labelled(source, "train") == {"a.jpg": "Chihuahua", "b.jpg": "Japanese_spaniel"}
    assert labelled(source, "test") == {"c.jpg": "Chihuahua"}


def test_what_is_wrong_with_dogs(tmp_path):
    one = ("n1-a/a.jpg", 1)
    for label, message in ((1, "class 1 holds 'a' and 'b'"), (3, "classes 1 to 3, not all")):
        folder = dogs(tmp_path / str(label), train=[one], test=[("n2-b/b.jpg", label)])
        assert message in told(f"stanford_dogs:{folder}")
    damaged = dogs(tmp_path / "damaged", train=[one], test=[one])
    (damaged / "test_list.mat").write_bytes(b"no matlab")
    assert "test_list.mat is no list of Stanford Dogs" in told(f"stanford_dogs:{damaged}")


# --- cifar10c, cifar100c


@pytest.mark.parametrize(("kind", "classes"), [("cifar10c", 10), ("cifar100c", 100)])
def test_corrupted_cifar(tmp_path, kind, classes):
    folder = tmp_path / "c"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (20, 32, 32, 3), np.uint8)
    labels = np.tile([3, 0, classes - 1, 1], 5).astype(np.uint8)
    for name, array in (("fog", images), ("snow", 255 - images), ("labels", labels)):
        np.save(folder / f"{name}.npy", array)
    source = open_source(f"{kind}:{folder}")
    assert list(source.splits) == [f"{name}_{n}" for name in ("fog", "snow") for n in range(1, 6)]
    assert (len(source.classes), len(set(source.classes)), source.classes) == (classes, classes, sorted(source.classes))
    make_shards(f"{kind}:{folder}", tmp_path / "s", splits=["fog_3"], processes=1)
    shards = open_shards(tmp_path / "s/fog_3")
    assert sorted(shards.labels.tolist()) == sorted(labels[:4].tolist())
    assert list(open_source(f"{kind}:{folder}", ["snow_5"]).splits) == ["snow_5"]
    assert np.array_equal(source.splits["snow_2"].images[0], 255 - images[4])
    assert "its splits are such as fog_1" in told(f"{kind}:{folder}", ["rain_1"])


def test_what_is_wrong_with_corruptions(tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros(5, np.uint8))
    assert "holds no corruptions" in told(f"cifar10c:{tmp_path}")
    np.save(tmp_path / "fog.npy", np.zeros((4, 32, 32, 3), np.uint8))
    assert "fog.npy holds uint8 [4, 32, 32, 3], not uint8 [5, 32, 32, 3]" in told(f"cifar10c:{tmp_path}")
    np.save(tmp_path / "labels.npy", np.full(5, 10))
    assert "has labels 10 to 10, not 0 to 9" in told(f"cifar10c:{tmp_path}")
    np.save(tmp_path / "labels.npy", np.array([{}] * 5, object), allow_pickle=True)
    assert "labels.npy is no array of numbers" in told(f"cifar10c:{tmp_path}")
