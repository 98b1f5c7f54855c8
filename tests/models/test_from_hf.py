"""transformers' classifiers teach: weights, classes, statistics and size of their own; nothing of a stranger's."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch.nn import functional as F

import kdstream as kd
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student, save_student
from kdstream.models.taps import Tapped

transformers = pytest.importorskip("transformers", reason="an extra")
NAMES = ["cat", "dog", "bird", "fish"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny vision transformer, as save_pretrained writes it."""
    path = tmp_path_factory.mktemp("hf") / "vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    config.id2label = dict(enumerate(NAMES))
    transformers.ViTForImageClassification(config).save_pretrained(path)
    settings = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255, "resample": 3}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25], "size": {"height": 16, "width": 16}}
    settings |= {"image_processor_type": "ViTImageProcessor"}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def own_answer(folder, images):
    network = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return network(pixel_values=images, output_hidden_states=True)


def test_a_teacher_is_what_transformers_loads(folder):
    teacher = kd.load_teacher(model=f"hf:{folder}")
    assert teacher.classes == NAMES
    assert tuple(teacher.mean) == (0.5, 0.4, 0.3)
    assert tuple(teacher.std) == (0.2, 0.3, 0.25)
    images = torch.randn(3, 3, 16, 16)
    theirs = own_answer(folder, images)
    found = Tapped(teacher, ["penultimate"])(images)
    torch.testing.assert_close(found.logits, theirs.logits)
    assert found.features["penultimate"].shape == (3, 16)
    assert Tapped(teacher).classifier.out_features == 4
    small = torch.randn(3, 3, 12, 20)
    resized = F.interpolate(small, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(teacher(small), own_answer(folder, resized).logits)


def test_its_outputs_are_put_in_the_datas_order(folder):
    teacher = kd.load_teacher(model=f"hf:{folder}", classes=["bird", "cat"])
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(teacher(images), own_answer(folder, images).logits[:, [2, 0]])
    with pytest.raises(UserError, match="other classes than the data: 'cow' of the data's 2 classes"):
        kd.load_teacher(model=f"hf:{folder}", classes=["cow", "cat"])


def test_it_teaches(folder, photo_shards, tmp_path):
    shards = tmp_path / "set"
    shutil.copytree(photo_shards, shards)
    result = kd.distill(
        {"path": str(shards), "train": "train", "val": "train"},
        teacher={"model": f"hf:{folder}", "classes": ["dog", "cat"]},
        student="resnet8",
        loss={"kd": 1, "pkt": 1},
        out=tmp_path / "out",
        epochs=1,
        batch_size=150,
        workers=0,
        tensorboard=False,
        stream="decode | teacher(cache=auto) | augment(cifar)",
        show=False,
    )
    assert 0 <= result.metrics["top1"] <= 100
    assert json.loads((tmp_path / "out" / "teacher.json").read_text())["model"] == f"hf:{folder}"
    assert list(shards.glob("train.answers-*.bin"))
    with pytest.raises(UserError, match=r"student hf:.*: networks of transformers only teach"):
        kd.distill(str(photo_shards), student=f"hf:{folder}", out=tmp_path / "no", show=False)


def test_without_normalisation_and_with_another_factor(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "plain")
    path = tmp_path / "plain" / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "rescale_factor": 1 / 127.5, "size": {"shortest_edge": 8}}))
    teacher = kd.load_teacher(model=f"hf:{tmp_path / 'plain'}")
    assert teacher.mean == pytest.approx([0.25, 0.2, 0.15])
    assert teacher.std == pytest.approx([0.1, 0.15, 0.125])
    assert teacher.size == (8, 8)
    path.write_text(json.dumps({**settings, "do_normalize": False, "crop_size": 12, "do_center_crop": True}))
    teacher = kd.load_teacher(model=f"hf:{tmp_path / 'plain'}")
    assert (list(teacher.mean), list(teacher.std), teacher.size) == ([0.0] * 3, [1.0] * 3, (12, 12))


def test_no_pickle_and_no_code_of_a_strangers(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    torch.save(own_network(folder).state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be had: .*model\.safetensors"):
        kd.load_teacher(model=f"hf:{pickled}")
    strange = tmp_path / "strange"
    shutil.copytree(folder, strange)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (strange / "config.json").write_text(json.dumps(config))
    (strange / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\n")
    with pytest.raises(UserError, match="cannot be had"):
        kd.load_teacher(model=f"hf:{strange}")
    assert not (tmp_path / "ran").exists()
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="is 'bert', of which transformers has no image classifier"):
        kd.load_teacher(model=f"hf:{tmp_path / 'bert'}")
    with pytest.raises(UserError, match="is no folder, and no repository"):
        build("hf:../no/such/folder", 4)
    with pytest.raises(UserError, match="takes no options, and 'width' is one"):
        build(f"hf:{folder}", 4, width=3)
    with pytest.raises(UserError, match="for 4 classes, not 5"):
        build(f"hf:{folder}", 5, pretrained=True)


def own_network(folder):
    return transformers.AutoModelForImageClassification.from_pretrained(folder)


def test_an_export_cannot_fetch_one(folder, tmp_path):
    save_student(tmp_path, build("resnet8", 4))
    about = json.loads((tmp_path / "student.json").read_text())
    about["spec"]["name"] = f"hf:{folder}"
    (tmp_path / "student.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="would fetch a network of its own"):
        load_student(tmp_path, trust_code=True)
