"""The phases of ab, ft and fsp before the main one: their schedules, what each trains, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from builders import batch, maps, outputs, task
from torch import nn

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Phase, Term, WeightedTerm
from kdstream.objectives.ce import CrossEntropy
from kdstream.training.distiller import Distiller


class Student(nn.Module):
    """Three convolutions and a classifier, with the taps that the three terms read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block1 = nn.Conv2d(4, 6, 3, padding=1)
        self.block2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> Outputs:
        stem = self.stem(image)
        block1 = self.block1(stem.relu())
        block2 = self.block2(block1.relu())
        features = {"stem": stem, "block1": block1, "block2": block2, "block1.pre": block1, "block2.pre": block2}
        return Outputs(self.fc(block2.relu().mean(dim=(2, 3))), features)


TEACHER = {
    "stem": (4, 8, 8),
    "block1": (6, 8, 8),
    "block2": (8, 4, 4),
    "block1.pre": (6, 8, 8),
    "block2.pre": (8, 4, 4),
}


TERMS = {
    "ab": {"taps": ["block1.pre", "block2.pre"]},
    "fsp": {"taps": ["stem", "block1", "block2"], "weights": [1, 1]},
    "ft": {"tap": "block2"},
}


def distiller(name: str) -> tuple[Distiller, Batch]:
    torch.manual_seed(0)
    student, term, given_ = Student(), OBJECTIVES.find(name)(**TERMS[name]), batch(image=maps(4, 3, 8, 8))
    given_.teacher = outputs(5, **TEACHER)
    term.setup(task(student(given_.image).detach(), given_.teacher))
    weighted = [WeightedTerm("ce", 1.0, CrossEntropy()), WeightedTerm(name, 2.0, term)]
    return Distiller(student, weighted), given_


@pytest.mark.parametrize(
    ("name", "phase", "in_main"),
    [
        ("ab", Phase("ab.boundary", 30, 0.05, (), 0.1, "forward", "student"), False),
        ("fsp", Phase("fsp.flow", 100, 0.001, (60, 80), 0.1, "forward", "student"), False),
        ("ft", Phase("ft.paraphraser", 30, 0.01, (), 0.1, "reconstruction", "term"), True),
    ],
)
def test_the_phase_has_the_published_schedule_and_takes_another(name, phase, in_main):
    term = OBJECTIVES.find(name)()
    assert (tuple(term.phases()), term.in_main) == ((phase,), in_main)
    (other,) = OBJECTIVES.find(name)(epochs=3, lr=0.5, milestones=[1, 2], gamma=0.2).phases()
    assert other == Phase(phase.name, 3, 0.5, (1, 2), 0.2, phase.loss, phase.trains)


@pytest.mark.parametrize(
    ("name", "first", "main"),
    [
        ("ab", {"student.stem", "student.block1", "student.block2"}, {"student"}),
        ("fsp", {"student.stem", "student.block1", "student.block2"}, {"student"}),
        ("ft", {"terms.1.paraphraser"}, {"student", "terms.1.translator"}),
    ],
)
def test_each_stage_trains_what_it_should(name, first, main):
    whole, given_ = distiller(name)
    for stage, wanted in zip(whole.stages(), (first, main), strict=True):
        optimizer = torch.optim.SGD(whole.begin(stage, given_), 0.1, momentum=0.9, weight_decay=0.1)
        before = {parameter_name: value.detach().clone() for parameter_name, value in whole.named_parameters()}
        whole(given_)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        for parameter_name, parameter in whole.named_parameters():
            moved = not parameter.equal(before[parameter_name])
            assert moved == parameter_name.startswith(tuple(wanted)), (stage.name, parameter_name)


@pytest.mark.parametrize("name", TERMS)
def test_training_through_the_phase_lowers_its_loss(name):
    whole, given_ = distiller(name)
    stage = whole.stages()[0]
    optimizer = torch.optim.Adam(whole.begin(stage, given_), lr=0.01)
    losses = []
    for _ in range(60):
        loss, _, _ = whole(given_)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"lr": 0}, "lr must be a finite number > 0, got 0"),
        ({"milestones": 3}, "milestones must be a list, got 3"),
        ({"milestones": [2, 1]}, "milestones must increase, got [2, 1]"),
        ({"milestones": [0]}, "milestones must be a whole number >= 1, got 0"),
        ({"gamma": 0}, "gamma must be a finite number > 0, got 0"),
    ],
)
def test_refuses_a_schedule(name, settings_, message):
    with pytest.raises(UserError) as caught:
        OBJECTIVES.find(name)(**settings_)
    assert str(caught.value) == f"{name}: {message}"


@pytest.mark.parametrize("name", TERMS)
def test_refuses_a_job_without_teacher_and_taps_that_are_no_maps(name):
    term: Term = OBJECTIVES.find(name)(**TERMS[name])
    student = Student()(maps(2, 3, 8, 8)).detach()
    with pytest.raises(UserError, match=f"{name}: needs a teacher, but the job has none"):
        term.setup(task(student, None))
    with pytest.raises(
        UserError, match=rf"{name}: tap .* of the teacher has shape \[2, 7\], not that of a feature map"
    ):
        term.setup(task(student, Outputs(maps(2, 10), dict.fromkeys(TEACHER, maps(2, 7)))))
