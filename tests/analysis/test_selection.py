"""The choice among the versions of one image, beside what the teacher answers to each."""

from __future__ import annotations

import math

import pytest
import torch

from kdstream import jpeg
from kdstream.analysis.selection import page, selection


def detail(image):
    """Class 1 as far as neighbouring pixels differ."""
    image = image.float()
    rough = (image[..., 1:] - image[..., :-1]).abs().mean((1, 2, 3))
    return torch.stack([torch.zeros_like(rough), (rough - 60) / 20], 1)


def test_the_right_version_of_largest_divergence_is_chosen():
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    versions = selection(detail, image, 1, delta=25)
    assert [one.quality for one in versions] == [-1, 0, 25, 50, 75, 100]
    assert versions[0].kl == 0
    answers = detail(torch.cat([image[None], jpeg.roundtrip(image[None], [0, 25, 50, 75, 100])[0]])).softmax(1)
    assert [one.probability for one in versions] == pytest.approx(answers[:, 1].tolist(), rel=1e-5)
    assert [one.correct for one in versions] == (answers[:, 1] > 0.5).tolist()
    (chosen,) = (one for one in versions if one.chosen)
    assert chosen.kl == max(one.kl for one in versions if one.correct)
    assert not versions[1].correct  # at quality 0 nothing is left of the noise
    p = answers[2]
    assert versions[2].entropy == pytest.approx(-(p * p.log()).sum().item(), rel=1e-4)
    assert versions[2].kl == pytest.approx((answers[0] * (answers[0] / p).log()).sum().item(), rel=1e-3)
    assert all(one.entropy <= math.log(2) + 1e-9 for one in versions)
    shown = page("net", [("img", 1, versions)], ["smooth", "rough"])
    assert [name for name, _ in shown.tables[0].rows] == ["original", "0", "25", "50", "75", "100"]
    assert len(shown.charts) == 1
