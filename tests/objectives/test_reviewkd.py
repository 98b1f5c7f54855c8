"""reviewkd: the context loss, which tap reaches which stage, sizes, warm-up, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, maps, outputs, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.reviewkd import ReviewKD, hierarchical_context_loss
from kdstream.objectives.term import Task

STUDENT = {"block1": (6, 8, 8), "block2": (8, 4, 4), "block3": (12, 2, 2), "penultimate": (12,)}
TEACHER = {"block1.pre": (8, 8, 8), "block2.pre": (12, 4, 4), "block3.pre": (16, 2, 2), "penultimate": (16,)}


def ready(student=STUDENT, teacher=TEACHER, **settings_) -> ReviewKD:
    torch.manual_seed(0)
    term = ReviewKD(**settings_)
    term.setup(Task(10, 100, 1, outputs(count=2, **student), outputs(count=2, **teacher)))
    return term


# ---------------------------------------------------------------------------------------------- context loss


@given(seeds, st.sampled_from([1, 2, 3, 4, 5, 8]))
@settings(max_examples=25, deadline=None)
def test_context_loss_is_a_mean_over_levels(seed, height):
    student, teacher = maps(2, 3, height, height, seed=seed), maps(2, 3, height, height, seed=seed + 1)
    value = hierarchical_context_loss(student, teacher)
    used = [level for level in (4, 2, 1) if level < height]
    errors = [F.mse_loss(student, teacher)]
    errors += [F.mse_loss(F.adaptive_avg_pool2d(student, n), F.adaptive_avg_pool2d(teacher, n)) for n in used]
    weights = [0.5**k for k in range(len(errors))]
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    torch.testing.assert_close(value, expected)
    assert hierarchical_context_loss(teacher, teacher).item() == 0
    # A constant offset is seen alike at every level, so it counts with weight 1.
    assert hierarchical_context_loss(teacher + 2, teacher).item() == pytest.approx(4, rel=1e-4)


def test_half_precision_stays_finite():
    value = hierarchical_context_loss(400 * maps(2, 3, 8, 8).half(), 400 * maps(2, 3, 8, 8, seed=1).half())
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


# -------------------------------------------------------------------------------------------------- the fusion


def test_each_stage_sees_its_own_and_the_deeper_taps():
    term = ready()
    order = list(STUDENT)
    for stage, tap in enumerate(order):
        student = outputs(**STUDENT)
        leaves = {name: value.requires_grad_() for name, value in student.features.items()}
        term.stage_losses(student, outputs(1, **TEACHER))[tap].backward()
        reached = [name for name in order if leaves[name].grad is not None]
        assert reached == order[stage:]


def test_the_attention_chooses_between_map_and_residual():
    term = ready().eval()
    student, teacher = outputs(**STUDENT), outputs(1, **TEACHER)
    changed = Outputs(student.logits, {**student.features, "block3": maps(4, 12, 2, 2, seed=5)})
    with torch.no_grad():
        for name in ("block1", "block2"):
            term.abf[name].att.weight.zero_()
            term.abf[name].att.bias.copy_(torch.tensor([40.0, -40.0]))  # own map alone
    before, after = (term.stage_losses(outputs_, teacher) for outputs_ in (student, changed))
    assert before["block1"] == after["block1"]
    assert before["block2"] == after["block2"]
    assert before["block3"] != after["block3"]
    with torch.no_grad():
        term.abf["block1"].att.bias.copy_(torch.tensor([-40.0, 40.0]))  # residual alone
    other = Outputs(student.logits, {**student.features, "block1": maps(4, 6, 8, 8, seed=6)})
    assert term.stage_losses(other, teacher)["block1"] == term.stage_losses(student, teacher)["block1"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((4, 2, 1), (8, 4, 2)), ((8, 4, 2), (4, 2, 1)), ((7, 3, 3), (5, 5, 2)), ((1, 1, 1), (1, 1, 1))],
)
def test_any_sizes_meet(ours, theirs):
    student = {f"block{i + 1}": (4 + i, side, side) for i, side in enumerate(ours)} | {"penultimate": (9,)}
    teacher = {f"block{i + 1}.pre": (5 + i, side, side + 1) for i, side in enumerate(theirs)} | {"penultimate": (3,)}
    term = ready(student, teacher)
    value = term(outputs(**student), outputs(1, **teacher), batch())
    assert torch.isfinite(value)


@pytest.mark.parametrize("count", [2, 1])
def test_small_batches_train_every_parameter(count):
    term = ready()
    value = term(outputs(count=count, **STUDENT), outputs(1, count, **TEACHER), batch(count))
    value.backward()
    assert torch.isfinite(value)
    assert all(parameter.grad is not None for parameter in term.parameters())


def test_defaults_are_those_of_the_authors():
    term = ready()
    assert term.teacher_taps == ("block1.pre", "block2.pre", "block3.pre", "penultimate")
    assert term.abf["block1"].conv1.out_channels == 12  # the width of the student's pooled embedding
    assert term.abf["penultimate"].att is None
    wide = ready({**STUDENT, "penultimate": (640,)})
    assert wide.abf["block1"].conv1.out_channels == 512
    assert ready(mid_channels=7).abf["block2"].conv2.in_channels == 7


def test_warm_up_runs_over_epochs_counted_from_one():
    student, teacher = outputs(**STUDENT), outputs(1, **TEACHER)
    term = ready()
    full = term(student, teacher, batch()).item()
    for epoch, share in ((0, 0.05), (9, 0.5), (19, 1.0), (200, 1.0)):
        term.begin_epoch(epoch, 240)
        assert term(student, teacher, batch()).item() == pytest.approx(share * full, rel=1e-5)
    without = ready(warmup_epochs=0)
    without.begin_epoch(0, 240)
    assert without(student, teacher, batch()).item() == pytest.approx(full, rel=1e-5)


# ------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"taps": ["block1", "block1.pre"]}, "reviewkd: taps holds one block twice: block1, block1.pre"),
        (
            {"taps": ["a", "b"], "teacher_taps": ["a"]},
            "reviewkd: taps and teacher_taps must pair up, got 2 and 1 names",
        ),
        ({"mid_channels": 0}, "reviewkd: mid_channels must be a whole number >= 1, got 0"),
        ({"hcl_levels": [4, 0]}, "reviewkd: hcl_levels must be a whole number >= 1, got 0"),
        ({"hcl_levels": 4}, "reviewkd: hcl_levels must be a list, got 4"),
        ({"warmup_epochs": -1}, "reviewkd: warmup_epochs must be a whole number >= 0, got -1"),
    ],
)
def test_bad_settings(settings_, message):
    with pytest.raises(UserError) as caught:
        ReviewKD(**settings_)
    assert str(caught.value).startswith(message)


def test_tokens_and_a_missing_teacher_are_refused():
    with pytest.raises(UserError, match=r"tap 'block2.pre' of the teacher has shape \[2, 16, 8\], neither that of"):
        ready(teacher={**TEACHER, "block2.pre": (16, 8)})
    with pytest.raises(UserError, match="reviewkd: needs a teacher, but the job has none"):
        ReviewKD().setup(Task(10, 100, 1, outputs(count=2, **STUDENT)))
