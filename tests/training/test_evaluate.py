"""Evaluation: the right numbers, whatever the batches and the number of processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdstream.data.shards import open_shards
from kdstream.models import build
from kdstream.stream.stream import Stream
from kdstream.training.evaluate import evaluate


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("resnet8", 10)


def stream(digits, batch_size=100, **settings):
    return Stream(digits / "val", batch_size, train=False, **settings) | "decode | normalize"


def alone(tensor):
    return tensor


def measured(network, *streams):
    """The result of processes that each see one of the streams."""
    parts = []
    for part in streams[1:]:
        evaluate(network, part, lambda sums: parts.append(sums.clone()) or sums.clamp(min=1), lambda count: None)
    return evaluate(network, streams[0], lambda sums: sums + sum(parts), lambda count: None)


def test_the_numbers_are_those_of_one_pass_over_everything(digits, network):
    (batch,) = stream(digits, 240)
    network.eval()
    with torch.no_grad():
        logits = network(batch.image)
    order = logits.argsort(dim=1, descending=True)
    expected = {
        "loss": float(-torch.log_softmax(logits, 1)[range(240), batch.label].mean()),
        "top1": 100 * float((order[:, 0] == batch.label).double().mean()),
        "top5": 100 * float((order[:, :5] == batch.label[:, None]).any(1).double().mean()),
        "count": 240,
    }
    assert evaluate(network, stream(digits, 240), alone, lambda count: None) == pytest.approx(expected, rel=1e-6)
    assert expected["top1"] < expected["top5"] < 100


@pytest.mark.parametrize(("batch_size", "world"), [(7, 1), (240, 1), (240, 2), (31, 2), (50, 3), (1000, 4)])
def test_batches_and_processes_do_not_change_them(digits, network, batch_size, world):
    whole = measured(network, stream(digits, 240))
    parts = [stream(digits, batch_size, rank=rank, world=world) for rank in range(world)]
    result = measured(network, *parts)
    assert result["count"] == 240
    assert (result["top1"], result["top5"]) == (whole["top1"], whole["top5"])
    assert result["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_it_reports_every_sample_once(digits, network):
    seen = []
    evaluate(network, stream(digits, 100), alone, seen.append)
    assert seen == [100, 70, 70]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(digits, training):
    network = build("resnet8", 10).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, stream(digits), alone, lambda count: None)
    assert network.training == training
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


class Constant(nn.Module):
    """Always the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_top5_of_a_constant_answer_is_the_share_of_five_classes(digits):
    result = evaluate(Constant([5.0, 4, 3, 2, 1, 0, 0, 0, 0, 0]), stream(digits), alone, lambda count: None)
    label = torch.tensor(open_shards(digits / "val").labels)
    assert result["top1"] == pytest.approx(100 * float((label == 0).double().mean()))
    assert result["top5"] == pytest.approx(100 * float((label < 5).double().mean()))


def test_half_precision_logits_are_summed_in_full(digits):
    logits = [0.1 * i for i in range(10)]
    half = evaluate(Constant(logits).bfloat16(), stream(digits), alone, lambda count: None)
    rounded = torch.tensor(logits).bfloat16().float().tolist()
    assert half == evaluate(Constant(rounded), stream(digits), alone, lambda count: None)
    assert half["loss"] > 0


def test_fewer_classes_than_five(tmp_path, make_tars):
    make_tars(tmp_path / "set", train=[0, 1, 2], val=[0, 1, 2, 0])
    batches = Stream(tmp_path / "set" / "val", 2, train=False) | "decode | normalize"
    result = evaluate(Constant([1.0, 0.5, 0.0]), batches, alone, lambda count: None)
    assert result == {"loss": pytest.approx(result["loss"]), "top1": 50.0, "top5": 100.0, "count": 4}
