"""Answers: what one pass tells of a network, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from kdstream.analysis.answers import agreement, look_at
from kdstream.batch import Batch
from kdstream.errors import UserError

CLASSES = tuple("abcde")


def batches(count, size):
    torch.manual_seed(0)
    images, labels = torch.randn(count, 3, 2, 2), torch.arange(count) % 5
    return (
        [
            Batch(image=images[i : i + size], label=labels[i : i + size], index=torch.arange(i, min(i + size, count)))
            for i in range(0, count, size)
        ],
        images,
        labels.numpy(),
    )


def network(seed):
    torch.manual_seed(seed)
    weights = torch.randn(12, 5)
    return lambda images: 3 * images.flatten(1) @ weights


@pytest.mark.parametrize("size", [7, 40])
def test_all_numbers_equal_an_independent_computation(size):
    parts, images, labels = batches(40, size)
    done = []
    found = look_at(network(1), parts, CLASSES, "cpu", network(2), done.append)
    one, other = (network(seed)(images).double().numpy() for seed in (1, 2))
    p = np.exp(one) / np.exp(one).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    truth = p[np.arange(40), labels]
    expected = {
        "samples": 40,
        "top1": 100 * (one.argmax(1) == labels).mean(),
        "loss": -np.log(truth).mean(),
        "entropy": entropy.mean(),
        "entropy_std": entropy.std(ddof=1),
        "probability": truth.mean(),
        "probability_std": truth.std(ddof=1),
        "covariance": np.abs(np.cov(p.T)).mean(),
        "pearson": np.mean([stats.pearsonr(a, b)[0] for a, b in zip(one, other, strict=True)]),
        "spearman": np.mean([stats.spearmanr(a, b)[0] for a, b in zip(one, other, strict=True)]),
        "logit_difference": np.abs(one - other).mean(),
    }
    assert sum(done) == 40
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["per_class"] == pytest.approx([100 * (one.argmax(1) == labels)[labels == c].mean() for c in range(5)])
    assert sum(found["entropy_histogram"]) == 40
    standard = (one - one.mean(1, keepdims=True)) / one.std(1, keepdims=True)
    counts = np.histogram(standard, bins=50, range=(-5, 5))[0] / standard.size
    assert np.abs(np.array(found["logit_histogram"]) - counts).sum() < 0.03  # a value may lie at an edge
    assert "pearson" not in look_at(network(1), parts, CLASSES, "cpu")


def test_equal_logits_correlate_with_none():
    rows = agreement(torch.zeros(1, 5), torch.arange(5.0)[None])
    assert rows[0, 0] == 0
    assert rows[0, 2] == 2


def test_answers_that_are_not_finite_and_too_few_images_are_told():
    parts, *_ = batches(10, 5)
    with pytest.raises(UserError, match="not all finite"):
        look_at(lambda images: network(1)(images) / 0, parts, CLASSES, "cpu")
    with pytest.raises(UserError, match="two images or more"):
        look_at(network(1), batches(1, 1)[0], CLASSES, "cpu")
