"""float64 is asked of no device that lacks it: everything is run where the device stands for one that does."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import torch
from builders import batch
from distillers import stages
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdstream import exact as module
from kdstream.analysis.peakiness import Moments
from kdstream.batch import Outputs
from kdstream.exact import exact, exact_device
from kdstream.objectives import kdsvd
from kdstream.objectives.ofd import margin
from kdstream.stream.coded import hkl
from kdstream.stream.erasing import boxes
from kdstream.training.evaluate import batch_sums
from kdstream.training.sums import Sums


class NoFloat64(TorchDispatchMode):
    """A CPU on which nothing may be float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                assert value.device.type != "cpu", f"{function} makes float64 on a device that has none"
        return made


@pytest.fixture
def poor(monkeypatch):
    """Within the context that this gives, the CPU stands for a device without float64 and meta for the host: types and
    places are computed, no numbers."""

    @contextlib.contextmanager
    def device():
        with monkeypatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
            patch.setattr(module, "LACKING", {"cpu"})
            patch.setattr(module, "HOST", torch.device("meta"))
            yield

    return device


def test_the_guard_sees_float64(poor):
    with poor():
        with pytest.raises(AssertionError, match="makes float64 on a device that has none"):
            torch.ones(3).double()
        assert exact(torch.ones(3)).device.type == exact_device("cpu").type == "meta"


def test_exact_keeps_the_device_that_has_it_and_the_gradient():
    values = torch.rand(3, requires_grad=True)
    wide = exact(values)
    assert (wide.dtype, wide.device, exact_device("cpu").type) == (torch.float64, values.device, "cpu")
    (gradient,) = torch.autograd.grad((wide**2).sum(), values)
    assert torch.equal(gradient, 2 * values.detach())


@pytest.mark.parametrize("name", ["cmkd", "crd", "ctkd", "kdsvd", "ofd", "pkt", "renyi", "spearman"])
def test_objectives_that_compute_in_float64(name, poor, monkeypatch):
    monkeypatch.setattr(kdsvd, "product", torch.matmul)  # ours switches autocast off, which meta does not have
    for stage, distiller, small in stages(name, 4, 4):
        with poor():
            loss, _, _ = distiller(small)
            assert loss.device.type == "cpu"
            if stage.trains != "nothing":
                loss.backward()
        distiller.zero_grad(set_to_none=True)


def test_margins_of_ofd(poor):
    with poor():
        assert margin(nn.BatchNorm2d(3), 1e-3).dtype == torch.float32


def test_selection_sums_and_evaluation(poor):
    with poor():
        logits, label = torch.randn(4, 3, 10), torch.zeros(4, dtype=torch.int64)
        assert hkl(logits, label).device.type == "cpu"
        taught = batch(image=torch.rand(4, 3, 8, 8), label=label, teacher=Outputs(logits[:, 0]))
        sums = Sums(["kd"], torch.device("cpu"))
        sums.add(taught, torch.ones(()), torch.ones(1), logits[:, 1])
        assert sums.values.device.type == "meta"
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        assert batch_sums(network, taught).device.type == "meta"
        moments = Moments(10)
        moments.add(logits[:, 0])
        assert moments.covariance().device.type == "meta"


def test_boxes_of_erasing(poor):
    with poor():
        assert boxes(torch.arange(4), 8, 8, (0.1, 0.3), (0.5, 2)).device.type == "cpu"


def test_nobody_asks_for_float64_but_through_exact():
    """What is computed on a device: of the exceptions, each stays in main memory or never runs without float64."""
    allowed = {
        "exact.py",
        "jpeg/reference.py",  # runs in main memory where the device has none
        "jpeg/cpu_blocks.py",
        "training/teacher_check.py",  # a confusion matrix in main memory
        "objectives/common/soft_rank.py",  # what comes there lies where exact_device says
        "data/altered.py",  # random numbers in main memory
        "data/held_out.py",  # likewise
        "stream/mix.py",  # draws in main memory
        "stream/randaugment.py",
        "training/sums.py",
        "training/evaluate.py",
        "analysis/accuracy.py",
        "analysis/peakiness.py",
    }
    root = Path(module.__file__).parent
    asking = {
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        if re.search(r"torch\.(float64|double)|\.double\(\)", file.read_text())
    }
    assert asking <= allowed
