"""nst: its kernel on both ways, what it holds, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import maps
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES
from kdstream.objectives.nst import selectivity_distance


@pytest.mark.parametrize(("ours", "theirs", "size"), [(3, 4, 5), (9, 4, 2), (4, 9, 3), (16, 16, 4)])
def test_nst_equals_the_kernel_of_all_channel_pairs_on_both_ways(ours, theirs, size):
    student = maps(3, ours, size, size).double().requires_grad_()
    teacher = maps(3, theirs, size, size, seed=1).double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(a.flatten(2)[:, :, None], b.flatten(2)[:, None], dim=3).square().mean()

    slow = kernel(student, student) + kernel(teacher, teacher) - 2 * kernel(student, teacher)
    fast = selectivity_distance(student, teacher)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (fast, slow)))


@pytest.mark.parametrize(("channels", "size", "most"), [((8, 64), 3, 9 * 9), ((6, 5), 8, 6 * 6)])
def test_nst_holds_nothing_larger_than_the_maps_and_the_smaller_gram(channels, size, most):
    student, teacher = (maps(3, c, size, size, seed=c).requires_grad_() for c in channels)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        selectivity_distance(student, teacher)
    assert max(sizes) <= 3 * max(most, max(channels) * size**2)


def test_nst_refuses_settings():
    with pytest.raises(UserError, match=r"^nst: taps names a tap twice: a, a"):
        OBJECTIVES.find("nst")(taps=["a", "a"])
