"""randaugment: every operation as timm has it, drawn as documented, the same for any slicing and all versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP

import kdstream as kd
from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.rng import sample_keys
from kdstream.stream.randaugment import OPERATIONS, apply, draw

MEAN = (0.5, 0.4, 0.3)
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def smooth(count: int = 1, height: int = 24, width: int = 30) -> torch.Tensor:
    """Images like photographs, uint8."""
    small = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1) * 255).byte()


@pytest.mark.parametrize("level", [0.0, 0.43, -0.9])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_are_timms(operation, level, monkeypatch):
    monkeypatch.setattr("timm.data.auto_augment._randomly_negate", lambda value: value if level >= 0 else -value)
    image = smooth()
    levels = LEVEL_TO_ARG[TIMM[operation]]
    args = levels(10 * abs(level), {}) if levels else ()
    fill = tuple(round(255 * one) for one in MEAN)
    pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    theirs = NAME_TO_OP[TIMM[operation]](pillow, *args, fillcolor=fill, resample=Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).float()
    ours = apply(operation, image / 255, torch.tensor([level]), torch.tensor(MEAN))[0] * 255
    difference = (ours - theirs).abs()
    # Pillow rounds to bytes in between, and its bicubic kernel is a little softer than torch's.
    assert difference.mean() < 1.5
    assert difference.quantile(0.99) < 12


@given(seed=st.integers(0, 50), cut=st.integers(0, 12))
@settings(max_examples=10, deadline=None)
def test_draws_and_views_depend_on_the_key_only(seed, cut):
    stage = kd.randaugment(n=3, m=8, std=2, p=0.8).bind({"mean": MEAN})
    index = torch.arange(12)
    batch = Batch(smooth(12, 9, 11), index % 3, index, rng_key=sample_keys(seed, 0, index))
    whole = next(stage(iter([batch]))).image
    parts = [batch.map_tensors(lambda one, at=at: one[at]) for at in (slice(0, cut), slice(cut, 12))]
    assert torch.cat([next(stage(iter([part]))).image for part in parts if len(part)]).equal(whole)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1


def test_versions_get_the_same_operations():
    index = torch.arange(16)
    batch = Batch(smooth(16, 8, 8), index, index, rng_key=sample_keys(0, 0, index))
    batch.variants = batch.image[:, None].repeat(1, 2, 1, 1, 1)
    made = next(kd.randaugment().bind({"mean": MEAN})(iter([batch])))
    assert made.variants[:, 0].equal(made.image)
    assert made.variants[:, 1].equal(made.image)
    assert not made.image.equal(batch.image / 255)
    assert batch.image.dtype == torch.uint8


def test_draws_have_their_distributions():
    chosen, level = draw(sample_keys(0, 0, torch.arange(6000)), 2, 6.0, 0.5, 0.5)
    assert abs(float((chosen < 0).float().mean()) - 0.5) < 0.02
    counts = torch.bincount(chosen[chosen >= 0], minlength=len(OPERATIONS)).double()
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 40  # chi-squared with 14 degrees of freedom
    assert abs(float(level.abs().mean()) - 0.6) < 0.002
    assert abs(float(level.abs().std()) - 0.05) < 0.002
    assert abs(float((level > 0).float().mean()) - 0.5) < 0.02
    assert draw(sample_keys(0, 0, torch.arange(100)), 1, 10.0, 3.0, 1.0)[1].abs().max() == 1


@pytest.mark.parametrize("call", [{"n": 0}, {"n": 1.5}, {"m": 11}, {"std": -1}, {"p": 2}, {"m": "nine"}])
def test_mistakes(call):
    (name,) = call
    with pytest.raises(UserError, match=rf"^randaugment: {name} is "):
        kd.randaugment(**call)
