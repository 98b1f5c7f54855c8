"""ONNX files of students: what they take and say of themselves, that they answer like torch, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import sys

import numpy as np
import onnx
import pytest
import torch
from every import EVERY
from onnx_files import answer, images
from torch import nn

from kdstream.errors import UserError
from kdstream.models import build, onnx_export
from kdstream.models.onnx_export import export_onnx

MEAN, STD, CLASSES = (0.2, 0.3, 0.4), (0.3, 0.0, 0.1), [f"class {i}" for i in range(10)]
SPEC = {"name": "small", "num_classes": 10}


def standardised(unit: torch.Tensor) -> torch.Tensor:
    return torch.stack([(unit[:, c] - MEAN[c]) / max(STD[c], 1e-6) for c in range(3)], dim=1)


@pytest.fixture(scope="module")
def resnet():
    """A resnet8 whose running statistics are not those of its birth."""
    torch.manual_seed(0)
    network = build("resnet8", 10)
    for seed in range(3):
        network.train()(standardised(images(16, seed))[:, [0, 2, 2]])
    return network.eval()


class Small(nn.Module):
    """Its conversion takes no time: for what is said of every file."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def make_small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def small():
    return make_small()


@pytest.fixture(scope="module")
def graph():
    return onnx_export._model(make_small(), images(2), None, "Small")


@pytest.fixture
def converted(graph, monkeypatch):
    """What the exporter makes of ``small`` and images of 16 x 16 is there already: it takes a second or two."""
    monkeypatch.setattr(onnx_export, "_model", lambda *_: copy.deepcopy(graph))


@pytest.fixture(scope="module")
def vit():
    """A network of somebody's own, by dotted path."""
    torch.manual_seed(0)
    return build("tiny_vit:TinyViT", 10, width=16).eval()


@pytest.fixture(scope="module", params=["resnet", "vit"])
def network(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("network", "inside"),
    [("resnet", False), ("vit", True), *([("resnet", True), ("vit", False)] if EVERY else [])],
    indirect=["network"],
)
def test_any_batch_size_gives_torchs_logits(network, tmp_path, inside):
    mean, std = MEAN, (0.3, 0.2, 0.1)
    made = export_onnx(network, tmp_path / "a" / "x.onnx", (16, 16), mean=mean, std=std, normalization=inside)
    assert made.path.stat().st_size == made.size
    assert made.difference <= 1e-5 * made.largest
    assert os.listdir(made.path.parent) == ["x.onnx"]  # the weights stand in the file
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    says = "RGB images in [0,1], not stand" if inside else "standardised RGB images: (x - mean) / std"
    assert says in next(entry.value for entry in model.metadata_props if entry.key == "input")
    assert says in model.doc_string
    for count in (1, 2, 5):
        unit = images(count, seed=9)
        x = torch.stack([(unit[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
        with torch.no_grad():
            expected = network(x).numpy()
        np.testing.assert_allclose(answer(made.path, unit if inside else x), expected, rtol=1e-4, atol=1e-5)


def test_a_std_of_zero_counts_as_in_training():
    normalised = onnx_export.Normalised(nn.Identity(), MEAN, STD)
    torch.testing.assert_close(normalised(images(2)), standardised(images(2)))


def test_the_file_says_what_it_takes_and_gives(small, tmp_path):
    more = {"mean": MEAN, "std": STD, "classes": CLASSES, "metadata": {"spec": SPEC}}
    made = export_onnx(small, tmp_path / "x.onnx", (24, 20), **more)
    model = onnx.load(made.path)
    (x,), (y,) = model.graph.input, model.graph.output
    sizes = [dim.dim_param or dim.dim_value for dim in x.type.tensor_type.shape.dim]
    assert (x.name, x.type.tensor_type.elem_type, sizes) == ("images", onnx.TensorProto.FLOAT, ["batch", 3, 24, 20])
    sizes = [dim.dim_param or dim.dim_value for dim in y.type.tensor_type.shape.dim]
    assert (y.name, sizes) == ("logits", ["batch", 10])
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert "float32 [batch,3,24,20]" in about.pop("input")
    assert {key: json.loads(value) for key, value in about.items()} == {
        "mean": list(MEAN),
        "std": list(STD),
        "classes": CLASSES,
        "spec": SPEC,
    }
    assert made.shape == (3, 24, 20)


def test_the_network_is_left_as_it_is(small, converted, tmp_path):
    network = small.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export_onnx(network, tmp_path / "x.onnx", (16, 16))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_opset_can_be_chosen(small, tmp_path):
    for opset in (18, 23) if EVERY else (23,):
        made = export_onnx(small, tmp_path / "x.onnx", (16, 16), opset=opset)
        assert made.opset == opset
        assert [entry.version for entry in onnx.load(made.path).opset_import if not entry.domain] == [opset]
    for opset in (17, 1000):
        with pytest.raises(UserError, match=f"opset {opset}: torch and the installed onnx write opsets 18 to "):
            export_onnx(small, tmp_path / "y.onnx", (16, 16), opset=opset)
    assert not (tmp_path / "y.onnx").exists()


class DependsOnTheBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x):
        return self.head(x.mean((2, 3))) * len(x)


class DependsOnValues(DependsOnTheBatch):
    def forward(self, x):
        return self.head(x.mean((2, 3))) if x.sum() > 0 else self.head(x.amax((2, 3)))


def test_networks_without_an_onnx_form_are_refused(tmp_path):
    for module, says in (
        (
            DependsOnTheBatch(),
            "DependsOnTheBatch cannot be exported to ONNX: its forward pass depends on the number of",
        ),
        (DependsOnValues(), "DependsOnValues cannot be exported to ONNX: "),
    ):
        with pytest.raises(UserError) as caught:
            export_onnx(module, tmp_path / "x.onnx", (16, 16))
        assert str(caught.value).startswith(says)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_than_torch_is_not_written(small, converted, tmp_path):
    with torch.no_grad():
        small.fc.bias += 0.5
    with pytest.raises(UserError, match=r"Small: onnxruntime's logits differ from torch's by up to 0.5"):
        export_onnx(small, tmp_path / "x.onnx", (16, 16))
    assert not list(tmp_path.iterdir())


def test_missing_packages(small, converted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_onnx(small, tmp_path / "x.onnx", (16, 16)).difference is None
    for package in ("onnxscript", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"ONNX export needs {package}: pip install onnx onnxscript"):
            export_onnx(small, tmp_path / "y.onnx", (16, 16))


def test_no_mean_and_no_place(small, converted, tmp_path):
    with pytest.raises(UserError, match="Small: its mean and std are not known, so the normalisation cannot"):
        export_onnx(small, tmp_path / "x.onnx", (16, 16), normalization=True, mean=MEAN)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"x.onnx: cannot be written: "):
        export_onnx(small, tmp_path / "file" / "x.onnx", (16, 16))
