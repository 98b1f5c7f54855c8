"""coded: which version is chosen, what the teacher sees of it, and that the order of stages does not matter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_teacher import MEAN, STD, batch_of, run

from kdstream import jpeg
from kdstream.errors import UserError
from kdstream.rng import sample_keys
from kdstream.stream.augment import augment, crop_flip
from kdstream.stream.coded import coded, fixed, hkl, random
from kdstream.stream.normalize import standardise
from kdstream.stream.stage import Chain
from kdstream.stream.teacher import teacher


def test_hkl_by_hand():
    log = torch.tensor
    logits = torch.stack(
        [
            log([[4.0, 0, 0], [1.0, 0, 0], [0.5, 0, 0], [0.0, 1, 0]]),  # flattest correct version
            log([[4.0, 0, 0], [0.0, 1, 0], [0.0, 2, 0], [0.0, 0, 3]]),  # only the original is correct
            log([[0.0, 4, 0], [0.0, 1, 0], [0.0, 2, 0], [0.0, 0, 3]]),  # none is
            log([[0.0, 4, 0], [3.0, 0, 0], [2.0, 0, 0], [2.0, 0, 0]]),  # the original is wrong, some version right
            log([[4.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]]),  # equals: the first
        ]
    )
    assert hkl(logits, torch.zeros(5, dtype=torch.int64)).tolist() == [2, 0, 0, 1, 1]


def test_fixed_and_random_make_one_version_and_skip_the_original(net):
    batch = batch_of()
    out = run(Chain() | coded(fixed(30)) | teacher, batch, net)
    assert net.seen == 12
    assert out.quality.tolist() == [30] * 12
    expected = net(standardise(jpeg.roundtrip(batch.image, [30])[:, 0], MEAN, STD)).logits
    torch.testing.assert_close(out.teacher.logits, expected)
    drawn = run(Chain() | coded(random(50, 60)) | teacher, batch, net)
    assert set(drawn.quality.tolist()) <= set(range(50, 61))
    assert len(set(drawn.quality.tolist())) > 3
    expected = net(standardise(jpeg.roundtrip(batch.image, drawn.quality[:, None])[:, 0], MEAN, STD)).logits
    torch.testing.assert_close(drawn.teacher.logits, expected)


def test_own_selector(net):
    def third(logits, label):
        assert logits.shape == (12, 6, 4)
        assert label.shape == (12,)
        return torch.full_like(label, 3)

    assert run(Chain() | coded(third, delta=25) | teacher, batch_of(), net).quality.tolist() == [50] * 12
    with pytest.raises(UserError, match="selector returned"):
        run(Chain() | coded(lambda logits, label: logits.argmax(-1)) | teacher, batch_of(), net)


def test_both_orders(net):
    batch = batch_of()
    view_then_code = run(Chain() | crop_flip | coded(fixed(20)) | teacher, batch, net)
    code_then_view = run(Chain() | coded(fixed(20)) | crop_flip | teacher, batch, net)
    assert view_then_code.image.equal(code_then_view.image)  # the student's view is the same one
    view = next(crop_flip(iter([batch]))).image
    a = net(standardise(jpeg.roundtrip(view, [20])[:, 0], MEAN, STD)).logits
    compressed = dataclasses.replace(batch, image=jpeg.roundtrip(batch.image, [20])[:, 0])
    b = net(standardise(next(crop_flip(iter([compressed]))).image, MEAN, STD)).logits
    torch.testing.assert_close(view_then_code.teacher.logits, a)
    torch.testing.assert_close(code_then_view.teacher.logits, b)
    assert not torch.allclose(a, b)


def test_before_a_host_stage_versions_are_made_from_the_raw_photograph():
    chain = Chain() | coded("hkl", delta=50) | augment("inception", 12)
    host, device = chain.split()
    image = torch.randint(0, 256, (3, 40, 31), dtype=torch.uint8)
    key = int(sample_keys(0, 0, torch.tensor([9])))
    made = next(host(iter([{"image": image, "rng_key": key}])))
    assert made["variants"].shape == (3, 3, 12, 12)
    assert made["qualities"].tolist() == [0, 50, 100]
    alone = next(
        augment("inception", 12).split()[0](iter([{"image": jpeg.roundtrip(image[None], [50])[0, 0], "rng_key": key}]))
    )
    assert made["variants"][1].equal(alone["image"])
    assert next(device(iter([batch_of()]))).selector is hkl


def test_float_views_are_compressed_as_their_rounded_pixels(net):
    batch = batch_of()
    floats = dataclasses.replace(batch, image=batch.image / 255)
    a = run(Chain() | coded("hkl", delta=50) | teacher, batch, net)
    b = run(Chain() | coded("hkl", delta=50) | teacher, floats, net)
    assert a.quality.equal(b.quality)
    torch.testing.assert_close(a.teacher.logits, b.teacher.logits)
