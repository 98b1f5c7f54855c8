"""fitnet: its phase, its connectors, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, maps, outputs, task

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.fitnet import FitNet
from kdstream.objectives.term import Phase


@pytest.mark.parametrize("theirs", [(5, 9, 9), (5, 12, 12), (5, 8, 12), (5, 4, 16)])
def test_fitnet_refuses_sizes_that_no_regressor_joins(theirs):
    with pytest.raises(UserError) as caught:
        FitNet().setup(task(outputs(block2=(3, 4, 8)), outputs(block2=theirs)))
    assert str(caught.value).startswith(
        f"fitnet: the student's 'block2' [3, 4, 8] cannot be brought to the teacher's {list(theirs)}"
    )


def test_fitnet_in_one_stage_acts_in_the_main_phase():
    term = FitNet()
    assert term.in_main
    assert tuple(term.phases()) == ()
    assert (term.student_taps, term.teacher_taps) == (("block2",), ("block2",))


def test_fitnet_in_two_stages_has_the_published_schedule():
    term = FitNet(stages=2)
    assert not term.in_main
    hint = Phase("fitnet.hint", 100, 0.001, (60, 80), 0.1, "forward", "student")
    assert tuple(term.phases()) == (hint,)
    (phase,) = FitNet(stages=2, epochs=3, lr=0.5, milestones=[1, 2], gamma=0.2).phases()
    assert (phase.epochs, phase.lr, phase.milestones, phase.gamma) == (3, 0.5, (1, 2), 0.2)


def test_fitnet_hint_trains_student_and_regressor():
    torch.manual_seed(0)
    student_layer = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    image = maps(4, 3, 8, 8)
    teacher = Outputs(torch.zeros(4, 10), {"block2": maps(4, 6, 4, 4, seed=1).relu()})

    def student() -> Outputs:
        return Outputs(torch.zeros(4, 10), {"block2": student_layer(image)})

    term = FitNet(stages=2)
    term.setup(task(student().detach(), teacher))
    before = {name: value.clone() for name, value in term.named_parameters()}
    optimizer = torch.optim.SGD([*student_layer.parameters(), *term.parameters()], lr=0.5)
    start = student_layer.weight.detach().clone()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = getattr(term, term.phases()[0].loss)(student(), teacher, batch())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(student_layer.weight, start)
    # A bias in front of a BatchNorm has no gradient; all else moves.
    still = {name for name, value in term.named_parameters() if torch.allclose(value, before[name], atol=1e-5)}
    assert still <= {"connector.block2.conv.bias"}


def test_fitnet_leaves_out_taps_of_weight_zero():
    student = outputs(block1=(3, 8, 8), block2=(4, 4, 4))
    features = {tap: value.requires_grad_() for tap, value in student.features.items()}
    teacher = outputs(1, block1=(5, 8, 8), block2=(6, 4, 4))
    term = FitNet(taps=["block1", "block2"], weights=[0, 2])
    term.setup(task(student.detach(), teacher))
    value = term(student, teacher, batch())
    assert torch.autograd.grad(value, [features["block1"]], allow_unused=True, retain_graph=True) == (None,)
    assert {name for name, parameter in term.named_parameters() if parameter.requires_grad} == {
        f"connector.block2.{name}" for name in ("conv.weight", "conv.bias", "bn.weight", "bn.bias")
    }
    alone = term.hint_distance("block2", features["block2"], teacher.features["block2"])
    assert value.item() == pytest.approx(2 * alone.item())


def test_fitnet_takes_pre_activation_taps():
    student, teacher = Outputs(torch.zeros(4, 10), {"block2.pre": maps(4, 3, 4, 4)}), outputs(1, block3=(5, 4, 4))
    term = FitNet(taps=["block2.pre"], teacher_taps=["block3"])
    term.setup(task(student, teacher))
    assert {name.rpartition(".")[0] for name, _ in term.named_parameters()} == {
        "connector.block2.conv",
        "connector.block2.bn",
    }
    assert torch.isfinite(term(student, teacher, batch()))


def test_fitnet_computes_half_precision_features_in_float32():
    student, teacher = outputs(block2=(3, 4, 4)), outputs(1, block2=(5, 4, 4))
    term = FitNet()
    term.setup(task(student, teacher))
    half = term(student.map(torch.Tensor.half), teacher.map(torch.Tensor.half), batch())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(term(student, teacher, batch()).item(), rel=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert term(student, teacher, batch()).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"weights": [1, 2]}, "fitnet: weights must be one a tap, got 2 for 1 taps"),
        ({"weights": [-1]}, "fitnet: weights must be a finite number >= 0, got -1"),
        ({"weights": [0]}, "fitnet: weights are all 0"),
        ({"weights": 1}, "fitnet: weights must be a list, got 1"),
        ({"stages": 3}, "fitnet: stages must be a whole number from 1 to 2, got 3"),
        ({"stages": 0}, "fitnet: stages must be a whole number from 1 to 2, got 0"),
        ({"epochs": 0}, "fitnet: epochs must be a whole number >= 1, got 0"),
        ({"lr": 0}, "fitnet: lr must be a finite number > 0, got 0"),
        ({"lr": "1e-3"}, "fitnet: lr must be a finite number > 0, got the text '1e-3' (remove the quotes; YAML"),
        ({"milestones": 60}, "fitnet: milestones must be a list, got 60"),
        ({"milestones": [80, 60]}, "fitnet: milestones must increase, got [80, 60]"),
        ({"milestones": [0]}, "fitnet: milestones must be a whole number >= 1, got 0"),
        ({"gamma": -1}, "fitnet: gamma must be a finite number > 0, got -1"),
        ({"taps": ["block2", "block2.pre"]}, "fitnet: taps holds one block twice: block2, block2.pre"),
    ],
)
def test_fitnet_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        FitNet(**settings_)
    assert str(caught.value).startswith(message)
