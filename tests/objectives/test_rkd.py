"""rkd: its definition pair by pair, in parts that stay small, equal samples, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import activations, batch, maps, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, rkd
from kdstream.objectives.rkd import RelationalKD


def slow_rkd(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and angle term, pair by pair and triple by triple."""
    count, sides = len(student), [value.flatten(1) for value in (student, teacher)]
    scaled = []
    for side in sides:
        far = torch.stack([(a - b).norm() for a in side for b in side])
        scaled.append(far / far[far > 0].mean())
    angles = []
    for side in sides:
        unit = F.normalize(side[None] - side[:, None], dim=2)
        angles.append(torch.stack([unit[i] @ unit[i].T for i in range(count)]))
    return F.smooth_l1_loss(*scaled), F.smooth_l1_loss(*angles)


@pytest.mark.parametrize("most", [2**22, 100, 1])
def test_rkd_equals_its_definition_whole_and_in_parts(most, monkeypatch):
    monkeypatch.setattr(rkd, "MOST_ANGLES", most)
    student, teacher = maps(7, 4, 2, 2).double().requires_grad_(), maps(7, 5, 3, 3, seed=1).double()
    term = RelationalKD()
    grams = term.grams(Outputs(student, {"block3": student}), Outputs(teacher, {"block3": teacher}))
    for fast, slow in zip((term.distance(*grams), term.angle(*grams)), slow_rkd(student, teacher), strict=True):
        torch.testing.assert_close(fast, slow)
        torch.testing.assert_close(*(torch.autograd.grad(v, student, retain_graph=True)[0] for v in (fast, slow)))


def test_rkd_in_parts_holds_no_larger_tensor(monkeypatch):
    monkeypatch.setattr(rkd, "MOST_ANGLES", 2000)
    student, sizes = maps(20, 100).requires_grad_(), []
    term = RelationalKD(w_d=0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        term(Outputs(student, {"block3": student}), Outputs(student, {"block3": maps(20, 90, seed=1)}), batch(20))
    assert max(sizes) <= 2000


def test_rkd_gives_equal_samples_no_angle():
    student, teacher = maps(6, 300, seed=3), maps(6, 200, seed=4)
    student[4] = student[1]
    student.requires_grad_()
    term = RelationalKD()
    ours, theirs = Outputs(student, {"block3": student}), Outputs(teacher, {"block3": teacher})
    grams = term.grams(ours, theirs)
    cosines = rkd.cosines(grams[0], rkd.inverse_distances(grams[0]), 0, 6)
    assert not cosines[1, 4].any()
    assert not cosines[4, :, 1].any()
    value = term.angle(*grams)
    torch.testing.assert_close(value, slow_rkd(student, teacher)[1], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(term(ours, theirs, batch(6)), student)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1


@given(seeds, st.floats(-100, 100))
@settings(max_examples=20, deadline=None)
def test_rkd_does_not_see_where_the_features_lie(seed, shift):
    student, teacher = maps(5, 8, seed=seed), Outputs(maps(5, 10), {"block3": maps(5, 9, seed=seed + 1)})
    values = [
        RelationalKD()(Outputs(student, {"block3": moved}), teacher, batch(5)).item()
        for moved in (student, student + shift)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_rkd_weights_its_relations_and_leaves_out_those_of_weight_zero():
    student, teacher = activations(5, 1), activations(5, 9)
    both = [RelationalKD(w_d=w_d, w_a=w_a)(student, teacher, batch(5)) for w_d, w_a in ((2, 3), (2, 0), (0, 3))]
    torch.testing.assert_close(both[0], both[1] + both[2])
    grams = RelationalKD().grams(student, teacher)
    torch.testing.assert_close(both[1], 2 * RelationalKD().distance(*grams))
    torch.testing.assert_close(both[2], 3 * RelationalKD().angle(*grams))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"teacher_tap": 3}, "rkd: teacher_tap must be the name of one tap such as block3, got 3"),
        ({"w_d": -1}, "rkd: w_d must be a finite number >= 0, got -1"),
        ({"w_d": 0, "w_a": 0}, "rkd: w_d and w_a are both 0"),
        ({"eps": 0}, "rkd: eps must be a finite number > 0, got 0"),
    ],
)
def test_rkd_refuses_settings(settings_, message):
    with pytest.raises(UserError) as caught:
        OBJECTIVES.find("rkd")(**settings_)
    assert str(caught.value).startswith(message)
