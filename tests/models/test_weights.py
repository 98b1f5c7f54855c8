"""Weights from files of every common format, and what every other file is answered with."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.models.pretrained import load_network
from kdstream.models.weights import load_weights, read_weights, recognise


def teacher(num_classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet8", num_classes)


def counters_off(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


FORMATS = {
    "plain": lambda state: state,
    "model": lambda state: {"epoch": 240, "model": state, "accuracy": torch.tensor(72.5), "optimizer": {"state": {}}},
    "state_dict": lambda state: {"state_dict": prefixed(counters_off(state), "module."), "best_prec1": 91.7},
    "net": lambda state: {"net": state, "acc": 95.0, "epoch": 1},
    "nested": lambda state: {"model": {"state_dict": state}},
    "ddp": lambda state: prefixed(state, "module."),
    "ddp of tapped": lambda state: prefixed(state, "module.module."),
    "compiled": lambda state: prefixed(state, "module._orig_mod."),
    "parameters": lambda state: {
        key: nn.Parameter(value) if value.is_floating_point() else value for key, value in state.items()
    },
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("legacy", [False, True])
def test_formats_of_torch(tmp_path, name, legacy):
    path = tmp_path / "teacher.pth"
    torch.save(FORMATS[name](teacher().state_dict()), path, _use_new_zipfile_serialization=not legacy)
    module = teacher(seed=1)
    load_weights(module, path)
    for key, value in teacher().state_dict().items():
        assert torch.equal(module.state_dict()[key], value), key


@pytest.mark.parametrize("file", ["teacher.safetensors", "teacher.bin"])
def test_safetensors(tmp_path, file):
    safetensors.torch.save_file(prefixed(teacher().state_dict(), "module."), tmp_path / file)
    module = teacher(seed=1)
    load_weights(module, tmp_path / file)
    assert weights_hash(module) == weights_hash(teacher())


def test_a_safetensors_header_may_begin_like_a_web_page(tmp_path):
    header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(0x13C)  # 0x3C is '<'
    path = tmp_path / "w.bin"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes()[:1] == b"<"
    assert torch.equal(read_weights(path)["w"], torch.zeros(1))


def test_a_folder_of_an_export(tmp_path):
    safetensors.torch.save_file(teacher().state_dict(), tmp_path / "student.safetensors")
    assert set(read_weights(tmp_path)) == set(teacher().state_dict())


def test_another_class_count(tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save({"model": teacher(100).state_dict()}, path)
    with pytest.raises(UserError, match=r"teacher.pth is for 100 classes, the data has 10$"):
        load_weights(teacher(10), path)


def test_another_architecture(tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save(build("resnet20", 10).state_dict(), path)
    module = teacher()
    before = weights_hash(module)
    with pytest.raises(
        UserError,
        match=r"teacher.pth is for another architecture than resnet8: 60 keys are unexpected "
        r"\(layer1.1.conv1.weight, .*, \.\.\.\); it looks like resnet20$",
    ):
        load_weights(module, path)
    assert weights_hash(module) == before
    torch.save(teacher().state_dict(), path)
    with pytest.raises(
        UserError, match=r"than resnet14: 30 keys are missing \(layer1.1.conv1.weight, .*; it looks like resnet8$"
    ):
        load_weights(build("resnet14", 10), path)


def test_another_width(tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save(build("resnet8", 10, widths=[16, 16, 32, 48]).state_dict(), path)
    with pytest.raises(
        UserError,
        match=r"than resnet8: 16 keys are of another shape \(layer3.0.conv1.weight is \[48, 32, 3, 3\] "
        r"instead of \[64, 32, 3, 3\], .*\.\.\.\)$",
    ):
        load_weights(teacher(), path)


def test_one_key_too_few(tmp_path):
    path = tmp_path / "teacher.pth"
    state = teacher().state_dict()
    del state["fc.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"than resnet8: 1 key is missing \(fc.bias\)$"):
        load_weights(teacher(), path)


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "resnet18"])
def test_recognised_architectures(name):
    assert recognise(counters_off(build(name, 13).state_dict())) == name


def test_unknown_architectures():
    assert recognise(nn.Linear(3, 2).state_dict()) is None
    assert recognise({"a": torch.zeros(3)}) is None


class Hostile:
    """Unpickling it would run a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_object_is_refused_and_not_executed(tmp_path, legacy):
    path, mark = tmp_path / "teacher.pth", tmp_path / "executed"
    content = {"model": teacher().state_dict(), "opt": Hostile(str(mark))}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"teacher.pth carries a pickled object \(\w+\.mkdir\), which could run code: "):
        read_weights(path)
    path.write_bytes(pickle.dumps(Hostile(str(mark)), protocol=2))
    with pytest.raises(UserError, match=r"teacher.pth carries a pickled object \(\w+\.mkdir\)"):
        read_weights(path)
    assert not mark.exists()


def test_files_with_settings_or_whole_modules_are_refused(tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"model": teacher().state_dict(), "opt": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(UserError, match=r"carries a pickled object \(argparse.Namespace\), .*save the weights alone"):
        read_weights(path)
    torch.save(teacher(), path)
    with pytest.raises(UserError, match=r"carries a pickled object \(kdstream.models.zoo.cifar_resnet.CifarResNet\)"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download or save it again"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page .HTML., not weights: the download went wrong"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"these are no weights at all", "is no file of weights: neither safetensors nor what torch.save writes; give"),
        (
            b"# Weights\n\nThey are elsewhere.\n",
            "is no file of weights: neither safetensors nor what torch.save writes",
        ),
        (b"PK\x03\x04" + bytes(100), "is truncated or damaged; download or save it again$"),
        (b"\x80\x02}q\x00", "is truncated or damaged; download or save it again$"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    path = tmp_path / "teacher.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "PyTorch" not in str(caught.value)


@pytest.mark.parametrize("place", [3, None, 2.5, ["teacher.pth"], torch.nn.Linear(2, 2)])
def test_a_place_that_is_no_name(place):
    kind = type(place).__name__
    with pytest.raises(UserError, match=rf"^weights are the name of a folder, .*; this is of type {kind}$"):
        read_weights(place)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {}}, "holds no weights but a dict of epoch, optimizer; expected a state dict"),
        ([torch.zeros(1)], "holds no weights but a list; expected a state dict"),
        ({}, "holds no weights but a dict of ;"),
        (torch.zeros(1), "holds no weights but a Tensor"),
    ],
)
def test_files_without_a_state_dict(tmp_path, content, message):
    path = tmp_path / "teacher.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_weights(path)


def test_a_dict_that_holds_itself(tmp_path):
    path = tmp_path / "teacher.pth"
    content = {}
    content["model"] = content
    torch.save(content, path)
    with pytest.raises(UserError, match="holds no weights but a dict of model"):
        read_weights(path)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"absent.pth: no such file; give a file of weights$"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"is a folder without student.safetensors"):
        read_weights(tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["zip", "legacy", "safetensors"]), share=st.floats(0, 1, exclude_max=True))
@example(kind="legacy", share=0.05859375)  # ends within the name of a class, after its dot
@example(kind="legacy", share=0.30859375)  # and within that of a storage
def test_a_truncated_file_is_one_clear_line(tmp_path, kind, share):
    path = tmp_path / "w.pth"
    state = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)).state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    if share * len(data) >= 16:  # enough to know what it was
        assert "truncated or damaged" in str(caught.value)


def test_the_hash_sees_every_value_and_name():
    module = teacher()
    first = weights_hash(module)
    assert len(first) == 64
    assert first == weights_hash(teacher())
    module.bn1.num_batches_tracked += 1
    second = weights_hash(module)
    with torch.no_grad():
        module.fc.bias[0] += 1e-6
    assert len({first, second, weights_hash(module)}) == 3
    assert weights_hash(nn.ParameterDict({"a": torch.ones(2)})) != weights_hash(nn.ParameterDict({"b": torch.ones(2)}))
    assert weights_hash(nn.Linear(2, 2).bfloat16()) != first


# --- files that claim more than they are


def test_a_file_that_unpacks_to_far_more_than_it_is(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(10_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.pth has \d+ bytes and unpacks to 40\d+: refused"):
        read_weights(path)
    assert read_weights(tmp_path / "plain.pth")["weight"].shape == (10_000_000,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_number_repeated_for_ever(tmp_path, legacy):
    state = {**teacher().state_dict(), "fc.weight": torch.zeros(1).expand(10**12, 64), "fc.bias": torch.zeros(1)}
    torch.save(state, tmp_path / "wide.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"wide\.pth: fc\.weight claims 64000000000000 numbers and has fewer"):
        load_network(tmp_path / "wide.pth", model="resnet8")


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_that_are_no_plain_ones(tmp_path, value):
    torch.save({"weight": value}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth: weight is no plain tensor"):
        read_weights(tmp_path / "odd.pth")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.complex64, torch.bool])
def test_weights_that_are_no_floats(tmp_path, kind):
    state = teacher().state_dict()
    state["fc.weight"] = torch.ones_like(state["fc.weight"]).to(kind)
    torch.save(state, tmp_path / "coded.pth")
    with pytest.raises(UserError, match=r"coded\.pth has fc\.weight as torch\.\w+, which are no weights"):
        load_weights(teacher(), tmp_path / "coded.pth")


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 10**8 - 9, 3])
def test_headers_of_any_length(tmp_path, length):
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 100)
    with pytest.raises(UserError, match=r"w\.safetensors is no safetensors file, or truncated or damaged") as caught:
        read_weights(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_no_ordinary_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for place in (tmp_path / "pipe.pth", "/dev/zero"):
        with pytest.raises(UserError, match="is no ordinary file"):
            read_weights(place)


def test_keys_that_play_with_the_terminal(tmp_path):
    torch.save({"\x1b[31mred" * 100: torch.zeros(2)}, tmp_path / "red.pth")
    with pytest.raises(UserError) as caught:
        load_weights(teacher(), tmp_path / "red.pth")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2000
