"""at: the invariants of its formula, maps of unequal size, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, maps, outputs, seeds, task
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.at import AttentionTransfer, attention, attention_distance


@given(seeds, st.integers(1, 3), st.floats(0.01, 100), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_at_does_not_see_the_scale_of_a_map(seed, p, ours, theirs):
    student, teacher = maps(3, 5, 4, 4, seed=seed).double(), maps(3, 6, 4, 4, seed=seed + 1).double()
    value = attention_distance(student, teacher, p)
    torch.testing.assert_close(attention_distance(ours * student, theirs * teacher, p), value, rtol=1e-6, atol=1e-12)


@given(seeds, st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_at_does_not_see_the_order_of_channels_and_is_zero_for_equal_attention(seed, order):
    student = maps(3, 5, 4, 4, seed=seed)
    assert attention_distance(student, student[:, order].repeat(1, 2, 1, 1), 2).item() < 1e-12
    assert attention_distance(student, maps(3, 5, 4, 4, seed=seed + 1), 2).item() > 1e-6


def test_attention_has_unit_length_and_keeps_the_sign_of_odd_powers():
    signed = -maps(3, 5, 4, 4).abs()
    torch.testing.assert_close(attention(signed, 2).norm(dim=1), torch.ones(3))
    assert (attention(signed, 3) < 0).all()
    assert torch.equal(attention(torch.zeros(1, 2, 2, 2), 2), torch.zeros(1, 4))


@pytest.mark.parametrize(("ours", "theirs"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((8, 4), (4, 8)), ((7, 5), (5, 3))])
def test_at_pools_the_larger_map_before_the_power(ours, theirs):
    student, teacher = maps(2, 3, *ours), maps(2, 4, *theirs, seed=1)
    size = (min(ours[0], theirs[0]), min(ours[1], theirs[1]))
    pool = torch.nn.AdaptiveAvgPool2d(size)
    expected = (attention(pool(student), 2) - attention(pool(teacher), 2)).square().mean()
    torch.testing.assert_close(attention_distance(student, teacher, 2), expected)


def test_at_sums_over_taps_and_pairs_names():
    student, teacher = outputs(block1=(3, 8, 8), block2=(4, 4, 4)), outputs(1, layer1=(5, 8, 8), layer2=(6, 4, 4))
    term = AttentionTransfer(taps=["block1", "block2"], teacher_taps=["layer1", "layer2"])
    term.setup(task(student, teacher))
    parts = [attention_distance(student.features[f"block{i}"], teacher.features[f"layer{i}"], 2).item() for i in (1, 2)]
    assert term(student, teacher, batch()).item() == pytest.approx(sum(parts))
    assert (term.student_taps, term.teacher_taps) == (("block1", "block2"), ("layer1", "layer2"))


def test_at_does_not_overflow_in_half_precision():
    student = 400 * maps(4, 3, 4, 4).half()
    value = attention_distance(student, maps(4, 3, 4, 4, seed=1).half(), 2)
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"p": 0}, "at: p must be a whole number >= 1, got 0"),
        ({"p": 1.5}, "at: p must be a whole number >= 1, got 1.5"),
        ({"p": True}, "at: p must be a whole number >= 1, got True"),
        ({"p": "2"}, "at: p must be a whole number >= 1, got the text '2' (remove the quotes"),
        ({"taps": []}, "at: taps must be a list of tap names such as [block1, block2], got []"),
        ({"taps": [1]}, "at: taps must be a list of tap names such as [block1, block2], got [1]"),
        ({"taps": 3}, "at: taps must be a list, got 3"),
        ({"taps": ["block1", "block1"]}, "at: taps names a tap twice: block1, block1"),
        ({"taps": "block1", "teacher_taps": ["a", "b"]}, "at: taps and teacher_taps must pair up, got 1 and 2 names"),
    ],
)
def test_at_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        AttentionTransfer(**settings_)
    assert str(caught.value).startswith(message)


def test_at_takes_whole_floats_and_a_single_name():
    term = AttentionTransfer(p=2.0, taps="block3")
    assert (term.p, term.student_taps, term.teacher_taps) == (2, ("block3",), ("block3",))


def test_at_refuses_taps_that_are_no_maps():
    term = AttentionTransfer(taps="penultimate")
    flat = Outputs(torch.zeros(2, 10), {"penultimate": torch.zeros(2, 64)})
    with pytest.raises(UserError, match=r"tap 'penultimate' of the student has shape \[2, 64\], not that of a feature"):
        term.setup(task(flat, flat))
    with pytest.raises(UserError, match="at: needs a teacher, but the job has none"):
        term.setup(task(flat, None))
