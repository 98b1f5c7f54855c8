"""vitkd: masks as a function of the sample, which tokens count, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from builders import batch, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.term import Task
from kdstream.objectives.vitkd import ViTKD, random_mask

TAPS = ("tokens.1", "tokens.2", "tokens.last")


def tokens(count: int, length: int, width: int, seed: int = 0, taps=TAPS) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    features = {tap: torch.randn(count, length, width, generator=generator) for tap in taps}
    return Outputs(torch.zeros(count, 10), features)


def ready(ours=(16, 6), theirs=(16, 8), student=None, teacher=None, **settings_) -> ViTKD:
    torch.manual_seed(0)
    term = ViTKD(**settings_)
    term.setup(Task(10, 100, 1, tokens(2, *ours), tokens(2, *theirs), student, teacher))
    return term


# -------------------------------------------------------------------------------------------------- masks


@given(seeds, st.integers(1, 60), st.data())
@settings(max_examples=30, deadline=None)
def test_masks_have_their_size_and_belong_to_the_sample(seed, length, data):
    masked = data.draw(st.integers(0, length))
    key = torch.randint(-(2**62), 2**62, (9,), generator=torch.Generator().manual_seed(seed))
    mask = random_mask(key, length, masked)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [masked] * 9
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(random_mask(key[order], length, masked), mask[order])
    assert torch.equal(random_mask(key[4:], length, masked), mask[4:])


def test_masks_are_spread_evenly_and_differ_from_key_to_key():
    share = random_mask(torch.arange(20_000), 16, 8).float()
    assert (share.mean(0) - 0.5).abs().max() < 0.02  # 5.6 standard deviations
    pairs = share.T @ share / len(share)  # two tokens are both masked with probability 8/16 * 7/15
    off = pairs[~torch.eye(16, dtype=torch.bool)]
    assert (off - 8 / 16 * 7 / 15).abs().max() < 0.02
    assert len(random_mask(torch.arange(200), 49, 24).unique(dim=0)) == 200


def test_the_key_draws_and_the_index_where_there_is_none():
    term = ready()
    first, second = (term.mask(batch(5, key=torch.arange(5) + shift)) for shift in (0, 100))
    assert torch.equal(term.mask(batch(5)), first)
    assert not torch.equal(first, second)
    assert first.shape == (5, 16)
    for ratio, count in ((0.5, 8), (0.75, 12), (0.3, 5), (1, 16)):  # 16 - int(16 * 0.7) = 5
        assert ready(mask_ratio=ratio).mask(batch(3)).sum(1).tolist() == [count] * 3


# -------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(("ours", "theirs"), [(17, 18), (16, 17), (18, 16)])
def test_tokens_before_the_patches_do_not_count(ours, theirs):
    term = ready((ours, 6), (theirs, 8))
    student, teacher = tokens(3, ours, 6), tokens(3, theirs, 8, seed=1)
    value = term(student, teacher, batch(3))
    cut = [Outputs(side.logits, {tap: v[:, -16:] for tap, v in side.features.items()}) for side in (student, teacher)]
    torch.testing.assert_close(term(*cut, batch(3)), value)


def test_the_network_says_how_many_tokens_come_first():
    # 20 = 16 patches + 4 registers: known from timm's attribute alone.
    vit = SimpleNamespace(module=SimpleNamespace(num_prefix_tokens=4))
    assert ready((20, 6), (20, 8), vit, vit).patches == 16
    with pytest.raises(UserError, match=r"tap 'tokens.1' of the student \[2, 20, 6\] is not \[N,L,D\] with a square"):
        ready((20, 6), (20, 8))


def test_a_masked_token_of_the_student_has_no_say_and_a_clear_one_of_the_teacher_neither():
    term = ready(alpha=0)
    student, teacher, drawn = tokens(3, 16, 6), tokens(3, 16, 8, seed=1), batch(3)
    mask = term.mask(drawn)
    last = student.features["tokens.last"].requires_grad_()
    target = teacher.features["tokens.last"].requires_grad_()
    with torch.no_grad():
        term.mask_token.normal_()
    term(student, teacher, drawn).backward()
    assert (last.grad.abs().sum(2) == 0)[mask].all()
    assert (last.grad.abs().sum(2) > 0)[~mask].any()
    assert torch.equal(target.grad.abs().sum(2) > 0, mask)


def test_mimicking_is_zero_at_equality_and_alignment_exists_where_widths_differ():
    same = ready((16, 8), (16, 8))
    side = tokens(4, 16, 8)
    assert same.mimic(side, side).item() == 0
    assert {name.split(".")[0] for name, _ in same.named_parameters()} == {"mask_token", "generation"}
    moved = Outputs(side.logits, {tap: value + 1 for tap, value in side.features.items()})
    assert same.mimic(moved, side).item() == pytest.approx(2 * 16 * 8, rel=1e-5)
    names = {".".join(name.split(".")[:2]) for name, _ in ready().named_parameters()}
    assert names >= {"align_shallow.0", "align_shallow.1", "align_deep.weight"}


@pytest.mark.parametrize("count", [2, 1])
def test_small_batches_train_every_parameter(count):
    term = ready()
    value = term(tokens(count, 16, 6), tokens(count, 16, 8, seed=1), batch(count))
    value.backward()
    assert torch.isfinite(value)
    assert all(parameter.grad is not None for parameter in term.parameters())


@pytest.mark.parametrize(
    ("off", "left"), [("alpha", {"align_deep", "mask_token", "generation"}), ("beta", {"align_shallow"})]
)
def test_a_part_of_weight_0_is_left_out_and_not_trained(off, left):
    term = ready(**{off: 0})
    value = term(tokens(2, 16, 6), tokens(2, 16, 8, seed=1), batch(2))
    value.backward()
    assert {name.split(".")[0] for name, p in term.named_parameters() if p.requires_grad} == left
    assert all((p.grad is not None) == p.requires_grad for p in term.parameters())


def test_the_loss_of_a_batch_is_the_mean_over_its_samples():
    """So that slices on several processes add up to one process's loss, masks included."""
    term = ready()
    student, teacher, whole = tokens(6, 16, 6), tokens(6, 16, 8, seed=1), batch(6, key=torch.arange(6) * 7919)
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        parts.append(
            term(
                student.map(lambda t, rows=rows: t[rows]),
                teacher.map(lambda t, rows=rows: t[rows]),
                whole.map_tensors(lambda t, rows=rows: t[rows]),
            )
        )
    torch.testing.assert_close(term(student, teacher, whole), torch.stack(parts).mean())


def test_half_precision_and_autocast_stay_finite():
    term = ready()
    student, teacher = tokens(2, 16, 6).map(lambda t: 200 * t), tokens(2, 16, 8, seed=1).map(lambda t: 200 * t)
    with torch.autocast("cpu", torch.bfloat16):
        value = term(student.map(torch.Tensor.half), teacher.map(torch.Tensor.half), batch(2))
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


def test_generation_sees_the_neighbours_on_the_grid():
    """Row-major: token 5 of a 4 x 4 grid has its eight neighbours around it, and two convolutions see two steps."""
    term = ready((16, 8), (16, 8), alpha=0)
    with torch.no_grad():
        for conv in (term.generation.conv1, term.generation.conv2):
            nn.init.constant_(conv.weight, 0.01)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 0] = True
    side = Outputs(torch.zeros(1, 10), {tap: torch.ones(1, 16, 8) for tap in TAPS})
    last = side.features["tokens.last"].requires_grad_()
    term.generate(side, side.detach(), mask).backward()
    reached = (last.grad.abs().sum(2) > 0).view(4, 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:3, :3] = True
    expected[0, 0] = False  # masked
    assert torch.equal(reached, expected)


# -------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"alpha": 0, "beta": 0}, "vitkd: alpha and beta are both 0"),
        ({"alpha": -1}, "vitkd: alpha must be a finite number >= 0, got -1"),
        ({"beta": "3e-6"}, "vitkd: beta must be a finite number >= 0, got the text '3e-6'"),
        ({"mask_ratio": 0}, "vitkd: mask_ratio must be a finite number > 0 and at most 1, got 0"),
        ({"mask_ratio": 1.5}, "vitkd: mask_ratio must be a finite number > 0 and at most 1, got 1.5"),
        ({"taps": ["tokens.last"]}, "vitkd: taps needs two names or more"),
        ({"teacher_taps": ["tokens.1"]}, "vitkd: taps and teacher_taps must pair up, got 3 and 1 names"),
    ],
)
def test_bad_settings(settings_, message):
    with pytest.raises(UserError) as caught:
        ViTKD(**settings_)
    assert str(caught.value).startswith(message)


def test_other_shapes_are_refused():
    with pytest.raises(
        UserError, match=r"the teacher \[2, 64, 8\] has 64 patches, tap 'tokens.1' of the student \[2, 16"
    ):
        ready((16, 6), (64, 8))
    maps = Outputs(torch.zeros(2, 10), {tap: torch.zeros(2, 8, 4, 4) for tap in TAPS})
    with pytest.raises(UserError, match="it is for vision transformers and square images"):
        ViTKD().setup(Task(10, 100, 1, maps, maps))
    with pytest.raises(UserError, match="vitkd: needs a teacher, but the job has none"):
        ViTKD().setup(Task(10, 100, 1, tokens(2, 16, 8)))
