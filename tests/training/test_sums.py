"""Sums over an epoch: the same means however the samples fall into batches, processes and resumptions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import batch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from kdstream.batch import Outputs
from kdstream.training.sums import Sums


def epoch() -> tuple[torch.Tensor, ...]:
    """Labels, the student's and the teacher's logits, qualities and two terms, of 12 samples."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(5, (12,), generator=draw)
    ours, theirs = (3 * torch.randn(12, 5, generator=draw) for _ in range(2))
    return label, ours, theirs, torch.randint(-1, 101, (12,), generator=draw), torch.rand(12, 2, generator=draw)


def added(sums: Sums, part: slice) -> Sums:
    label, ours, theirs, quality, terms = (value[part] for value in epoch())
    given_ = batch(label=label, teacher=Outputs(theirs))
    given_.quality = quality
    sums.add(given_, terms.sum(1).mean(), terms.mean(0), ours)
    return sums


@given(cuts=st.lists(st.integers(1, 11), max_size=4, unique=True).map(sorted), world=st.integers(1, 3))
def test_means_do_not_depend_on_batches_processes_or_resumptions(cuts, world):
    processes = [Sums(["ce", "kd"], torch.device("cpu"), temperature=4) for _ in range(world)]
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, 12], strict=True)):
        process = number % world
        added(processes[process], slice(start, stop))
        again = Sums(["ce", "kd"], torch.device("cpu"), temperature=4)
        again.add_state(processes[process].state_dict())
        processes[process] = again
    whole = Sums(["ce", "kd"], torch.device("cpu"), temperature=4)
    for process in processes:
        whole.add_state(process.state_dict())
    found = whole.summary(lambda tensor: tensor)
    label, ours, theirs, quality, terms = epoch()
    p = theirs.double().softmax(1)
    entropy, truth = -(p * p.log()).sum(1), p.gather(1, label[:, None])[:, 0]
    assert found.top1 == whole.top1() == pytest.approx(100 * (ours.argmax(1) == label).double().mean().item())
    assert found.loss == pytest.approx(terms.sum(1).mean().item(), rel=1e-5)
    assert found.terms == pytest.approx(dict(zip(("ce", "kd"), terms.mean(0).tolist(), strict=True)), rel=1e-5)
    for pair, values in ((found.entropy, entropy), (found.gt_probability, truth)):
        assert pair == pytest.approx((values.mean().item(), values.std(correction=0).item()), rel=1e-5)
    log_q, target = ours.double().log_softmax(1), (theirs.double() / 4).softmax(1)
    assert found.student == pytest.approx(
        {
            "entropy": -(log_q.exp() * log_q).sum(1).mean().item(),
            "divergence": (target * (target.log() - log_q)).sum(1).mean().item(),
            "pearson": np.mean([pearsonr(*pair)[0] for pair in zip(ours, theirs, strict=True)]),
            "spearman": np.mean([spearmanr(*pair)[0] for pair in zip(ours, theirs, strict=True)]),
        },
        rel=1e-5,
    )
    assert found.qualities == {str(q): (quality == q).sum().item() for q in sorted(set(quality.tolist()))}


def test_without_teacher_and_samples_nothing_is_made_up():
    sums = Sums([], torch.device("cpu"))
    assert sums.top1() == 0
    sums.add(batch(label=torch.tensor([1, 0])), torch.tensor(0.5), torch.zeros(0), torch.eye(2))
    found = sums.summary(lambda tensor: tensor)
    assert (found.top1, found.loss, found.terms, found.qualities) == (0, 0.5, {}, {})
    assert (found.entropy, found.gt_probability) == ((0, 0), (0, 0))
    assert math.copysign(1, found.entropy[1]) == 1
    p = torch.eye(2)[0].softmax(0)
    assert found.student == pytest.approx({"entropy": -(p * p.log()).sum().item()})


def test_a_checkpoint_without_the_students_answers_is_continued_with_the_rest():
    sums = Sums(["ce", "kd"], torch.device("cpu"))
    state = added(Sums(["ce", "kd"], torch.device("cpu")), slice(0, 5)).state_dict()
    sums.add_state({name: state[name] for name in ("values", "qualities")})
    assert sums.summary(lambda tensor: tensor).student == {}
    rest = added(sums, slice(5, 12)).summary(lambda tensor: tensor).student
    assert rest == added(Sums(["ce", "kd"], torch.device("cpu")), slice(5, 12)).summary(lambda tensor: tensor).student


def test_a_teacher_of_other_classes_is_not_compared():
    sums = Sums([], torch.device("cpu"))
    taught = batch(label=torch.tensor([1, 0]), teacher=Outputs(torch.eye(3)[:2]))
    sums.add(taught, torch.tensor(0.5), torch.zeros(0), torch.eye(2))
    found = sums.summary(lambda tensor: tensor)
    assert found.entropy[0] > 0
    assert set(found.student) == {"entropy"}
