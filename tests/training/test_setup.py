"""What comes before the first step: what terms are told of the training."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from jobs import recipe_of

import kdstream as kd
from kdstream.data.shards import open_shards
from kdstream.stream import parse_chain
from kdstream.stream.plan import Plan
from kdstream.training.rehearsal import rehearse
from kdstream.training.setup import uncoded


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 240])
@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (2, 1), (2, 2), (4, 2), (5, 2), (7, 3), (10, 4), (300, 3)])
def test_the_smallest_slice_of_all(size, batch_size, world):
    plan = Plan(size, batch_size)
    slices = [len(plan.batch(0, step, rank, world)) for step in range(plan.steps) for rank in range(world)]
    assert plan.smallest_slice(world) == min(slices)


class Asks(kd.Term):
    """Notes what it is told."""

    uses_teacher = False
    told: int | None = None

    def setup(self, task):
        Asks.told = task.smallest_batch

    def forward(self, student, teacher, batch):
        return student.logits.square().mean()


def test_terms_are_told(digits, monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    import test_setup  # the recipe's, whichever name pytest has for this file

    for batch_size, smallest in ((100, 70), (48, 48), (239, 120), (300, 240)):
        recipe = recipe_of(digits, "nowhere", loss="test_setup:Asks", batch_size=batch_size)
        rehearse(recipe, open_shards(digits / "train"), None, Accelerator(cpu=True))
        assert test_setup.Asks.told == smallest


@kd.batch_stage
def coded(batches):
    """Called as ours is, and none of ours."""
    yield from batches


def test_a_stage_of_ones_own_called_coded_stays_where_ours_is_left_out(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    own = parse_chain("decode | test_setup:coded | teacher | normalize")
    assert uncoded(own) == own
    both = uncoded(parse_chain("decode | test_setup:coded | coded(hkl) | teacher | normalize"))
    assert [step.name for step in both.stages] == ["decode", "coded", "_offer_originals", "teacher", "normalize"]
    assert both.roles == [None, None, None, "teacher", "normalize"]
