"""Accuracy by corruption and severity; what an image becomes does not depend on its batch."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from builders import batch

from kdstream.analysis.robustness import corrupting, library, page, robustness, splits_of
from kdstream.errors import UserError


def darker(image, corruption, severity):
    """Takes 20 levels a severity off, and some noise."""
    return np.clip(image - 20.0 * severity - np.random.rand(), 0, 255)


def given(side=32):
    image = torch.tensor([40, 110, 200], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 3, side, side)
    return [batch(image=image, label=torch.zeros(3, dtype=torch.int64))]


def lit(image):
    """Class 0 where there is light."""
    mean = image.float().mean((1, 2, 3))
    return torch.stack([mean, torch.full_like(mean, 25)], 1)


def test_means_are_over_severities_and_changes_from_clean():
    found = robustness(
        ["lit"], [lit], given, lambda name, n: corrupting(given(), name, n, darker), [("fog", (1, 5)), ("snow", (1,))]
    )
    assert found.clean == [100]
    assert found.top1["fog"] == {1: [pytest.approx(200 / 3)], 5: [pytest.approx(100 / 3)]}
    assert found.mean("fog") == [pytest.approx(50)]
    assert found.overall() == [pytest.approx((50 + 200 / 3) / 2)]
    assert found.as_dict()["mean"]["fog"]["lit"]["change"] == pytest.approx(-50)
    assert page(found, "3 images", "made").tables[1].rows[0][1][0] == "-50.00"


def test_an_image_is_corrupted_alike_in_any_batch_and_numpys_generator_goes_on():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    (whole,) = corrupting(given(), "fog", 2, darker)
    assert np.random.rand() == expected
    parts = [one.map_tensors(lambda t, i=i: t[i : i + 1]) for one in given() for i in range(3)]
    assert torch.cat([one.image for one in corrupting(parts, "fog", 2, darker)]).equal(whole.image)
    assert whole.image.dtype == torch.uint8


def test_images_that_are_too_small_and_a_missing_library_are_told(monkeypatch):
    with pytest.raises(UserError, match="images of 16 x 16 pixels"):
        next(corrupting(given(16), "fog", 1, darker))
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match=r"kdstream\[robustness\]"):
        library()


def test_the_library_corrupts():
    pytest.importorskip("imagecorruptions")
    image = np.full((32, 32, 3), 90, np.uint8)
    assert library()(image, "brightness", 5).mean() > 150


def test_splits_of_a_corrupted_set():
    assert splits_of(["fog_3", "fog_1", "glass_blur_5", "train", "fog_9"]) == {"fog": [1, 3], "glass_blur": [5]}
