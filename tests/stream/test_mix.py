"""mixup and cutmix: shares and boxes as drawn, labels with the pixels' shares, the same mixtures for any slicing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import kdstream as kd
from kdstream.batch import Batch, Outputs
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.rng import sample_keys
from kdstream.stream.mix import partners, shares
from kdstream.stream.plan import Plan
from kdstream.stream.stream import Stream

CLASSES = 5
STAGES = {"mixup": kd.mixup(0.8), "cutmix": kd.cutmix(1.0, p=0.9), "mix": kd.mix()}


def batch_of(count: int, seed: int = 0, side: int = 6) -> Batch:
    """Images of one colour each, 1 for class 0, 2 for class 1, ..., so that pixels tell whose they are."""
    index = torch.arange(count)
    label = index % CLASSES
    image = (label + 1).to(torch.uint8)[:, None, None, None].expand(-1, 3, side, side + 2).clone()
    return Batch(image, label, index, rng_key=sample_keys(seed, 0, index))


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    return batch.map_tensors(lambda tensor: tensor[start:stop])


def run(stage, batch: Batch) -> Batch:
    return next(stage.bind({"num_classes": CLASSES})(iter([batch])))


@pytest.mark.parametrize("name", STAGES)
@given(count=st.integers(1, 9), seed=st.integers(0, 99))
def test_labels_have_the_pixels_shares(name, count, seed):
    batch = batch_of(count, seed)
    made = run(STAGES[name], batch)
    image = made.image.double() * (1 if made.image.dtype == torch.uint8 else 255)
    torch.testing.assert_close(made.soft.sum(1), torch.ones(count))
    assert (made.soft >= 0).all()
    told = (made.soft.double() * torch.arange(1, CLASSES + 1)).sum(1)
    torch.testing.assert_close(image.mean(dim=(1, 2, 3)), told, rtol=1e-5, atol=1e-4)
    assert (made.soft.gather(1, made.label[:, None])[:, 0] == made.soft.max(1).values).all()
    assert made.target is made.soft
    if count % 2:
        assert made.soft[-1].argmax() == batch.label[-1]
        assert made.soft[-1].max() == 1


@given(size=st.integers(3, 60), batch_size=st.integers(2, 20), world=st.integers(1, 4), seed=st.integers(0, 9))
def test_mixtures_do_not_depend_on_the_number_of_processes(size, batch_size, world, seed):
    plan = Plan(size, batch_size, seed, group=2)
    every = batch_of(size, seed)
    for step in range(plan.steps):
        joined = plan.batch(0, step)
        whole = run(STAGES["mix"], every.map_tensors(lambda one, at=joined: one[at]))
        slices = [plan.batch(0, step, rank, world) for rank in range(world)]
        parts = [run(STAGES["mix"], every.map_tensors(lambda one, at=at: one[at])) for at in slices if len(at)]
        for name in ("image", "label", "soft", "index"):
            assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 3.0])
def test_lam_is_of_beta(alpha):
    key = sample_keys(0, 0, torch.arange(8000))
    lam, inside = shares(key, 8, 8, "mixup", alpha, 0.0, 1.0, 0.0)
    assert lam[::2].equal(lam[1::2]), "both of a pair have the same"
    assert stats.kstest(lam[::2].double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert not inside.any()


def test_boxes_are_of_the_area_that_lam_says():
    key = sample_keys(0, 0, torch.arange(4000))
    lam, inside = shares(key, 40, 60, "cutmix", 0.0, 1.0, 1.0, 1.0)
    torch.testing.assert_close(lam, 1 - inside.float().mean(dim=(1, 2, 3)))
    box = inside[0, 0]
    rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
    assert box.sum() == len(rows) * len(columns) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    # Without the border, the mean of 1 - lam is 1/2; the border takes a share of every box.
    assert 0.25 < float(inside.float().mean()) < 0.5


def test_p_and_switch_are_shares_of_the_pairs():
    key = sample_keys(0, 0, torch.arange(8000))
    lam, inside = shares(key, 32, 32, "mix", 0.8, 1.0, 0.6, 0.25)
    boxes = inside.flatten(1).any(1)
    assert abs(float((lam < 1).float().mean()) - 0.6) < 0.03
    assert abs(float(boxes.float().mean()) - 0.15) < 0.03


def test_versions_are_mixed_like_their_images():
    batch = batch_of(8)
    batch.variants = torch.stack([batch.image, batch.image + 100], dim=1)
    for stage in STAGES.values():
        made = run(stage, batch)
        assert made.variants[:, 0].equal(made.image)
        assert not made.image.float().equal(batch.image.float())
        scale = 1 if made.image.dtype == torch.uint8 else 255
        torch.testing.assert_close(made.variants[:, 1].float() * scale, made.image.float() * scale + 100)


def test_a_second_stage_mixes_shares():
    made = run(kd.cutmix(), run(kd.mixup(), batch_of(8)))
    torch.testing.assert_close(made.soft.sum(1), torch.ones(8))
    other = run(kd.mixup(), batch_of(8))
    assert not made.soft.equal(other.soft)


def test_label_losses_learn_the_shares():
    """A loss that is linear in the labels is that of both labels, by their shares."""
    torch.manual_seed(0)
    batch = batch_of(6)
    lam, _ = shares(batch.rng_key, 6, 8, "mixup", 1.0, 0.0, 1.0, 0.0)
    mixed = run(kd.mixup(), batch)
    student = Outputs(torch.randn(6, CLASSES))
    for name in ("ce", "label_smoothing", "confidence_penalty"):
        (summand,) = parse_loss(name)
        value = summand.term(student, None, mixed)
        each = [
            weight * summand.term(Outputs(student.logits[n : n + 1]), None, part_of(one, n, n + 1))
            for n in range(6)
            for weight, one in ((lam[n], batch), (1 - lam[n], batch.map_tensors(lambda t: t[partners(6)])))
        ]
        torch.testing.assert_close(value, sum(each) / 6)


def test_the_stream_keeps_pairs_together(digits):
    whole_set = open_shards(digits / "train")

    def epoch(**place):
        chain = "decode | augment(cifar, pad=1) | mix(mixup=0.8, cutmix=1)"
        return list(Stream(whole_set, 46, **place) | chain)

    whole, *parts = epoch(), epoch(rank=0, world=2), epoch(rank=1, world=2)
    assert any(len(part) % 2 == 0 and len(one) // 2 % 2 for one, part in zip(whole, parts[0], strict=True))
    for one, *slices in zip(whole, *parts, strict=True):
        for name in ("index", "label", "soft", "image"):
            assert torch.cat([getattr(part, name) for part in slices]).equal(getattr(one, name))
    few = next(size for size in range(6, 60) if Plan(len(whole_set), size, group=2).smallest_slice(3) == 0)
    with pytest.raises(UserError, match=r"too few pairs for 3 processes: raise batch_size to 12"):
        Stream(whole_set, few, rank=0, world=3) | "decode | mixup"


answered = replace(batch_of(2), teacher=Outputs(torch.zeros(2, CLASSES)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd.mixup(0), r"^mixup: alpha is 0; it is a number from 0.001 to 1000$"),
        (lambda: kd.mixup(True), "mixup: alpha is True"),
        (lambda: kd.cutmix(1, p=1.5), r"^cutmix: p is 1.5; it is a number from 0 to 1$"),
        (lambda: kd.mix(mixup=0), "mix: mixup is 0"),
        (lambda: kd.mix(switch="x"), "mix: switch is 'x'"),
        (lambda: run(kd.mix(), answered), r"^mix must come before teacher"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UserError, match=message):
        call()
