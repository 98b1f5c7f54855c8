"""teacher: its answer for the chosen version, whatever the chunks; what no selector may give."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_teacher import MEAN, STD, batch_of, run

from kdstream import jpeg
from kdstream.errors import UserError
from kdstream.stream.coded import coded, hkl
from kdstream.stream.normalize import standardise
from kdstream.stream.stage import Chain
from kdstream.stream.teacher import answer, teacher


def test_the_coded_teacher_answers_for_the_chosen_version(net):
    batch = batch_of()
    out = run(Chain() | coded("hkl", delta=25) | teacher, batch, net)
    versions = torch.cat([batch.image[:, None], jpeg.roundtrip(batch.image, [0, 25, 50, 75, 100])], 1)
    with torch.no_grad():
        logits = net(standardise(versions.flatten(0, 1), MEAN, STD)).logits.unflatten(0, (12, 6))
    pick = hkl(logits, batch.label)
    assert pick.unique().numel() > 2
    torch.testing.assert_close(out.teacher.logits, logits[torch.arange(12), pick])
    assert out.quality.tolist() == [[-1, 0, 25, 50, 75, 100][p] for p in pick]
    assert out.variants is None
    assert out.teacher.features["maps"].shape == (12, 16, 16, 16)
    assert not out.teacher.logits.requires_grad


def test_chunks_do_not_matter(net):
    batch = next(coded("hkl", delta=20)(iter([batch_of()])))
    whole = answer(batch, net, MEAN, STD)
    small = answer(batch, net, MEAN, STD, {"samples": 5})
    assert small.quality.equal(whole.quality)
    torch.testing.assert_close(small.teacher.logits, whole.teacher.logits)
    torch.testing.assert_close(small.teacher.features["maps"], whole.teacher.features["maps"])


def test_without_versions_the_images_themselves_are_seen_in_eval_mode_and_standardised(net):
    batch, before = batch_of(), net.train().state_dict()
    out = run(Chain() | teacher, batch, net)
    with torch.no_grad():
        torch.testing.assert_close(out.teacher.logits, net(standardise(batch.image, MEAN, STD)).logits)
    assert out.image is batch.image
    assert out.quality is None
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (None, "several versions of each image but no selector"),
        (lambda logits, label: label[:1], r"the selector returned torch\.int64 \(1,\); it returns int64 \[12\]"),
        (lambda logits, label: label.float(), r"the selector returned torch\.float32 \(12,\); it returns int64 \[12\]"),
    ],
)
def test_selectors_that_choose_nothing_are_refused(net, selector, message):
    batch = next(coded("hkl", delta=50)(iter([batch_of()])))
    with pytest.raises(UserError, match=message):
        answer(dataclasses.replace(batch, selector=selector), net, MEAN, STD)
