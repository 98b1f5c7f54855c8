"""The sum of parts is Python's, value and gradient."""

from __future__ import annotations

import pytest
import torch

from kdstream.objectives.common.total import total


@pytest.mark.parametrize("count", [1, 3])
def test_it_is_what_sum_gives(count):
    values = torch.randn(count, dtype=torch.float64, requires_grad=True)
    found = total(value.square() for value in values)
    assert found == sum(value.square() for value in values.detach())
    (gradient,) = torch.autograd.grad(found, values)
    assert torch.equal(gradient, 2 * values.detach())
