"""Published weights by name: what is listed exists, what arrives is what was published, one line where it is not."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
import torchvision
from publishing import publish, save_as_repdistiller, serving

import kdstream as kd
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import MODELS, build
from kdstream.models.download import Unavailable, cached
from kdstream.models.pretrained import load_for
from kdstream.models.published import difference, facts, find, known

NAME = "published:net@digits"


def network(name="resnet8", classes=10):
    torch.manual_seed(0)
    return build(name, classes)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serving(tmp_path / "served", monkeypatch) as server:
        yield server


@pytest.fixture
def served(server, monkeypatch):
    """The server's file of a network, listed as ``NAME``."""
    path = server.folder / "ckpt_epoch_240.pth"
    save_as_repdistiller(network().state_dict(), path)
    publish(server, monkeypatch, "net@digits")
    return path


def kept():
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


# --- the list


@pytest.mark.parametrize("name", known())
def test_what_is_listed_can_be_built_and_asked_for(name):
    one = known()[name]
    with torch.device("meta"):
        assert build(**one.network).spec == one.network
    assert name.partition("@")[0] == one.network["name"]
    assert cached(one.address).suffix == ".pth"
    assert len(one.mean) == len(one.std) == 3
    assert one.sha256 is None or re.fullmatch("[0-9a-f]{64}", one.sha256)
    assert facts(one)["top1"] == one.top1


def test_of_imagenet_it_is_torchvisions_first_weights():
    imagenet = {name.partition("@")[0]: one for name, one in known().items() if name.endswith("@imagenet")}
    assert {"resnet18", "resnet34", "resnet50"} <= set(imagenet)
    for name, one in imagenet.items():
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        assert one.address == weights.url
        assert one.top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert one.classes == weights.meta["categories"]
    others = {name.partition("@")[0] for name in known() if name.endswith("@cifar100")}
    assert others <= set(MODELS)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("published:wrn_40_3@cifar100", r"did you mean 'wrn_40_2@cifar100'\?"),
        ("published:resnet34", r"did you mean 'resnet34@imagenet'\?"),
        ("published:", "known: ResNet50@cifar100, "),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(UserError, match=rf"^no published weights '{name}': {hint}.*\(kdstream models --published"):
        kd.load_teacher(name)


# --- what arrives


def test_a_file_of_repdistillers_form_is_downloaded_once_and_brings_what_is_known_of_it(server, served):
    for number in range(2):
        teacher = kd.load_teacher(NAME, 10)
        assert weights_hash(teacher) == weights_hash(network())
        assert len(server.asked) == 1, number
    assert teacher.about["mean"] == [0.5, 0.25, 0.125]
    assert teacher.about["published"] == facts(find(NAME))
    assert teacher.classes is None
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher(images), network().eval()(images))
    named = load_for([f"class {i}" for i in range(10)], NAME)
    assert named[1] is None


def test_a_transfer_that_breaks_off_is_continued_and_checked(server, served, monkeypatch):
    publish(server, monkeypatch, "net@digits", sha256=hashlib.sha256(served.read_bytes()).hexdigest())
    server.breaks = 1
    assert weights_hash(kd.load_teacher(NAME)) == weights_hash(network())
    assert [begin for _, begin in server.asked] == [0, served.stat().st_size // 2]


def _remove(path):
    path.unlink()


def _page(path):
    path.write_text("<!DOCTYPE html><title>This domain is for sale</title>")


def _other(path):
    torch.save({"model": network("resnet14").state_dict()}, path)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (_remove, "cannot be downloaded: the server answers 404"),
        (_page, "is a web page"),
        (_other, "is for another architecture than resnet8: .*; it looks like resnet14"),
    ],
)
def test_what_does_not_arrive_is_one_line_and_not_kept(server, served, replace, message):
    replace(served)
    message = rf"^{NAME}: {server.url}/ckpt_epoch_240\.pth {message}.*; give a file of these weights$"
    with pytest.raises(Unavailable, match=message) as caught:
        kd.load_teacher(NAME)
    assert "\n" not in str(caught.value)
    assert kept() == []


def test_another_checksum(server, served, monkeypatch):
    found = hashlib.sha256(served.read_bytes()).hexdigest()
    kd.load_teacher(NAME)  # as long as nobody has said which it should be
    publish(server, monkeypatch, "net@digits", sha256="0123abcd" * 8)
    message = rf"another file than the one that was published: its SHA-256 begins with {found[:8]}, not 0123abcd"
    with pytest.raises(UserError, match=rf"{message}.*from an earlier download: delete that"):
        kd.load_teacher(NAME)
    cached(f"{server.url}/ckpt_epoch_240.pth").unlink()
    with pytest.raises(Unavailable, match=rf"^{NAME}: .* is {message}"):
        kd.load_teacher(NAME)
    assert kept() == []


def test_nobody_listens(server, served, monkeypatch):
    publish(server, monkeypatch, "net@digits", address="http://127.0.0.1:9/ckpt_epoch_240.pth")
    with pytest.raises(Unavailable, match=r"cannot be downloaded: Connection refused \(tried 2 times\)"):
        kd.load_teacher(NAME)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_classes": 100}, r"is for 10 classes, the data has 100$"),
        ({"model": "resnet56"}, r"is a resnet8, not a resnet56$"),
    ],
)
def test_what_it_is_not_is_said_before_the_download(server, served, asked, message):
    with pytest.raises(UserError, match=message):
        kd.load_teacher(NAME, **asked)
    assert server.asked == []
    assert kd.load_teacher(NAME, model="resnet8", num_classes=10).spec["name"] == "resnet8"


def test_torchvisions_file_is_shared_with_it(server):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network("resnet18", 1000).state_dict(), folder / weights.url.rpartition("/")[2])
    teacher = kd.load_teacher("published:resnet18@imagenet", 1000)
    assert weights_hash(teacher) == weights_hash(network("resnet18", 1000))
    assert (teacher.classes[:2], teacher.about["mean"]) == (["tench", "goldfish"], [0.485, 0.456, 0.406])
    _, note = load_for([f"n{number:08d}" for number in range(1000)], "published:resnet18@imagenet")
    assert "n00000000" in note, "ImageNet's folders are called otherwise: noted, not refused"


# --- beside the published accuracy


@pytest.mark.parametrize(
    ("top1", "split", "classes", "differs"),
    [
        (74.4, "val", 10, True),
        (75.6, "test", 10, True),
        (74.6, "test", 10, False),
        (50.0, "train", 10, False),
        (50.0, "test", 5, False),
    ],
)
def test_a_difference_is_said_where_it_can_be_compared(server, monkeypatch, top1, split, classes, differs):
    one = publish(server, monkeypatch, "net@digits")
    told = difference(one, top1, split, classes)
    assert (told is not None) == differs
    if differs:
        assert told.startswith(f"it gets {top1:.2f} % on the {split} split, 75.00 % as published ({NAME})")
