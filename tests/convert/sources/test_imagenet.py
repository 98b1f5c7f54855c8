"""ImageNet with a flat validation folder and every list that labels it, and choices of its images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from source_places import labelled, message, write_image

from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import open_source
from kdstream.data.shards import open_shards
from kdstream.errors import UserError

WNIDS = ("n01440764", "n01443537", "n02085620")
VAL = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 7)]
CLASS_OF = dict(zip(VAL, [WNIDS[i] for i in (2, 0, 1, 1, 2, 0)], strict=True))


@pytest.fixture
def imagenet(tmp_path):
    root = tmp_path / "imagenet"
    for wnid in WNIDS:
        for i in range(3):
            write_image(root / "train" / wnid / f"{wnid}_{i}.JPEG", i)
    for name in VAL:
        write_image(root / "val" / name)
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
    assert "nothing says their classes: put the development kit" in message(f"imagenet:{imagenet}")
    (imagenet / "val.txt").write_text(f"{VAL[0]} 0\n")
    assert "val.txt says no class for 5 of 6 images" in message(f"imagenet:{imagenet}")
    (imagenet / "val.txt").write_text("0\n" * 5)
    assert "has 5 lines for 6 images in val" in message(f"imagenet:{imagenet}")
    (imagenet / "val.txt").write_text("".join(f"{n} 3\n" for n in VAL))
    assert "line 1: '3' is no class of the training images" in message(f"imagenet:{imagenet}")
    assert "has no train" in message(f"imagenet:{imagenet / 'val'}")


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
