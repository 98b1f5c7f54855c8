"""The plan: exactly once, the same for any number of ranks, a function of seed, epoch and step only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.stream.plan import Plan, permute

sizes = st.integers(1, 500)
numbers = st.integers(-(2**63), 2**63 - 1)


@given(sizes, numbers)
def test_permute_is_a_bijection(size, key):
    assert permute(torch.arange(size), size, key).sort().values.equal(torch.arange(size))


@pytest.mark.parametrize("size", [1_281_167, 2**20, 2**20 + 1])
def test_permute_is_a_bijection_for_large_sets(size):
    assert permute(torch.arange(size), size, 7).sort().values.equal(torch.arange(size))


def test_permute_looks_random():
    size = 10_000
    order = permute(torch.arange(size), size, 3).double()
    correlation = torch.corrcoef(torch.stack([order[:-1], order[1:]]))[0, 1]
    assert abs(correlation) < 0.04
    assert abs(torch.corrcoef(torch.stack([order, torch.arange(size).double()]))[0, 1]) < 0.04
    # Each tenth of the order holds about a tenth of each tenth of the set: chi-squared with 81 degrees of freedom.
    table = torch.zeros(10, 10)
    table.index_put_((torch.arange(size) // 1000, (order // 1000).long()), torch.ones(size), accumulate=True)
    assert ((table - 100) ** 2 / 100).sum() < 150


@given(sizes, st.integers(1, 64), numbers, st.integers(0, 1000))
def test_every_sample_once_an_epoch(size, batch_size, seed, epoch):
    plan = Plan(size, batch_size, seed)
    batches = [plan.batch(epoch, step) for step in range(plan.steps)]
    assert torch.cat(batches).sort().values.equal(torch.arange(size))
    lengths = [len(batch) for batch in batches]
    assert max(lengths) <= batch_size
    assert plan.steps == -(-size // batch_size)
    if plan.steps > 1:
        assert min(lengths) >= batch_size // 2
        assert all(length == batch_size for length in lengths[:-2])


@given(st.integers(1, 150), st.integers(2, 64), st.integers(1, 9), st.integers(1, 3))
def test_ranks_share_the_same_global_batches(size, batch_size, world, group):
    plan = Plan(size, batch_size, 5, group=group)
    for step in range(plan.steps):
        parts = [plan.batch(2, step, rank, world) for rank in range(world)]
        assert torch.cat(parts).equal(plan.batch(2, step))
        assert max(map(len, parts)) - min(map(len, parts)) <= group
        assert all(len(part) % group == 0 for part in parts[:-1]), "a group is in one slice"
    slices = [len(plan.batch(2, step, rank, world)) for step in range(plan.steps) for rank in range(world)]
    assert plan.smallest_slice(world) == min(slices)


def test_order_depends_on_seed_and_epoch_only():
    plan = Plan(1000, 100, 1)
    first = plan.batch(0, 3)
    assert first.equal(Plan(1000, 100, 1).batch(0, 3))
    assert not first.equal(plan.batch(1, 3))
    assert not first.equal(Plan(1000, 100, 2).batch(0, 3))
    assert Plan(1000, 100, 1, shuffle=False).batch(9, 3).equal(torch.arange(300, 400))


def test_mistakes():
    with pytest.raises(UserError, match="empty"):
        Plan(0, 8)
    with pytest.raises(UserError, match="batch_size is 0"):
        Plan(8, 0)
    with pytest.raises(IndexError):
        Plan(8, 4).batch(0, 2)
