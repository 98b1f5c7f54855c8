"""kdsvd: the decomposition that it equals, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import activations, batch, maps, ready

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Task
from kdstream.objectives.kdsvd import SingularValueTransfer, right_singular


def slow_kdsvd(student: list[torch.Tensor], teacher: list[torch.Tensor], k: int) -> torch.Tensor:
    """By torch's differentiable decomposition, sample by sample."""
    total = 0
    for n in range(len(student[0])):
        last = None
        for ours, theirs in zip(student, teacher, strict=True):
            _, values, target = torch.linalg.svd(theirs[n].flatten(1).T, full_matrices=False)
            target = torch.stack([row if row.sum() >= 0 else -row for row in target[:k]])
            scale = (values[:k] / values[:k].norm())[:, None]
            basis = torch.linalg.svd(ours[n].flatten(1).T, full_matrices=False)[2][: k + 3]
            nearest = [max(basis, key=lambda v: (v @ row).abs().item()) for row in target]
            found = torch.stack([v * (v @ row).sign() for v, row in zip(nearest, target, strict=True)])
            now = found * scale, target * scale
            if last is not None:
                r = [torch.exp(-((high[:, :, None] - low[:, None]).square()) / 8) for high, low in zip(now, last)]  # noqa: B905
                total = total + (r[0] - r[1]).square().sum()
            last = now
    return total / len(student[0])


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("ours", "theirs"), [((5, 6), (5, 6)), ((4, 2), (3, 3))])
def test_kdsvd_equals_the_decomposition_and_its_gradient(k, ours, theirs):
    student = [maps(3, c, s, s, seed=c).double().requires_grad_() for c, s in zip((4, 9), ours, strict=True)]
    teacher = [maps(3, c, s, s, seed=c + 50).double() for c, s in zip((4, 9), theirs, strict=True)]
    term = SingularValueTransfer(taps=["block1", "block2"], k=k)
    sides = [Outputs(maps(3, 10), dict(zip(("block1", "block2"), side, strict=True))) for side in (student, teacher)]
    term.setup(Task(10, 100, 1, *sides))
    fast, slow = term(*sides, batch(3)), slow_kdsvd(student, teacher, k)
    torch.testing.assert_close(fast, slow)
    for one, two in zip(*(torch.autograd.grad(value, student) for value in (fast, slow)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_kdsvd_does_not_see_the_sign_of_the_students_map():
    term, student, teacher = ready("kdsvd"), activations(3, 1), activations(3, 9)
    value = term(student, teacher, batch(3))
    torch.testing.assert_close(term(student.map(torch.neg), teacher, batch(3)), value)
    torch.testing.assert_close(term(student, teacher.map(torch.neg), batch(3)), value)


@pytest.mark.parametrize(("channels", "positions"), [(4, 9), (9, 4)])
def test_kdsvd_vectors_are_those_of_the_decomposition(channels, positions):
    x = maps(3, channels, positions).double()
    vectors, squares, _ = right_singular(x)
    _, values, right = torch.linalg.svd(x.mT, full_matrices=False)
    torch.testing.assert_close(squares, values.square())
    torch.testing.assert_close((vectors.mT @ right.mT).abs(), torch.eye(4).double().expand(3, 4, 4))


def test_kdsvd_refuses_pairs_that_have_no_value():
    def probe(*shapes: tuple[int, ...]) -> Outputs:
        return Outputs(maps(2, 10), {f"block{i}": maps(2, *shape) for i, shape in enumerate(shapes, 1)})

    student = probe((4, 8, 8), (8, 2, 2))
    with pytest.raises(UserError) as caught:
        SingularValueTransfer(taps=["block1", "block2"]).setup(Task(10, 9, 1, student, probe((4, 8, 8), (9, 2, 2))))
    assert "'block2' [8, 2, 2] and the teacher's 'block2' [9, 2, 2] ([C,H,W]) differ in channels" in str(caught.value)
    with pytest.raises(UserError, match="do not have k = 5 singular vectors: lower k"):
        SingularValueTransfer(taps=["block1", "block2"], k=5).setup(Task(10, 9, 1, student, student))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"taps": ["block1"]}, "kdsvd: compares consecutive taps, got block1 alone"),
        ({"k": 0}, "kdsvd: k must be a whole number >= 1, got 0"),
        ({"gamma": 0}, "kdsvd: gamma must be a finite number > 0, got 0"),
    ],
)
def test_kdsvd_refuses_settings(settings_, message):
    with pytest.raises(UserError) as caught:
        OBJECTIVES.find("kdsvd")(**settings_)
    assert str(caught.value).startswith(message)
