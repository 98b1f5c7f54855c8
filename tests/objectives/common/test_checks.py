"""What objectives refuse together, in one line each: settings, classes, samples, positions, shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import maps, outputs, task
from hypothesis import given
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.common import checks


@given(taps=st.lists(st.text(), max_size=4), others=st.none() | st.lists(st.text(), max_size=4))
def test_taps_pair_up_by_position(taps, others):
    if others is not None and len(others) != len(taps):
        with pytest.raises(
            UserError, match=rf"^at: taps and teacher_taps must pair up, got {len(taps)} and {len(others)}"
        ):
            checks.tap_pairs("at", taps, others)
    else:
        assert checks.tap_pairs("at", taps, others) == (tuple(taps), tuple(taps if others is None else others))


@given(smallest=st.none() | st.integers(0, 5), least=st.integers(1, 5), classes=st.integers(1, 5))
def test_what_is_enough_passes_and_nothing_less(smallest, least, classes):
    seen = replace(task(Outputs(torch.zeros(2, classes)), None), smallest_related=smallest)
    for enough, check in (
        (smallest is None or smallest >= least, lambda: checks.need_samples("kd", seen, least, "a sum")),
        (classes >= least, lambda: checks.need_classes("kd", seen, least, "a sum")),
    ):
        if enough:
            check()
        else:
            with pytest.raises(UserError, match=rf"^kd: a sum (takes|needs) at least {least}"):
                check()


def test_one_weight_above_0_is_enough():
    checks.need_weight("dist", beta=0, gamma=1e-9)
    with pytest.raises(UserError, match=r"^dist: beta and gamma are both 0, which leaves nothing to learn"):
        checks.need_weight("dist", beta=0, gamma=0)
    with pytest.raises(UserError, match=r"^x: a, b and c are all 0"):
        checks.need_weight("x", a=0, b=0, c=0.0)


def test_maps_share_more_than_one_position_or_are_refused():
    wide, narrow, point = maps(2, 3, 4, 1), maps(2, 3, 2, 2), maps(2, 3, 1, 1)
    checks.need_positions("at", "block1", "layer1", wide, narrow)
    for pair in ((wide, point), (point, narrow), (wide, maps(2, 3, 1, 4))):
        with pytest.raises(UserError, match=r"^at: compares where maps are active, .* share one position only"):
            checks.need_positions("at", "block1", "layer1", *pair)
    checks.need_maps("at", "block1", "layer1", wide, narrow)
    with pytest.raises(
        UserError, match=r"^at: tap 'layer1' of the teacher has shape \[2, 7\], not that of a feature map"
    ):
        checks.need_maps("at", "block1", "layer1", wide, maps(2, 7))


def test_a_teacher_of_the_same_classes_and_of_two_at_least():
    ten, one = outputs(), Outputs(torch.zeros(2, 1))
    checks.need_same_classes("kd", task(ten, ten))
    for given_, message in (
        (task(ten, None), r"^kd: needs a teacher, but the job has none; name one or drop kd from the loss"),
        (task(ten, one), r"^kd: the student has 10 classes and the teacher 1; it compares their logits"),
        (task(one, one), r"^kd: an answer to learn from needs at least 2, the student has 1: choose another objective"),
    ):
        with pytest.raises(UserError, match=message):
            checks.need_same_classes("kd", given_)


def test_what_terms_make_of_a_student_is_composed_and_nothing_else():
    assert checks.is_composed({"name": "kdstream.models.joint:JointNetwork"})
    assert not any(checks.is_composed({"name": name}) for name in ("resnet8", "my_models:Net", "kdstream.models"))
    assert not checks.is_composed({})
