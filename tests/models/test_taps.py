"""Taps by module path: values, errors, and that nothing stays behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from processes import together
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped, find_classifier


def small() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet8", 5, widths=[4, 4, 6, 8])


def images(n: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


class Foreign(nn.Module):
    """A network with all that makes taps hard: in-place operations, a module that runs twice, odd outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.pair = nn.LSTM(4, 4, batch_first=True)
        self.unused = nn.Linear(2, 2)
        self.classifier = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.conv(x))
        y = self.conv2(x)
        y += x
        y = self.act(input=y).mean((2, 3))
        y = y + self.pair(y[:, None])[0][:, 0]
        return self.classifier(y)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_only_requested_taps():
    module = small()
    assert Tapped(module)(images()).features == {}
    outputs = Tapped(module, ["block2"])(images())
    assert isinstance(outputs, Outputs)
    assert list(outputs.features) == ["block2"]
    assert torch.equal(outputs.logits, module(images()))


def test_paths_of_a_foreign_network_survive_in_place_operations():
    torch.manual_seed(0)
    module = Foreign().eval()
    paths = {"first": "conv", "second": "conv2", "sum": "act:input", "last": "act", "penultimate": "classifier:input"}
    features = Tapped(module, paths)(images()).features
    first = module.conv(images())
    second = module.conv2(first.relu())
    assert (first < 0).any()
    torch.testing.assert_close(features["first"], first)
    torch.testing.assert_close(features["second"], second)
    torch.testing.assert_close(features["sum"], second + first.relu())
    torch.testing.assert_close(features["last"], (second + first.relu()).relu())
    torch.testing.assert_close(module.classifier(features["penultimate"]), module(images()))


def test_gradients_flow_through_a_copied_tap():
    torch.manual_seed(0)
    module = Foreign()
    Tapped(module, {"first": "conv"})(images()).features["first"].square().sum().backward()
    got = module.conv.weight.grad.clone()
    module.zero_grad()
    module.conv(images()).square().sum().backward()
    torch.testing.assert_close(got, module.conv.weight.grad)


def test_penultimate_is_flat():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert Tapped(module, {"penultimate": "1"})(images()).features["penultimate"].shape == (2, 4)
    assert Tapped(module, {"pooled": "1"})(images()).features["pooled"].shape == (2, 4, 1, 1)


def test_several_passes_keep_their_own_features():
    tapped = Tapped(small(), ["block1", "penultimate"])
    first, second = tapped(images()), tapped(images() * 2)
    assert not torch.equal(first.features["block1"], second.features["block1"])
    torch.testing.assert_close(tapped(images()).features["block1"], first.features["block1"])
    total = sum(o.logits.sum() + o.features["penultimate"].square().sum() for o in (first, second))
    total.backward()
    assert all(p.grad is not None for p in tapped.parameters())


def test_nothing_stays_behind():
    module = small()
    tapped = Tapped(module, ["block1", "block3.pre"])
    kept = [weakref.ref(value) for value in tapped(images()).features.values()]
    module(images())
    gc.collect()
    assert all(ref() is None for ref in kept)
    assert hooks(module) == 2
    del tapped
    gc.collect()
    assert hooks(module) == 0


def test_a_call_after_a_failing_one():
    tapped = Tapped(small(), ["block1", "penultimate"])
    with pytest.raises(RuntimeError):
        tapped(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert set(tapped(images()).features) == {"block1", "penultimate"}


def test_two_wrappers_of_one_network():
    module = small().eval()
    one, two = Tapped(module, ["block1"]), Tapped(module, {"block1": "layer1:input", "x": "layer2"})
    assert torch.equal(one(images()).features["block1"], Tapped(module, ["block1"])(images()).features["block1"])
    features = two(images()).features
    assert list(features) == ["block1", "x"]
    assert not torch.equal(features["block1"], one(images()).features["block1"])


def test_compiled():
    tapped = Tapped(small().eval(), ["block1", "block2.pre", "penultimate"])
    compiled = torch.compile(tapped, backend="eager", fullgraph=True)
    for factor in (1, 2):
        expected, outputs = tapped(images() * factor), compiled(images() * factor)
        torch.testing.assert_close(outputs.logits, expected.logits)
        for name, value in expected.features.items():
            torch.testing.assert_close(outputs.features[name], value)


def test_copies_pickles_and_state_dicts():
    tapped = Tapped(small(), ["block1", "penultimate"]).eval()
    expected = tapped(images())
    plain = copy.deepcopy(tapped.module), pickle.loads(pickle.dumps(tapped.module))
    assert all(torch.equal(twin(images()), expected.logits) for twin in plain)
    for twin in (copy.deepcopy(tapped), pickle.loads(pickle.dumps(tapped))):
        outputs = twin(images())
        assert torch.equal(outputs.logits, expected.logits)
        assert torch.equal(outputs.features["block1"], expected.features["block1"])
        assert twin.module is not tapped.module
    assert list(tapped.module.state_dict()) == list(small().state_dict())
    assert list(tapped.state_dict()) == [f"module.{key}" for key in small().state_dict()]
    assert tapped.classifier is tapped.module.fc


def test_autocast():
    tapped = Tapped(small(), ["block1", "block2.pre", "penultimate"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = tapped(images()), tapped(images())
    plain = tapped(images())
    assert first.logits.dtype == torch.bfloat16
    for name, value in first.features.items():
        torch.testing.assert_close(value.float(), plain.features[name], rtol=0.1, atol=0.1)
    (first.features["block1"].float().sum() + second.logits.float().sum()).backward()
    assert torch.isfinite(tapped.module.conv1.weight.grad).all()


def objective(outputs: Outputs, other: Outputs) -> torch.Tensor:
    difference = outputs.features["block2"] - other.features["block2"].detach()
    return outputs.logits.square().mean() + other.logits.square().mean() + difference.square().mean()


def ddp_process(folder: Path) -> None:
    """One of two processes: both passes of a step on its half of the batch; leaves gradients and a feature."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    # eval: with each process's own batch statistics the two halves would not add up to the whole.
    # torch 2.11 writes buffers anew before each pass, and the gradients of the first would miss what they were.
    network = DistributedDataParallel(Tapped(small().eval(), ["block2", "penultimate"]), broadcast_buffers=False)
    batch = images(4).chunk(2)[rank]
    outputs, other = network(batch), network(batch.flip(3))
    objective(outputs, other).backward()
    gradients = [p.grad for p in network.parameters()]
    torch.save({"gradients": gradients, "block2": outputs.features["block2"].detach()}, folder / f"{rank}.pt")


def test_two_processes_of_distributed_data_parallel(tmp_path):
    together(2, ddp_process, tmp_path)
    tapped = Tapped(small().eval(), ["block2", "penultimate"])
    outputs, other = tapped(images(4)), tapped(images(4).flip(3))
    objective(outputs, other).backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in range(2):
        for got, parameter in zip(found[rank]["gradients"], tapped.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat([f["block2"] for f in found]), outputs.features["block2"].detach())


def test_finding_the_classifier():
    two_heads = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 5), nn.Linear(5, 2))
    assert find_classifier(two_heads) == "2"
    assert find_classifier(two_heads, 5) == "1"
    assert find_classifier(two_heads, 100) == "2"
    assert find_classifier(nn.ReLU()) is None
    assert Tapped(Foreign()).classifier.out_features == 5


@pytest.mark.parametrize(
    ("module", "taps", "message"),
    [
        (small, ["blok1"], r"^unknown tap 'blok1': taps of resnet8 are stem, block1, block1.pre, .*, penultimate$"),
        (Foreign, ["block1"], r"^unknown tap 'block1': taps of Foreign are none$"),
        (small, {"x": "layer1.0.conv3"}, r"^tap 'x': resnet8 has no module 'layer1.0.conv3'; did you mean 'layer1.0."),
        (small, {"x": "zzz:input"}, r"^tap 'x': resnet8 has no module 'zzz'; its top modules are conv1, bn1, relu, "),
    ],
)
def test_wrong_taps(module, taps, message):
    with pytest.raises(UserError, match=message):
        Tapped(module(), taps)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("unused", r"^tap 'x': the network's forward pass does not call the module at 'unused' "),
        ("pair", r"^tap 'x': 'pair' gives tuple, not a tensor$"),
    ],
)
def test_taps_that_give_no_feature(path, message):
    with pytest.raises(UserError, match=message):
        Tapped(Foreign(), {"x": path})(images())


def test_a_network_that_gives_no_logits():
    with pytest.raises(UserError, match=r"^LSTM answers with tuple, not with a tensor of logits$"):
        Tapped(nn.LSTM(4, 4))(torch.zeros(1, 2, 4))
