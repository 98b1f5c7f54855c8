"""The loops give what their plain forms in torch give, bit for bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kdstream.stream import kernels
from kdstream.stream.augment import gathered
from kdstream.stream.plan import ROUNDS, Plan, permute


def test_the_order_is_the_same():
    for size in (1, 2, 3, 7, 240, 50_000, 999_983, 1 << 40):
        position = torch.arange(min(size, 500)) + max(0, size - 500) // 2
        for key in (0, -5, 2**63 - 1, -(2**63)):
            assert kernels.permuted(position, size, key, ROUNDS).equal(permute(position, size, key))


def test_a_plan_gives_many_batches_at_once_as_it_gives_each():
    for plan in (Plan(1003, 50, 7), Plan(1003, 50, 7, shuffle=False), Plan(1003, 50, 7, group=2)):
        for rank, world in ((0, 1), (1, 3)):
            steps = range(2, plan.steps)
            together = plan.batches(4, steps, rank, world)
            assert len(together) == len(steps)
            assert all(part.equal(plan.batch(4, step, rank, world)) for part, step in zip(together, steps, strict=True))
    assert plan.batches(0, []) == []


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_the_same(reflect, flip):
    generator = torch.Generator().manual_seed(0)
    for shape in ((200, 3, 32, 32), (64, 6, 5, 3), (9, 1, 1, 40), (5, 3, 1, 1)):
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        key = torch.randint(-(2**62), 2**62, (len(images),), generator=generator)
        for pad in (0, 1, 4, 50):
            fast = kernels.crop_flip(images, key, "crop_flip", pad, reflect, flip)
            assert fast.equal(gathered(images, key, pad, reflect, flip)), (shape, pad)


def test_what_a_loop_is_not_for_is_left_to_torch(monkeypatch):
    images, key = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2)
    for other in (images.float(), images.transpose(2, 3), images.to("meta")):
        assert kernels.crop_flip(other, key, "crop_flip", 1, False, True) is None
    monkeypatch.setattr(kernels, "available", lambda: False)
    assert kernels.crop_flip(images, key, "crop_flip", 1, False, True) is None
    assert kernels.permuted(key, 2, 0, ROUNDS) is None
    plan = Plan(100, 8, 1)
    assert [part.tolist() for part in plan.batches(0, [1, 2])] == [plan.batch(0, step).tolist() for step in (1, 2)]


def test_what_was_compiled_is_found_again():
    """In numba's cache, as the next process does."""
    compiled = kernels._kernels()
    again = importlib.util.module_from_spec(compiled.__spec__)
    compiled.__spec__.loader.exec_module(again)
    for loop in (again.permute, again.crop):
        assert sum(loop.stats.cache_hits.values()) == 1
