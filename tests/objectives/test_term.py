"""What a term is that says nothing of its hooks: they change nothing; and one that says not even its value."""

from __future__ import annotations

import pytest
import torch
from builders import batch, outputs, task
from torch import nn

from kdstream.errors import UserError
from kdstream.objectives import Term
from kdstream.objectives.common.settings import Positive


class Scaled(Term):
    def __init__(self, scale: Positive = 2.0):
        super().__init__()
        self.scale = scale

    def forward(self, student, teacher, batch):
        return self.scale * student.logits.mean()


def test_hooks_that_are_not_given_change_nothing():
    term, network = Scaled(), nn.Linear(2, 2)
    term.setup(task(outputs(), None))
    term.begin_epoch(0, 1)
    assert term.adapt(network, None, torch.zeros(2, 3, 4, 4), None) is network
    assert term.deploy(network) is network
    assert (tuple(term.phases()), term.peers(), term.in_main, term.uses_teacher) == ((), {}, True, True)
    assert not [*term.parameters(), *term.buffers()]
    assert term(outputs(), None, batch()).item() == 0


def test_settings_are_checked_wherever_a_term_is_made():
    class Deeper(Scaled):
        """Inherits what is checked."""

    for make in (Scaled, Deeper):
        assert make(scale=3).scale == 3
        with pytest.raises(UserError, match="scale must be a finite number > 0, got 0"):
            make(scale=0)


def test_a_term_without_a_value_is_named():
    class Empty(Term):
        """Forgets its forward."""

    with pytest.raises(TypeError, match=r"^Empty does not define forward\(student, teacher, batch\)$"):
        Empty()(outputs(), None, batch())
