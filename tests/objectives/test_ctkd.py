"""ctkd: the temperature climbs where the student descends, its schedule, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.ctkd import CurriculumTemperature, reversal, tempered_kd
from kdstream.objectives.kd import KnowledgeDistillation
from kdstream.objectives.term import Task


def logits(seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))


def test_value_and_student_gradient_are_those_of_kd_at_the_learned_temperature():
    term = CurriculumTemperature(t_start=2, t_range=6)
    kd = KnowledgeDistillation(temperature=2 + 6 * torch.sigmoid(torch.tensor(1.0)).item())
    gradients = []
    for objective in (term, kd):
        ours = logits(0).requires_grad_()
        value = objective(Outputs(ours), Outputs(logits(1)), batch(5))
        value.backward()
        gradients.append((value.detach(), ours.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_step_against_the_gradient_makes_the_task_harder():
    term = CurriculumTemperature()
    term.begin_epoch(9, 100)
    ours, theirs = Outputs(logits(0)), Outputs(logits(1))
    before = term(ours, theirs, batch(5))
    before.backward()
    with torch.no_grad():
        term.global_T -= 0.1 * term.global_T.grad / term.global_T.grad.abs()
    assert term(ours, theirs, batch(5)) > before


def test_lambda_scales_the_temperatures_gradient_alone():
    found = []
    for epoch in (0, 4, 9, 50):
        term = CurriculumTemperature()
        term.begin_epoch(epoch, 100)
        ours = logits(0).requires_grad_()
        term(Outputs(ours), Outputs(logits(1)), batch(5)).backward()
        found.append((term.global_T.grad.item(), ours.grad))
    torch.testing.assert_close([gradient for _, gradient in found], [found[-1][1]] * 4)
    full = found[-1][0]
    expected = [reversal(1, 10, 0, 1) * full, full / 2, full, full]
    assert [value for value, _ in found] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_temperature_is_exact_in_float32():
    ours, theirs = logits(0, 1.5), logits(1, 1.5)
    narrow = torch.tensor(15.6, requires_grad=True)
    wide = torch.tensor(15.6, dtype=torch.float64).copy_(narrow.detach()).requires_grad_()
    value = tempered_kd(ours, theirs, narrow)
    assert value.dtype == torch.float32
    value.backward()
    tempered_kd(ours.double(), theirs.double(), wide).backward()
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=1e-6, atol=0)


def test_schedule_rises_from_lowest_to_highest_and_stays():
    values = [reversal(epoch, 10, 0.25, 0.75) for epoch in range(15)]
    assert values[0] == 0.25
    assert values[5] == pytest.approx(0.5)
    assert values[10:] == pytest.approx([0.75] * 5)
    assert values == sorted(values)


def test_half_precision_stays_finite():
    ours = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.float16, requires_grad=True)
    term = CurriculumTemperature()
    value = term(Outputs(ours), Outputs(-ours.detach()), batch(5))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert ours.grad.isfinite().all()
    assert term.global_T.grad.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("t_start", 0, "ctkd: t_start must be a finite number > 0, got 0"),
        ("t_range", -1, "ctkd: t_range must be a finite number > 0, got -1"),
        ("lambda_min", -1, "ctkd: lambda_min must be a finite number >= 0, got -1"),
        ("lambda_min", 2, "ctkd: lambda_max 1 is below lambda_min 2; the schedule rises"),
        ("ramp", 0, "ctkd: ramp must be a whole number >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, message):
    with pytest.raises(UserError) as caught:
        parse_loss({"ctkd": {setting: value}})
    assert str(caught.value) == message


def test_a_teacher_of_the_same_classes_is_needed():
    with pytest.raises(UserError, match="ctkd: the student has 10 classes and the teacher 9"):
        CurriculumTemperature().setup(Task(10, 10, 1, Outputs(torch.zeros(2, 10)), Outputs(torch.zeros(2, 9))))
