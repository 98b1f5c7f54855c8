"""ab: its distance, connectors and weights, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, maps, outputs, seeds, task
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.objectives.ab import ActivationBoundary, boundary_distance


@given(seeds, st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_ab_is_zero_beyond_the_margin_and_sees_only_the_teachers_signs(seed, margin):
    student, teacher = maps(3, 4, 2, 2, seed=seed), maps(3, 4, 2, 2, seed=seed + 1)
    value = boundary_distance(student, teacher, margin)
    torch.testing.assert_close(boundary_distance(student, 7 * teacher, margin), value)
    beyond = torch.where(teacher > 0, margin, -margin) * 1.01
    assert boundary_distance(beyond, teacher, margin).item() == 0
    assert boundary_distance(torch.zeros(3, 4, 2, 2), teacher, margin).item() == pytest.approx(16 * margin**2, rel=1e-5)


def test_ab_counts_a_teacher_at_zero_as_inactive():
    student = torch.tensor([-2.0, -0.5, 0.5]).reshape(1, 3, 1, 1)
    assert boundary_distance(student, torch.zeros(1, 3, 1, 1), 1.0).item() == pytest.approx(0.5**2 + 1.5**2)


def test_ab_doubles_its_weights_and_connects_only_where_shapes_differ():
    term = ActivationBoundary()
    assert (term.scale, term.margin) == (0.003, 1.0)
    shapes = {"block1.pre": (4, 8, 8), "block2.pre": (4, 8, 8), "block3.pre": (4, 8, 8)}
    teacher = {"block1.pre": (4, 8, 8), "block2.pre": (5, 8, 8), "block3.pre": (4, 4, 4)}
    student, target = outputs(**shapes), outputs(1, **teacher)
    term.setup(task(student, target))
    assert list(term.weights) == [0.25, 0.5, 1.0]
    assert set(term.connector) == {"block2", "block3"}
    parts = [term.boundary(tap, student.features[tap], target.features[tap]) for tap in term.student_taps]
    expected = 0.003 * (parts[0] / 4 + parts[1] / 2 + parts[2])
    torch.testing.assert_close(term(student, target, batch()), expected)


def test_ab_leaves_out_taps_of_weight_zero():
    student, teacher = outputs(a=(3, 4, 4), b=(3, 4, 4)), outputs(1, a=(5, 4, 4), b=(5, 4, 4))
    term = ActivationBoundary(taps=["a", "b"], weights=[0, 2])
    term.setup(task(student, teacher))
    names = {name for name, parameter in term.named_parameters() if parameter.requires_grad}
    assert names == {f"connector.b.{name}" for name in ("conv.weight", "conv.bias", "bn.weight", "bn.bias")}
    term(student, teacher, batch()).backward()
    assert all((parameter.grad is not None) == (".b." in name) for name, parameter in term.named_parameters())


def test_ab_refuses_sizes_that_no_connector_joins():
    with pytest.raises(UserError) as caught:
        ActivationBoundary(taps="block1.pre").setup(
            task(outputs(**{"block1.pre": (3, 4, 4)}), outputs(**{"block1.pre": (3, 6, 6)}))
        )
    assert "'block1.pre' [3, 4, 4] cannot be brought to the teacher's [3, 6, 6] ([C,H,W])" in str(caught.value)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"margin": 0}, "ab: margin must be a finite number > 0, got 0"),
        ({"scale": -1}, "ab: scale must be a finite number > 0, got -1"),
        ({"taps": ["a", "b"], "weights": [1]}, "ab: weights must be one a tap, got 1 for 2 taps"),
        ({"weights": [0, 0, 0]}, "ab: weights are all 0"),
        ({"taps": ["block1", "block1.pre"]}, "ab: taps holds one block twice: block1, block1.pre"),
    ],
)
def test_ab_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        ActivationBoundary(**settings_)
    assert str(caught.value).startswith(message)
