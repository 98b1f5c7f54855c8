"""The distiller's stages: what of student and terms moves in which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdstream.batch import Batch
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import Phase, Term, WeightedTerm
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
