"""Which samples CRD contrasts a sample with: of other classes, equally probable, a function of the sample's key."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdstream.objectives.common.contrast import Contrast
from kdstream.rng import sample_keys

CLASSES = 4


def labels_of(size: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (size,), generator=torch.Generator().manual_seed(size))


@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1),
    negatives=st.integers(1, 50),
    relaxed=st.booleans(),
    seed=st.integers(0, 2**62),
)
def test_the_positive_shares_the_class_and_the_negatives_never_do(labels, negatives, relaxed, seed):
    labels = torch.tensor(labels)
    index = torch.arange(len(labels))
    chosen = Contrast(labels, negatives, relaxed)(index, sample_keys(seed, 0, index))
    assert chosen.shape == (len(labels), 1 + negatives)
    assert (labels[chosen[:, 0]] == labels).all()
    if not relaxed:
        assert chosen[:, 0].equal(index)
    assert (labels[chosen[:, 1:]] != labels[:, None]).all()
    for i, row in enumerate(chosen[:, 1:]):
        if (labels != labels[i]).sum() >= negatives:
            assert len(row.unique()) == negatives  # without repetition


@pytest.mark.parametrize("negatives", [7, 30, 45, 200])
def test_every_sample_of_another_class_is_equally_probable(negatives):
    labels = labels_of(60)
    times = 4000
    index = torch.full((times,), 3)
    chosen = Contrast(labels, negatives, relaxed=True)(index, sample_keys(1, 0, torch.arange(times)))
    candidates = int((labels != labels[3]).sum())
    counts = torch.bincount(chosen[:, 1:].flatten(), minlength=60)[labels != labels[3]].double()
    expected = times * negatives / candidates
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)
    positives = torch.bincount(chosen[:, 0], minlength=60)[labels == labels[3]].double()
    expected = times / len(positives)
    assert (positives - expected).abs().max() < 5 * math.sqrt(expected)  # the sample itself is one of them


@pytest.mark.parametrize("negatives", [5, 200])
def test_a_sample_draws_the_same_alone_and_in_a_batch_and_another_in_another_epoch(negatives):
    contrast = Contrast(labels_of(60), negatives, relaxed=True)
    index = torch.randperm(60)[:12]
    key = sample_keys(0, 0, index)
    together = contrast(index, key)
    assert together.equal(torch.cat([contrast(index[i : i + 1], key[i : i + 1]) for i in range(12)]))
    assert not together.equal(contrast(index, sample_keys(0, 1, index)))
