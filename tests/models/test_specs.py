"""What somebody's export may make kdstream do: build a listed network of the size of its weights, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from pathlib import Path

import pytest
import torch

import kdstream as kd
from kdstream.errors import UserError
from kdstream.models import MODELS, build
from kdstream.models.export import load_student, save_student
from kdstream.models.specs import check_spec, runs_code
from kdstream.recipe import Model, Teacher
from kdstream.training.networks import make_student, make_teacher

WRITTEN = Path(__file__).parent / "exports"
"""Exports and specs of every kind of network, as the commit 6e16430 wrote them."""
BEFORE = json.loads((WRITTEN / "written.json").read_text())
JOINT, BRANCHED = "kdstream.models.joint:JointNetwork", "kdstream.models.branches:Branched"
HEAD = {"channels": 4, "width": 4}
EVIL = "resnet8-digits.evil:make"


@pytest.fixture
def export(tmp_path, monkeypatch):
    """``export(spec)`` is the folder ``resnet8-digits`` of a student, in the working folder, whose description has this
    spec instead of its own. Beside it lies code, and nothing may be fetched or run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "resnet8-digits"
    torch.manual_seed(0)
    save_student(folder, build("resnet8", 3, widths=[4, 4, 6, 8]), image_size=8)
    (folder / "evil.py").write_text("open('executed', 'w')\nmake = None\n")

    def unreachable(*_, **__):
        raise AssertionError("it reached for the network")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    about = json.loads((folder / "student.json").read_text())

    def write(spec):
        (folder / "student.json").write_text(json.dumps({**about, "spec": spec}))
        return folder

    yield write
    assert not (tmp_path / "executed").exists()
    assert not any(name.startswith("resnet8-digits") for name in sys.modules)


def refused(place, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_student(place)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        *(
            EVIL,
            " os:system",
            "os :system",
            "9os:system",
            "öffne:mich",
            "os\0:system",
            "os\n:system",
            "\u202eos:system",
        ),
        *(
            "os:system.x",
            "os:",
            ":system",
            "a:b:c",
            "os：x:y",
            "KDSTREAM.models:build",
            "builtins:exec",
            "a/b:c",
            "..:x",
        ),
        *("kdstream.models.pretrained:load_network", "kdstream.models.export:load_student", "kdstream.models:build"),
        *("kdstream.models.zoo.cifar_resnet:nn.Linear", "kdstream.models.zoo.parts:he_fan_out_", "kdstream.train:main"),
        *("kdstream.models.joint:Connector", "kdstream.objectives.term:Term", "torchvision.models:resnet18"),
    ],
)
def test_names_of_code(export, name):
    extra = {"weights": "resnet8-digits", "trust_code": True, "model": EVIL}
    for spec in (
        {"name": name, "num_classes": 3, **extra},
        {"name": JOINT, "num_classes": 3, "backbone": {"name": name, "num_classes": 3}, "path": "a", "head": HEAD},
        {"name": BRANCHED, "num_classes": 3, "base": {"name": name}},
        {"name": "resnet18", "num_classes": 3, "norm_layer": name},
        {"name": "resnet8", "num_classes": 3, "widths": [[{"deep": name}]]},
    ):
        refused(export(spec), r"student\.json names code of its own \(.*, which loading would run: refused")


def test_by_every_way_in(export):
    place = str(export({"name": EVIL, "num_classes": 3}))
    script = Path(__file__).resolve().parents[2] / "tools" / "export_onnx.py"
    spec = importlib.util.spec_from_file_location("export_onnx_of_specs", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for load in (
        lambda: kd.load_student(place),
        lambda: kd.load_teacher(place, 3),
        lambda: kd.load_teacher(place, 3, model=EVIL, options={"width": 3}),  # not all that the file says
        lambda: make_teacher(Teacher(weights=place), 3),
        lambda: make_student(Model(weights=place), 3),
    ):
        with pytest.raises(UserError, match="names code of its own"):
            load()
    assert tool.main([place]) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "resnet18", "weights": "DEFAULT"}, "would fetch weights of its own"),
        ({"name": "resnet18", "weights": None}, "would fetch weights of its own"),
        ({"name": "resnet18", "pretrained": True}, "would fetch weights of its own"),
        ({"name": "resnet18", "weights_backbone": "DEFAULT"}, "would fetch weights of its own"),
        ({"name": "timm:resnet18", "pretrained": True}, "would fetch weights of its own"),
        ({"name": "timm:resnet18", "pretrained": 1}, "would fetch weights of its own"),
        ({"name": "timm:resnet18", "pretrained_cfg": {"file": "x"}}, "would fetch weights of its own"),
        ({"name": "timm:resnet18", "pretrained_cfg_overlay": {"state_dict": 1}}, "would fetch weights of its own"),
        ({"name": "timm:resnet18", "checkpoint_path": "x"}, "would fetch weights of its own"),
        ({"name": "timm:resnet18", "cache_dir": "/"}, "would fetch weights of its own"),
        ({"name": "timm:resnet18", "features_only": True}, "an argument that a file may not set, features_only"),
        ({"name": "timm:resnet18", "kwargs_filter": []}, "an argument that a file may not set"),
        ({"name": "timm:resnet18", "norm_layer": "os.system"}, "norm_layer=os.system, which must be a word"),
        ({"name": "timm:resnet18", "act_layer": ["relu"]}, "which must be a word"),
        ({"name": "timm:hf-hub:me/evil"}, "is no name of a timm model"),
        ({"name": "timm:local-dir:/tmp"}, "is no name of a timm model"),
        ({"name": "timm:hf_hub:x"}, "is no name of a timm model"),
        ({"name": "timm:../resnet18"}, "is no name of a timm model"),
        ({"name": "timm:resnet18.a/b"}, "is no name of a timm model"),
        ({"name": "timm:"}, "is no name of a timm model"),
        ({"name": "timm:RESNET99"}, "unknown model"),
        ({"name": "resnet18", "norm_layer": "BatchNorm2d"}, "an argument that a file may not set, norm_layer"),
        ({"name": "resnet18", "block": None}, "an argument that a file may not set"),
        ({"name": "resnet8", "trust_code": True}, "an argument that a file may not set"),
        ({"name": "resnet8", "self": 1}, "an argument that a file may not set"),
        ({"name": "\x1b[31mred"}, r"unknown model '\\x1b\[31mred'"),
        ({"name": "r" * 100_000}, "has no name, but rrr"),
    ],
)
def test_weights_files_and_arguments_that_are_not_its_own(export, spec, message):
    for whole in (
        {"num_classes": 3, **spec},
        {"name": BRANCHED, "num_classes": 3, "base": spec},
        {"name": JOINT, "num_classes": 3, "backbone": {"num_classes": 3, **spec}, "path": "a", "head": HEAD},
    ):
        if message.startswith("unknown") and whole["name"] == JOINT:
            whole["side"] = "output"  # it is built to be found wrong
        refused(export(whole), message)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "resnet8", "num_classes": 10**12},
        {"name": "resnet8", "num_classes": 2**24},
        {"name": "kdstream.models.zoo.cifar_resnet:CifarResNet", "depth": 6 * 10**9 + 2},
        {"name": "kdstream.models.zoo.cifar_resnet:CifarResNet", "depth": 1994},
        {"name": "resnet8", "widths": [65536] * 4},
        {"name": "ShuffleV2", "widths": [65536] * 4},
        {"name": "kdstream.models.zoo.wrn:WideResNet", "depth": 10, "width": 1024},
        {"name": "kdstream.models.zoo.vgg:VGG", "convolutions": [2000] * 5},
        {"name": "kdstream.models.zoo.cifar_resnet50:CifarBottleneckResNet", "blocks": [2000] * 4},
        {"name": BRANCHED, "base": {"name": "resnet8"}, "branches": 10**9},
        {"name": BRANCHED, "base": {"name": "resnet110"}, "branches": 1000},
        {"name": "resnet50", "width_per_group": 4096},
        {"name": "mobilenet_v2", "width_mult": 64},
        {"name": "mobilenet_v2", "inverted_residual_setting": [[6, 4096, 4096, 1]] * 64},
        {"name": "vit_b_16", "image_size": 4096},
        {
            "name": JOINT,
            "backbone": {"name": "regnet_x_400mf", "num_classes": 3},  # computes with values: no rehearsal
            "path": "layer3",
            "side": "output",
            "head": {"channels": 65536, "width": 65536, "kernels": [31, 31]},
        },
    ],
)
def test_a_file_is_never_built_larger_than_its_weights(export, spec):
    refused(export({"num_classes": 3, **spec}), r"larger than|must be a whole number|another archi|numbers$|list of")
    assert torch.is_grad_enabled()  # constructors that were stopped may have switched it off


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"])
def test_nor_one_of_timms(export, name):
    pytest.importorskip("timm", reason="an extra")
    sizes = {
        "timm:resnet18": {"layers": [65536] * 4},
        "timm:vit_tiny_patch16_224": {"img_size": 1024, "patch_size": 1, "embed_dim": 65536, "num_heads": 1},
        "timm:swin_tiny_patch4_window7_224": {"img_size": 1024, "window_size": 64},
    }
    refused(export({"name": name, "num_classes": 3, **sizes[name]}), "larger than")
    refused(export({"name": name, "num_classes": 3, "depth": 10**9}), "depth=1000000000, which must be numbers")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"widths": [True] * 4}, "widths="),
        ({"widths": [4.0] * 4}, "widths="),
        ({"widths": {"a": 1}}, "widths="),
        ({"widths": [4] * 3}, "four positive widths"),
        ({"widths": [float("nan")] * 4}, "widths="),
        ({"num_classes": True}, "num_classes of resnet8 must be a whole number"),
        ({"num_classes": 3.0}, "num_classes of resnet8 must be"),
        ({"num_classes": "3"}, "num_classes of resnet8 must be"),
        ({"num_classes": -1}, "num_classes of resnet8 must be"),
        ({"name": "wrn_10_1", "dropout": float("inf")}, "dropout=inf, which must be a number from 0 to 1"),
        ({"name": JOINT}, "has no backbone, the network that it is made of"),
        ({"name": JOINT, "backbone": "resnet8", "head": HEAD}, "backbone=resnet8, which must be a network"),
        ({"name": BRANCHED, "base": []}, "which must be a network"),
        ({"name": BRANCHED, "base": {"name": "vgg8"}}, "vgg8 cannot be branched"),
        ({"name": BRANCHED, "base": {"name": "resnet8", "num_classes": 3}}, "cannot be built as described"),
        ({"name": BRANCHED, "base": {}}, "has no name, but None"),
        ({"name": "mobilenet_v2", "inverted_residual_setting": []}, "non-empty"),
        (
            {"name": "mobilenet_v2", "round_nearest": 4096, "width_mult": 0},
            "cannot be built|another architecture|larger",
        ),
    ],
)
def test_odd_arguments(export, spec, message):
    refused(export({"name": "resnet8", "num_classes": 3, **spec}), message)


def test_networks_nested_without_end(export):
    spec = {"name": "resnet8"}
    for _ in range(20):
        spec = {"name": BRANCHED, "base": spec}
    refused(export({**spec, "num_classes": 3}), r"nests more than 8 networks|nested too deeply")
    deep = json.loads("[" * 300 + "]" * 300)
    refused(export({"name": "resnet8", "num_classes": 3, "widths": deep}), "its spec is nested too deeply")


def test_even_trusted_code_fetches_no_weights():
    spec = {"name": JOINT, "num_classes": 3, "path": "a", "head": HEAD}
    own = {**spec, "backbone": {"name": "mine:net", "num_classes": 3, "anything": {"goes": 1}}}
    check_spec(own, Path("student.json"), trusted=True)
    assert runs_code(own)
    for backbone in ({"name": "resnet18", "weights": "DEFAULT"}, {"name": "timm:resnet18", "pretrained": True}):
        with pytest.raises(UserError, match="would fetch weights of its own"):
            check_spec({**spec, "backbone": {"num_classes": 3, **backbone}}, Path("student.json"), trusted=True)


@pytest.mark.parametrize("spec", BEFORE["specs"], ids=lambda spec: spec["name"].rpartition(".")[2])
def test_specs_of_every_kind_need_no_trust(spec):
    check_spec(spec, Path("student.json"))
    assert not runs_code(spec)


def test_every_network_of_the_zoo_is_listed():
    for name, path in MODELS.items():
        for spec in ({"name": name, "num_classes": 2}, {"name": path, "num_classes": 2}):
            check_spec(spec, Path("student.json"))


@pytest.mark.parametrize("name", ["resnet8", "simkd", "one"])
def test_exports_of_before_load_as_they_were(name):
    network = load_student(WRITTEN / name)
    with torch.no_grad():
        logits = network(torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16))
    torch.testing.assert_close(logits, torch.tensor(BEFORE["logits"][name]), rtol=1e-4, atol=1e-5)
    assert (network.classes, network.std) == (["c0", "c1", "c2", "c3", "c4"], [0.4, 0.5, 0.6])
    assert kd.load_teacher(WRITTEN / name, 5).spec == network.spec


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "regnet_y_400mf", "num_classes": 5},  # computes with values: no rehearsal on the meta device
        {"name": "mnasnet0_5", "num_classes": 5},  # asks for the version of its layers
        {"name": "mobilenet_v2", "num_classes": 2, "inverted_residual_setting": [[1, 8, 1, 1]], "dropout": 0.1},
        {"name": "timm:test_vit", "num_classes": 5, "img_size": 32, "drop_path_rate": 0.1},
    ],
    ids=lambda spec: spec["name"],
)
def test_networks_of_others_come_back(tmp_path, spec):
    if spec["name"].startswith("timm:"):
        pytest.importorskip("timm", reason="an extra")
    torch.manual_seed(0)
    original = build(**spec).eval()
    save_student(tmp_path, original)
    again = load_student(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), original(images))
