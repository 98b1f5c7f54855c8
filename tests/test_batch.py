"""Outputs and batches: what is done to one of their tensors is done to all."""

from __future__ import annotations

from dataclasses import fields

import torch

from kdstream.batch import Batch, Files, Outputs


def outputs():
    return Outputs(torch.randn(2, 5, requires_grad=True), {"block1": torch.randn(2, 3, 4, 4, requires_grad=True)})


def full_batch():
    return Batch(
        image=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        label=torch.tensor([1, 2]),
        index=torch.tensor([3, 4]),
        variants=torch.zeros(2, 6, 3, 4, 4, dtype=torch.uint8),
        quality=torch.tensor([-1, 50]),
        teacher=outputs(),
        rng_key=torch.tensor([5, 6]),
        qualities=torch.zeros(2, 6, dtype=torch.int64),
        selector=max,
        soft=torch.full((2, 4), 0.25),
        pixels=torch.zeros(2 * 3 * 4 * 4, dtype=torch.uint8),
        places=[(0, 4, 4, 0, 0, 4, 4), (-1, 4, 4, 0, 0, 4, 4)],
        files=Files(torch.zeros(9, dtype=torch.uint8), [(1, 0, 9)], ["sample 'a'"]),
    )


def test_outputs_map_reaches_logits_and_features():
    before = outputs()
    after = before.map(lambda tensor: 2 * tensor)
    assert after.logits.equal(2 * before.logits)
    assert after.features.keys() == before.features.keys()
    assert after.features["block1"].equal(2 * before.features["block1"])


def test_outputs_detach_cuts_every_gradient():
    made = outputs().map(lambda tensor: tensor * 1)
    assert made.logits.grad_fn is not None
    cut = made.detach()
    assert not cut.logits.requires_grad
    assert not cut.features["block1"].requires_grad
    assert cut.logits.equal(made.logits)


def test_no_features_are_shared_between_outputs():
    one, two = Outputs(torch.zeros(1, 2)), Outputs(torch.zeros(1, 2))
    one.features["x"] = torch.ones(1)
    assert two.features == {}


def test_a_batch_is_as_long_as_its_labels():
    assert len(full_batch()) == 2


def test_a_batch_tells_shapes_types_and_device_and_no_values():
    batch = Batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), torch.tensor([3, 4]))
    assert repr(batch) == "Batch(image=uint8[2,3,4,4], label=int64[2], index=int64[2], on cpu)"
    batch.teacher = outputs()
    assert ", teacher=Outputs(logits=float32[2," in repr(batch)


def test_the_target_is_the_label_or_the_shares_of_a_mixture():
    batch = full_batch()
    assert batch.target is batch.soft
    batch.soft = None
    assert batch.target is batch.label


def test_every_tensor_of_a_batch_moves():
    batch = full_batch()
    assert all(getattr(batch, field.name) is not None for field in fields(Batch)), "a new field: fill it in above"
    moved = batch.to("meta")
    for field in fields(Batch):
        value = getattr(moved, field.name)
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta", field.name
            assert value.shape == getattr(batch, field.name).shape
    assert moved.teacher.logits.device.type == "meta"
    assert moved.teacher.features["block1"].device.type == "meta"
    assert moved.selector is max
    assert moved.files.data.device.type == "cpu"
    assert batch.image.device.type == "cpu"


def test_what_a_batch_does_not_have_stays_away():
    small = Batch(torch.zeros(1, 3, 2, 2), torch.tensor([0]), torch.tensor([0])).to("meta")
    assert (small.variants, small.quality, small.teacher, small.rng_key, small.qualities) == (None,) * 5


def test_map_views_treats_every_version_as_the_image():
    batch = full_batch()
    batch.image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    batch.variants = torch.randint(0, 256, (2, 6, 3, 4, 4), dtype=torch.uint8)
    seen = []

    def crop(images):
        seen.append(tuple(images.shape))
        return images[..., 1:3, :2].float()

    after = batch.map_views(crop)
    assert seen == [(2, 3, 4, 4)] * 7
    assert after.image.equal(batch.image[..., 1:3, :2].float())
    assert after.variants.equal(batch.variants[..., 1:3, :2].float())
    assert after.label is batch.label
    batch.variants = None
    assert batch.map_views(crop).variants is None
