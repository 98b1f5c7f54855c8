"""Attacks stay within their bounds and fool what they are made for; a network that sees nothing is not fooled."""

from __future__ import annotations

import pytest
import torch
from builders import batch

from kdstream.analysis.transfer import page, pgd, transferability


def bright(image):
    """Two classes: dark and bright, by the mean pixel."""
    mean = image.float().mean((1, 2, 3))
    return torch.stack([0.5 - mean, mean - 0.5], 1) * 10


def blind(image):
    """Always class 1."""
    return torch.tensor([[0.0, 1.0]]).repeat(len(image), 1) + 0 * image.sum()


def test_the_attack_climbs_within_its_bounds():
    image = torch.tensor([0.51, 0.99, 0.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    label = torch.tensor([1, 1, 0])
    attacked = pgd(bright, image, label, 0.031, 0.003, 20)
    # Against the right class: darker, darker, brighter; 20 steps of 0.003 reach the bound.
    assert attacked[:, 0, 0, 0].tolist() == pytest.approx([0.479, 0.959, 0.031])
    assert pgd(bright, image, label, 0.031, 0.003, 2)[0, 0, 0, 0].item() == pytest.approx(0.504)
    assert pgd(bright, image, 1 - label, 0.031, 0.003, 20)[1:, 0, 0, 0].tolist() == [1, 0]


def test_shares_are_of_what_both_classify_correctly():
    image = torch.tensor([0.51, 0.9, 0.2]).view(3, 1, 1, 1).expand(3, 3, 2, 2).contiguous()
    told = []
    given = [batch(image=image, label=torch.tensor([1, 1, 0]))]
    found = transferability(["bright", "blind"], [bright, blind], given, advance=told.append)
    assert told == [3]
    assert found.clean == pytest.approx([100, 200 / 3])
    assert found.images == [[3, 2], [2, 2]]
    # Of the three that bright knows the one near its boundary is fooled; blind's attack changes no pixel.
    assert found.shares == [[pytest.approx(100 / 3), 0], [0, 0]]
    ((_, first), _) = page(found, "3 images", "PGD").tables[0].rows
    assert first == ["33.33", "0.00", "0.00", "100.00"]
