"""The distiller's stages: what of student and terms moves in which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdstream.batch import Batch, Outputs
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import Phase, Term, WeightedTerm, parse_loss
from kdstream.training.distiller import Distiller


class Prepares(Term):
    """A phase that trains what the name says, then the main one."""

    uses_teacher = False

    def __init__(self, trains: str):
        super().__init__()
        self.trains = trains
        self.head = nn.Linear(10, 10)

    def phases(self):
        return (Phase("first", 1, 0.1, trains=self.trains),)

    def forward(self, student, teacher, batch):
        return nn.functional.cross_entropy(self.head(student.logits), batch.label)


@pytest.mark.parametrize(("trains", "moves"), [("student", True), ("term", False), ("nothing", False)])
def test_a_stage_that_does_not_train_the_student_leaves_its_batch_statistics(trains, moves):
    torch.manual_seed(0)
    student = Tapped(build("resnet8", 10), [])
    distiller = Distiller(student, [WeightedTerm("prepares", 1.0, Prepares(trains))])
    batch = Batch(torch.randn(4, 3, 16, 16), torch.arange(4), torch.arange(4))

    def statistics() -> list[torch.Tensor]:
        return [buffer.clone() for buffer in student.buffers()]

    def moved(stage) -> bool:
        distiller.begin(stage, batch)
        before = statistics()
        distiller.train()
        distiller(batch)
        return not all(map(torch.equal, statistics(), before))

    first, main = distiller.stages()
    assert moved(first) == moves
    assert moved(main)
    distiller.eval()
    assert not student.training


class TwoHeads(nn.Module):
    """A network whose answer is the mean of two heads, with timm's taps for them."""

    def __init__(self):
        super().__init__()
        self.head, self.head_dist = nn.Linear(12, 5), nn.Linear(12, 5)
        self.taps = {"logits.label": "head", "logits.teacher": "head_dist"}

    def forward(self, images):
        x = images.flatten(1)
        return (self.head(x) + self.head_dist(x)) / 2


@pytest.mark.parametrize("loss", [{"ce": 0.5, "kd": 0.5}, {"ce": 1}, {"kd": 1}])
def test_labels_train_one_head_and_the_teacher_the_other(loss):
    torch.manual_seed(0)
    network = TwoHeads()
    distiller = Distiller(Tapped(network, list(network.taps)), parse_loss(loss))
    batch = Batch(torch.randn(4, 3, 2, 2), torch.arange(4), torch.arange(4), teacher=Outputs(torch.randn(4, 5)))
    total, values, logits = distiller(batch)
    x = batch.image.flatten(1)
    answers = {"ce": network.head(x), "kd": network.head_dist(x)}
    if len(loss) == 1:
        answers = dict.fromkeys(answers, network(batch.image))
    for value, (name, _, term) in zip(values, distiller.loss, strict=True):
        torch.testing.assert_close(value, term(Outputs(answers[name]), batch.teacher, batch))
    assert logits.equal(network(batch.image))
    total.backward()
    assert network.head.weight.grad.abs().sum() > 0
    assert network.head_dist.weight.grad.abs().sum() > 0
    if len(loss) == 1:
        assert network.head.weight.grad.equal(network.head_dist.weight.grad)
