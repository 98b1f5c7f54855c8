"""Batches added up: however samples fall into batches and processes, and whatever stages drop, each counts alike."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdstream.stream.plan import Plan
from kdstream.training.accumulation import Accumulation


@given(
    plan=st.builds(Plan, size=st.integers(2, 40), batch_size=st.integers(2, 9)),
    size=st.integers(1, 4),
    world=st.integers(1, 3),
    data=st.data(),
)
def test_the_gradient_of_a_group_is_the_mean_over_its_samples(plan, size, world, data):
    """Of the loss w * x, sample by sample; every process keeps one sample of each slice at least."""
    values = torch.arange(plan.size, dtype=torch.float64)
    for start in range(0, plan.steps, size):
        steps = range(start, min(start + size, plan.steps))
        slices = [[plan.batch(0, step, rank, world) for step in steps] for rank in range(world)]
        if not all(len(part) for parts in slices for part in parts):
            return  # a smaller batch than processes is refused elsewhere
        kept = [[part[: data.draw(st.integers(1, len(part)))] for part in parts] for parts in slices]
        whole = torch.cat([values[part] for parts in kept for part in parts]).mean()
        totals = [sum(len(parts[i]) for parts in kept) for i in range(len(steps))]
        gradients = []
        for rank in range(world):
            asked = iter(totals if size == 1 else [sum(totals)])
            place = SimpleNamespace(num_processes=world, device="cpu")
            place.reduce = lambda _, asked=asked: torch.tensor(next(asked))
            module = nn.Linear(1, 1, bias=False)
            module.weight.grad = torch.zeros(1, 1)
            group = Accumulation(plan, size, place)
            for step, part in zip(steps, kept[rank], strict=True):
                module.weight.grad += group.share(step, len(part)) * values[part].mean()
                assert group.closes == (step == steps[-1])
            group.close(module)
            assert group.seen == 0
            gradients.append(module.weight.grad.item())
        assert sum(gradients) / world == pytest.approx(whole.item(), rel=1e-5, abs=1e-6)
