"""What a term must know of other processes: their samples in order, without padding; sums; how many there are."""

from __future__ import annotations

import pytest
import torch
from builders import maps
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from kdstream.objectives.common import processes


@given(sizes=st.lists(st.integers(0, 5), min_size=2, max_size=4), data=st.data())
def test_samples_of_all_processes_are_joined_in_order_and_without_padding(sizes, data):
    """The collectives of ``torch.distributed`` as they are said to be: equal shapes, one slot a process."""
    rank = data.draw(st.integers(0, len(sizes) - 1))
    wide = [maps(size, 3, seed=i).requires_grad_() for i, size in enumerate(sizes)]
    flat = [torch.arange(size) + 10 * i for i, size in enumerate(sizes)]

    def padded(values):
        return F.pad(values.detach(), (0, 0) * (values.ndim - 1) + (0, max(sizes) - len(values)))

    sent = iter([[torch.tensor([size]) for size in sizes], [*map(padded, wide)], [*map(padded, flat)]])

    def all_gather(received, own):
        values = next(sent)
        assert own.equal(values[rank])
        for slot, value in zip(received, values, strict=True):
            slot.copy_(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "count_processes", lambda: len(sizes))
        patch.setattr(processes.distributed, "all_gather", all_gather)
        joined, numbers = processes.join_samples(wide[rank], flat[rank])
    assert joined.equal(torch.cat(wide))
    assert numbers.equal(torch.cat(flat))
    assert not joined.requires_grad


def test_one_process_is_alone():
    values = maps(3, 2).requires_grad_()
    assert (processes.count_processes(), processes.process_rank()) == (1, 0)
    total = processes.sum_over_processes(values)
    assert total.equal(values)
    assert total.data_ptr() != values.data_ptr()
    (joined,) = processes.join_samples(values)
    assert joined.equal(values)
    assert not joined.requires_grad
