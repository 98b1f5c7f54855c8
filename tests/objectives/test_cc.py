"""cc: the errors of neighbours, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from builders import activations, batch, ready

from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES


def test_cc_multiplies_the_errors_of_neighbours():
    term, student, teacher = ready("cc", feat_dim=5), activations(4, 1), activations(4, 9)
    errors = [
        (term.embed_s.linear(ours) - term.embed_t.linear(theirs)).abs()
        for ours, theirs in zip(student.features["penultimate"], teacher.features["penultimate"], strict=True)
    ]
    expected = sum(torch.dot(one, two) for one, two in itertools.pairwise(errors)) / 3
    torch.testing.assert_close(term(student, teacher, batch(4)), expected)
    assert term(student.map(lambda v: v[:1]), teacher.map(lambda v: v[:1]), batch(1)).item() == 0


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"feat_dim": 0}, "cc: feat_dim must be a whole number >= 1, got 0"),
        ({"tap": ["block3"]}, "cc: tap must be the name of one tap such as block3, got ['block3']"),
    ],
)
def test_cc_refuses_settings(settings_, message):
    with pytest.raises(UserError) as caught:
        OBJECTIVES.find("cc")(**settings_)
    assert str(caught.value).startswith(message)
