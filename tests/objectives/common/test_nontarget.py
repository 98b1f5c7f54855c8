"""The classes beside the label: a softmax over them alone, which no gradient leaves towards the label."""

from __future__ import annotations

import torch
from builders import labels, logits, seeds
from hypothesis import given

from kdstream.objectives.common.nontarget import without_label


@given(seeds)
def test_the_softmax_is_that_of_the_other_classes(seed):
    values, label = logits(seed).requires_grad_(), labels(seed)
    found = without_label(values, label).softmax(1)
    others = torch.ones(5, 7, dtype=torch.bool).scatter(1, label[:, None], False)
    torch.testing.assert_close(found[others], values[others].view(5, 6).softmax(1).flatten())
    assert (found[~others] == 0).all()
    found.square().sum().backward()
    assert (values.grad[~others] == 0).all()
    assert values.grad[others].any()


def test_the_label_stays_finite_times_0():
    left_out = without_label(torch.zeros(2, 3), torch.tensor([0, 2]))
    assert (0 * left_out).isfinite().all()
    assert (0 * left_out.log_softmax(1)).isfinite().all()
