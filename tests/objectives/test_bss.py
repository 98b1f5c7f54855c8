"""BSS: which samples are attacked and how far, and that attacks run within training, on several processes too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import recipe_of, run, run_in_two
from torch import nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, parse_loss
from kdstream.objectives.bss import BoundarySupportingSamples, base_samples, boundary_attack, target_classes
from kdstream.training.metrics import read_metrics

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.2, 0.25)


class Smooth(nn.Sequential):
    """A small network without batch statistics."""

    def __init__(self, classes: int = 4, seed: int = 0):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, classes)]
        super().__init__(*layers)
        self.requires_grad_(False)


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Standardised images [count,3,8,8] of pixels in [0,1], black and white among them."""
    pixels = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).mul(1.4).sub(0.2).clamp(0, 1)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def pixels(view: torch.Tensor) -> torch.Tensor:
    return view * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def set_up(student: nn.Module, teacher: nn.Module, classes: int = 4, **settings) -> BoundarySupportingSamples:
    term = BoundarySupportingSamples(**settings)
    ours, theirs = Tapped(student), Tapped(teacher)
    answers = Outputs(torch.zeros(2, classes)), Outputs(torch.zeros(2, classes))
    term.setup(Task(classes, 8, 1, *answers, student=ours, teacher=theirs, mean=MEAN, std=STD))
    return term


def value(term: BoundarySupportingSamples, view: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    batch = Batch(view, label, torch.arange(len(view)))
    student = term.task.student(view)
    with torch.no_grad():
        teacher = term.task.teacher(view)
    return term(student, teacher, batch)


# --- which samples


@given(st.integers(1, 12), st.integers(2, 5), st.integers(1, 12), st.integers(0, 1000))
def test_attacked_are_the_samples_that_both_get_right_and_differ_on_most(count, classes, size, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, count, classes, generator=generator)
    label = torch.randint(classes, (count,), generator=generator)
    chosen, number, share = base_samples(ours, theirs, label, size)
    right = {i for i in range(count) if ours[i].argmax() == theirs[i].argmax() == label[i]}
    assert set(chosen.tolist()) <= right
    assert len(chosen) == number == min(size, len(right))
    assert share == 1
    others = F.one_hot(label, classes) == 0
    difference = ((ours.softmax(1) - theirs.softmax(1)) ** 2 * others).sum(1)
    left_out = right - set(chosen.tolist())
    if left_out:
        assert difference[chosen].min() >= difference[list(left_out)].max() - 1e-6


@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 1000))
def test_the_target_is_another_class_than_the_likeliest(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(count, classes, generator=generator)
    for draws in (torch.zeros(count), torch.rand(count, generator=generator), torch.full((count,), 1 - 2**-24)):
        found = target_classes(logits, draws)
        assert (found != logits.argmax(1)).all()
        assert ((found >= 0) & (found < classes)).all()
    second = logits.topk(2).indices[:, 1]
    assert target_classes(logits, torch.zeros(count)).equal(second)


def test_targets_are_drawn_by_their_probability():
    logits = torch.tensor([[9.0, 2.0, 0.0, 1.0]]).expand(20_000, 4)
    found = target_classes(logits, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    shares = torch.bincount(found, minlength=4) / 20_000
    torch.testing.assert_close(shares[1:], logits[0, 1:].softmax(0), atol=0.01, rtol=0)


# --- the attack


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([0.05, 0.3, 3.0, 5.0]), st.integers(0, 1000))
def test_an_attack_changes_the_class_or_uses_up_its_steps_and_stays_in_range(count, steps, rate, seed):
    teacher = Tapped(Smooth(seed=seed % 7))
    view = images(count, seed)
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    low, high = torch.tensor(-2.5), torch.tensor(2.5)
    attacked = boundary_attack(teacher, view, draws, steps, rate, low, high)
    assert not attacked.images.requires_grad
    assert not attacked.logits.requires_grad
    torch.testing.assert_close(attacked.logits, teacher(attacked.images).logits)
    assert attacked.base.equal(teacher(view).logits.argmax(1))
    changed = attacked.logits.argmax(1) != attacked.base
    assert (changed | (attacked.steps == steps)).all()
    assert ((attacked.steps >= 1) & (attacked.steps <= steps)).all()
    assert attacked.images.abs().max() <= 2.5
    assert (attacked.images[:, 0] != view[:, 0]).flatten(1).any(1).all()
    assert (attacked.base != attacked.target).all()


def test_on_a_linear_teacher_every_step_shortens_the_gap_by_the_same_share():
    torch.manual_seed(0)
    teacher = Tapped(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).requires_grad_(False))
    view = images(3)
    weight = teacher.module[1].weight
    length = (weight[0] - weight[1]).norm()
    logits = teacher(view).logits
    before = logits.amax(1) - logits.amin(1)
    for steps in (1, 2, 3):
        attacked = boundary_attack(teacher, view, torch.rand(3), steps, 0.3, torch.tensor(-9.0), torch.tensor(9.0))
        gap = attacked.logits.gather(1, attacked.base[:, None]) - attacked.logits.gather(1, attacked.target[:, None])
        expected = (1 - 0.3 * length) ** steps * (before + 1e-4) - 1e-4
        torch.testing.assert_close(gap[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_each_image_is_attacked_as_if_it_were_alone():
    teacher, view = Tapped(Smooth()), images(5)
    draws = torch.rand(5, generator=torch.Generator().manual_seed(3))
    settings = (6, 3.0, torch.tensor(-2.5), torch.tensor(2.5))
    together = boundary_attack(teacher, view, draws, *settings)
    assert len(set(together.steps.tolist())) > 1  # some stop earlier
    for i in range(5):
        alone = boundary_attack(teacher, view[i : i + 1], draws[i : i + 1], *settings)
        torch.testing.assert_close(alone.images[0], together.images[i])
        assert alone.steps[0] == together.steps[i]


@settings(max_examples=20)
@given(st.sampled_from([0.5, 4.0, 16.0, 255.0]), st.floats(0.1, 50), st.integers(0, 1000))
def test_no_pixel_leaves_its_range_or_moves_further_than_max_eps(max_eps, rate, seed):
    term = set_up(Smooth(seed=1), Smooth(), clip=None, max_eps=max_eps, rate=rate)
    view = images(3, seed)
    moved = pixels(term.attack(view, torch.full((3,), 0.5)).images)
    assert moved.min() >= -1e-6
    assert moved.max() <= 1 + 1e-6
    assert (moved - pixels(view)).abs().max() <= max_eps / 255 + 1e-6
    assert not moved.equal(pixels(view))


def test_without_max_eps_a_strong_attack_goes_to_black_and_white():
    term = set_up(Smooth(seed=1), Smooth(), clip=None, rate=1e4, steps=1)
    moved = pixels(term.attack(images(2), torch.full((2,), 0.5)).images)
    assert ((moved.abs() < 1e-6) | ((moved - 1).abs() < 1e-6)).float().mean() > 0.9


def test_a_teacher_without_gradient_leaves_the_images_finite():
    class Saturated(nn.Module):
        def forward(self, view):
            return view.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([500.0, 0.0, -500.0])

    attacked = boundary_attack(
        Tapped(Saturated()), images(2), torch.full((2,), 0.9), 3, 0.3, torch.tensor(-9.0), torch.tensor(9.0)
    )
    torch.testing.assert_close(attacked.images, images(2))


# --- the term


def test_its_value_is_the_cross_entropy_on_the_attacked_images():
    student, teacher = Smooth(seed=1).requires_grad_(True), Smooth()
    term = set_up(student, teacher, temperature=3, attack_size=2, until=None)
    view = images(8)
    label = teacher(view).argmax(1)
    right = (student(view).argmax(1) == label).nonzero()[:, 0]
    assert len(right) > 0
    found = value(term, view, label)
    batch = Batch(view, label, torch.arange(8))
    chosen, count, _ = base_samples(student(view), teacher(view), label, 2)
    attacked = term.attack(view[chosen], term.draws(batch, chosen))
    p = (teacher(attacked.images) / 3).softmax(1)
    expected = -(p * F.log_softmax(student(attacked.images) / 3, dim=1)).sum(1).mean()
    assert count == len(chosen) <= 2
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student[0].weight.grad.any()


def test_nothing_to_attack_is_zero_with_a_gradient_of_zero():
    student, teacher = Smooth(seed=1).requires_grad_(True), Smooth()
    term = set_up(student, teacher)
    view = images(4)
    wrong = (teacher(view).argmax(1) + 1) % 4
    found = value(term, view, wrong)
    found.backward()
    assert found == 0
    assert student[0].weight.grad is not None
    assert not student[0].weight.grad.any()


def test_its_share_falls_to_zero_and_then_costs_nothing(monkeypatch):
    term = set_up(Smooth(seed=1).requires_grad_(True), Smooth())
    shares = []
    for epoch in range(8):
        term.begin_epoch(epoch, 8)
        shares.append(term.share)
    assert shares == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0])
    monkeypatch.setattr(term, "attack", None)
    assert value(term, images(4), term.task.teacher(images(4)).logits.argmax(1)) == 0


def test_one_sample_alone_also_where_batch_statistics_need_two():
    torch.manual_seed(0)
    student = build("resnet18", 4).train()  # ends in maps of one pixel
    teacher = Smooth()
    term = set_up(student, teacher)
    view = images(8)
    batch = Batch(view, teacher(view).argmax(1), torch.arange(8))
    ours = term.task.student(view)
    answer = Outputs(F.one_hot(batch.label, 4) * 1.0)
    answer.logits[1:] *= -1  # only the first is right
    running = student.bn1.running_mean.clone()
    found = term(Outputs(ours.logits * 0 + answer.logits), Outputs(teacher(view)), batch)
    assert found.isfinite()
    assert found > 0
    assert student.training
    assert student.layer4[0].bn1.training
    assert student.bn1.running_mean.equal(running)
    found.backward()
    assert student.conv1.weight.grad.any()


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"temperature": 0}, r"bss: temperature must be a finite number > 0"),
        ({"attack_size": 0}, r"bss: attack_size must be a whole number >= 1"),
        ({"steps": 1.5}, r"bss: steps must be a whole number >= 1"),
        ({"rate": -1}, r"bss: rate must be a finite number > 0"),
        ({"clip": 0}, r"bss: clip must be a finite number > 0"),
        ({"max_eps": 0}, r"bss: max_eps must be a finite number > 0"),
        ({"until": 1.5}, r"bss: until must be a finite number > 0 and at most 1, got 1.5"),
    ],
)
def test_bad_settings(given_, message):
    with pytest.raises(UserError, match=message):
        parse_loss({"bss": given_})


def test_tasks_that_cannot_be_attacked():
    logits = Outputs(torch.zeros(2, 4))
    with pytest.raises(UserError, match=r"bss: needs a teacher"):
        BoundarySupportingSamples().setup(Task(4, 8, 1, logits))
    with pytest.raises(UserError, match=r"bss: the student has 4 classes and the teacher 3"):
        BoundarySupportingSamples().setup(Task(4, 8, 1, logits, Outputs(torch.zeros(2, 3))))
    one = Outputs(torch.zeros(2, 1))
    with pytest.raises(UserError, match=r"bss: an answer to learn from needs at least 2, the student has 1"):
        BoundarySupportingSamples().setup(Task(1, 8, 1, one, one))
    for given_ in ({"clip": None}, {"max_eps": 16}):
        with pytest.raises(UserError, match=r"bss: .* takes the images' mean and standard deviation"):
            BoundarySupportingSamples(**given_).setup(Task(4, 8, 1, logits, logits))


# --- in training


@pytest.fixture(scope="module")
def taught(digits, tmp_path_factory):
    """Settings of a recipe whose teacher and student know most digits already, so that there is something to attack."""
    teacher, student = (tmp_path_factory.mktemp(name) for name in ("teacher", "student"))
    run(recipe_of(digits, teacher, student="resnet14", loss="ce", epochs=6))
    run(recipe_of(digits, student, student="jobs:Plain", loss="ce", epochs=6))
    loss = {"ce": 1.0, "bss": {"weight": 2, "clip": None, "max_eps": 16, "attack_size": 20, "until": None}}
    return {"teacher": str(teacher), "student": {"model": "jobs:Plain", "weights": str(student)}, "loss": loss}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_last_batch_of_one_sample(digits, taught, tmp_path, processes):
    """One process is then left with no sample to attack, or with none at all."""
    recipe = recipe_of(digits, tmp_path / "out", batch_size=239, **taught)
    run(recipe) if processes == 1 else run_in_two(recipe)
    assert all(math.isfinite(row["loss/bss"]) for row in read_metrics(tmp_path / "out"))
