"""TALD: where its particles go, what its value is, and that it trains. (Several processes: common/test_gather.py.)"""

from __future__ import annotations

import pytest
import torch
from builders import batch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import recipe_of, run
from torch import nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, parse_loss
from kdstream.objectives.tald import AdversarialLocalDistribution, particles, rbf_kernel, unit

WIDE = (torch.tensor(-9.0), torch.tensor(9.0))


class Smooth(nn.Sequential):
    """A small network without batch statistics."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 16, 4))
        self.requires_grad_(False)


def draw(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def set_up(student=None, **settings) -> AdversarialLocalDistribution:
    term = AdversarialLocalDistribution(**settings)
    zeros = Outputs(torch.zeros(2, 4))
    networks = {"student": Tapped(student or Smooth(1)), "teacher": Tapped(Smooth())}
    term.setup(Task(4, 8, 1, zeros, zeros, **networks, mean=(0.5,) * 3, std=(0.25,) * 3))
    return term


def views(count: int) -> Batch:
    return batch(image=draw(count, 3, 4, 4), label=torch.arange(count) % 4)


# --- the particles


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([1e-30, 1e-6, 1.0, 1e10]), st.integers(0, 1000))
def test_unit_rows_have_length_one_whatever_their_scale(rows, width, scale, seed):
    found = unit(scale * draw(rows, width, seed=seed).double().clamp(min=0.1))
    expected = torch.full((rows,), 1.0 if scale > 1e-12 else 0.0, dtype=torch.float64)
    torch.testing.assert_close(found.norm(dim=1), expected, atol=1e-5, rtol=0)


@given(st.integers(1, 6), st.floats(0.1, 3), st.integers(0, 1000))
def test_the_kernel_is_symmetric_in_zero_to_one_and_one_on_its_diagonal(rows, sigma, seed):
    kernel = rbf_kernel(unit(draw(rows, 7, seed=seed)), sigma)
    torch.testing.assert_close(kernel, kernel.T)
    torch.testing.assert_close(kernel.diagonal(), torch.ones(rows))
    assert ((kernel >= 0) & (kernel <= 1 + 1e-6)).all()


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 1000))
def test_particles_lie_eps_from_their_image(count, copies, seed):
    images, noise = draw(count, 3, 4, 4, seed=seed), draw(copies * count, 3, 4, 4, seed=seed + 1)
    moved, kernel = particles(Tapped(Smooth()), images, noise, 0.5, 10.0, 0.01, *WIDE)
    distance = (moved - images.repeat(copies, 1, 1, 1)).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, torch.full((copies * count,), 0.01), rtol=0.02, atol=0)
    assert kernel.shape == (copies * count,) * 2
    assert not moved.requires_grad


def test_the_repulsion_is_the_kernels_negative_gradient():
    """With a teacher that never changes its mind only the repulsion is left."""

    class Constant(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :4] * 0

    images, noise = draw(2, 3, 4, 4).double(), draw(6, 3, 4, 4, seed=1).double()
    direction = unit(noise.flatten(1)).requires_grad_()
    # By the first argument alone; the second stands still.
    (expected,) = torch.autograd.grad(
        -torch.exp(-torch.cdist(direction, direction.detach()).square() / (1e-8 + 0.5)).sum(), direction
    )
    moved, _ = particles(Tapped(Constant()), images, noise, 0.5, 10.0, 1.0, *WIDE)
    found = (moved - images.repeat(3, 1, 1, 1)).flatten(1)
    torch.testing.assert_close(found, unit(expected / 6), rtol=1e-6, atol=1e-9)


def test_a_narrow_kernel_repels_nothing_also_under_autocast():
    images, noise = draw(3, 3, 4, 4), draw(12, 3, 4, 4, seed=1)
    plain, _ = particles(Tapped(Smooth()), images, noise, 1e-3, 10.0, 1.0, *WIDE)
    alone = [
        particles(Tapped(Smooth()), images[i % 3 : i % 3 + 1], noise[i : i + 1], 1e-3, 10.0, 1.0, *WIDE)[0]
        for i in range(12)
    ]
    torch.testing.assert_close(torch.cat(alone), plain, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = particles(Tapped(Smooth()), images, noise, 1e-3, 10.0, 1.0, *WIDE)
    torch.testing.assert_close(half, plain)


def test_particles_stay_among_the_pixels_where_wanted():
    term = set_up(clip=None, eps=50.0)
    seen = []
    term.task.student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    data = views(4)
    term(Outputs(torch.zeros(4, 4)), Outputs(torch.zeros(4, 4)), data)
    assert seen[0].min() == -2
    assert seen[0].max() == 2


# --- the term


def test_its_value_is_the_mean_squared_difference_of_the_label_losses():
    term = set_up(particles=2, images=3)
    data = views(5)
    with torch.no_grad():
        ours, theirs = term.task.student(data.image), term.task.teacher(data.image)
        found = term(ours, theirs, data)
        noise = term.noise(data, 3)
        bounds = (term.low, term.high)
        moved, _ = particles(term.task.teacher, data.image[:3], noise, term.sigma, 10.0, 5e-4, *bounds)
        label = torch.cat([data.label[:3], data.label[:3], data.label])
        costs = [
            F.cross_entropy(net(torch.cat([moved, data.image])).logits, label, reduction="none")
            for net in (term.task.student, term.task.teacher)
        ]
    torch.testing.assert_close(found, (costs[0] - costs[1]).square().mean())
    assert term.sigma == 0.1


def test_noise_belongs_to_the_sample_not_to_its_place_in_the_batch():
    term = set_up(particles=3)
    data = views(4)
    noise = term.noise(data, 4).view(3, 4, 3, 4, 4)
    assert noise.abs().max() <= 0.5
    assert noise.std() == pytest.approx(12**-0.5, rel=0.1)
    other = Batch(data.image[[2]], data.label[[2]], data.index[[2]])
    assert term.noise(other, 1).view(3, 3, 4, 4).equal(noise[:, 2])
    assert not noise[0].equal(noise[1])


def test_the_gradient_reaches_the_student_through_particles_and_clean_images():
    student = Smooth(1).requires_grad_(True)
    term = set_up(student)
    data = views(2)
    term(Outputs(torch.zeros(2, 4)), term.task.teacher(data.image), data).backward()  # the particles alone
    assert student[0].weight.grad.any()


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"particles": 0}, r"tald: particles must be a whole number >= 1"),
        ({"images": 0}, r"tald: images must be a whole number >= 1"),
        ({"sigma": 0}, r"tald: sigma must be a finite number > 0"),
        ({"xi": 0}, r"tald: xi must be a finite number > 0"),
        ({"eps": -1}, r"tald: eps must be a finite number > 0"),
        ({"clip": "2"}, r"tald: clip must be a finite number > 0"),
    ],
)
def test_bad_settings(given_, message):
    with pytest.raises(UserError, match=message):
        parse_loss({"tald": given_})


# --- in training


def test_a_last_batch_of_one_sample(digits, tmp_path):
    run(recipe_of(digits, tmp_path / "teacher", student="resnet8", loss="ce", epochs=1))
    settings = {"teacher": str(tmp_path / "teacher"), "loss": {"ce": 1, "tald": 0.01}, "epochs": 1, "batch_size": 239}
    (result,) = run(recipe_of(digits, tmp_path / "out", **settings))
    assert result["epochs"] == 1
