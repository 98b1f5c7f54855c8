"""augment: views are drawn as documented, from the sample's key alone, alike for all versions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torchvision.transforms import v2

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.rng import sample_keys, uniform
from kdstream.stream.augment import augment, central, color_jitter, crop_flip, draw_box, random_flip


def batch_of(count, height=8, width=8, epoch=0):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    index = torch.arange(count)
    return Batch(image, index % 3, index, rng_key=sample_keys(0, epoch, index))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crop_flip_is_a_crop_of_the_padded_image_or_its_mirror(mode):
    batch = batch_of(200, 6, 9)
    view = next(crop_flip(pad=3, mode=mode)(iter([batch]))).image
    assert view.dtype == torch.uint8
    offsets, mirrored = set(), 0
    for image, cut in zip(batch.image, view, strict=True):
        padded = torch.nn.functional.pad(
            image[None].float(), (3, 3, 3, 3), mode="constant" if mode == "zeros" else "reflect"
        )[0].byte()
        found = [
            (dy, dx, flip)
            for dy in range(7)
            for dx in range(7)
            for flip in (False, True)
            if torch.equal(
                padded[:, dy : dy + 6, dx : dx + 9].flip(-1) if flip else padded[:, dy : dy + 6, dx : dx + 9], cut
            )
        ]
        assert found
        offsets.add(found[0][:2])
        mirrored += found[0][2]
    assert len(offsets) > 40
    assert 70 < mirrored < 130


def test_views_depend_on_the_key_only():
    batch = batch_of(10)
    view = next(crop_flip(iter([batch]))).image
    part = dataclasses.replace(
        batch_of(10), **{n: getattr(batch, n)[4:7] for n in ("image", "label", "index", "rng_key")}
    )
    assert next(crop_flip(iter([part]))).image.equal(view[4:7])
    assert not next(crop_flip(iter([batch_of(10, epoch=1)]))).image.equal(view)


@pytest.mark.parametrize("stage", [crop_flip, random_flip, color_jitter(strengths=(0.4, 0.4, 0.4, 0.1))])
def test_versions_get_the_image_s_view(stage):
    batch = batch_of(16)
    batch.variants = batch.image[:, None].repeat(1, 3, 1, 1, 1)
    view = next(stage(iter([batch])))
    for version in range(3):
        assert view.variants[:, version].equal(view.image)
    assert not view.image.equal(batch.image)


def test_boxes_have_torchvision_s_distribution():
    scale, ratio, height, width = (0.08, 1.0), (3 / 4, 4 / 3), 60, 100
    draws = uniform(sample_keys(0, 0, torch.arange(6000)), 40, "box").tolist()
    ours = torch.tensor([draw_box(height, width, d, scale, ratio) for d in draws]).double()
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(10, scale, ratio)
    image = torch.zeros(3, height, width)
    made = [transform.make_params([image]) for _ in range(6000)]
    theirs = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in made]).double()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    # Two-sample Kolmogorov-Smirnov distance of every coordinate and of the area; 0.035 is its 0.1 % point here.
    for a, b in [*zip(ours.T, theirs.T, strict=True), (ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])]:
        grid = torch.cat([a, b]).unique()
        distance = (
            torch.searchsorted(a.sort().values, grid) - torch.searchsorted(b.sort().values, grid)
        ).abs().max() / 6000
        assert distance < 0.036


def test_a_box_that_never_fits_is_central():
    never = [0.999, 0.999, 0.5, 0.5] * 10
    assert draw_box(10, 400, never, (0.9, 1.0), (3 / 4, 4 / 3)) == (0, 193, 10, 13)


def test_inception_and_eval_give_one_size():
    key = int(sample_keys(0, 0, torch.tensor([3])))
    for height, width in [(68, 56), (31, 200), (1, 1)]:
        sample = {"image": torch.full((3, height, width), 7, dtype=torch.uint8), "rng_key": key}
        sample["variants"] = sample["image"][None].repeat(2, 1, 1, 1)
        for chain in (augment("inception", 24), augment("eval", 24)):
            made = next(chain.split()[0](iter([dict(sample)])))
            assert made["image"].shape == (3, 24, 24)
            assert made["variants"].shape == (2, 3, 24, 24)
            assert made["image"].dtype == torch.uint8
            assert (made["image"] == 7).all()


def test_boxes_may_be_bicubic():
    key = int(sample_keys(0, 0, torch.tensor([3])))
    image = batch_of(1, 40, 40).image[0]
    for chain in ("inception", "eval"):
        made = [
            next(augment(chain, 24, interpolation=kind).split()[0](iter([{"image": image, "rng_key": key}])))["image"]
            for kind in ("bilinear", "bicubic")
        ]
        assert not made[0].equal(made[1])
    box = augment("inception", 24, interpolation="bicubic").stages[0]
    assert str(central(box)) == "center_box(size=24, interpolation='bicubic')"
    plain = augment("inception", 24).stages[0]
    assert (str(plain), str(central(plain))) == (
        "random_box(size=24, scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333))",
        "center_box(size=24)",
    ), "coding plans of before are found"


def test_color_jitter_follows_torchvision():
    batch = batch_of(4, 5, 5)
    torch.manual_seed(0)
    draws = uniform(batch.rng_key, 4, "color_jitter") * 2 - 1
    ours = next(color_jitter(strengths=(0.4, 0.3, 0.2, 0.1))(iter([batch]))).image
    for n in range(4):
        image = batch.image[n].float() / 255
        for adjust, draw, strength in [
            (v2.functional.adjust_brightness, draws[n, 0], 0.4),
            (v2.functional.adjust_contrast, draws[n, 1], 0.3),
            (v2.functional.adjust_saturation, draws[n, 2], 0.2),
        ]:
            image = adjust(image, 1 + float(draw) * strength)
        image = v2.functional.adjust_hue(image, float(draws[n, 3]) * 0.1)
        torch.testing.assert_close(ours[n], image, atol=3e-3, rtol=0)


def test_mistakes():
    for call in [
        lambda: augment("cifar", mode="wrap"),
        lambda: augment("cifar", pad=-1),
        lambda: augment("inception"),
        lambda: augment("inception", 0),
        lambda: augment("inception", 8, scale=(0, 1)),
        lambda: augment("inception", 8, jitter=(1, 1, 1, 0.9)),
        lambda: augment("eval", 8, crop=2),
        lambda: augment("inception", 8, interpolation="nearest"),
    ]:
        with pytest.raises(UserError, match="augment"):
            call()
