"""TALD: the student's loss follows the teacher's on particles around each image (Nguyen-Duc et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.attack import ask_student, pixel_range
from kdstream.objectives.common.checks import need_same_classes, teacher_network
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.processes import count_processes, join_samples, process_rank, sample_counts
from kdstream.objectives.common.settings import Count, Positive, checked
from kdstream.objectives.term import Task, Term
from kdstream.rng import keys, uniform


def unit(rows: Tensor) -> Tensor:
    """Rows [R,D] of about unit length, scaled by their largest entry first so that tiny ones do not vanish."""
    rows = rows / (rows.abs().amax(1, keepdim=True) + 1e-12)
    return rows / (1e-6 + rows.square().sum(1, keepdim=True)).sqrt()


def rbf_kernel(rows: Tensor, sigma: float) -> Tensor:
    """exp(-|d_i - d_j|^2 / (1e-8 + 2 sigma^2)): [R,D] -> [R,R]."""
    # By differences: from products, the diagonal's rounding errors would be large against a small sigma.
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-distance.square() / (1e-8 + 2 * sigma**2))


def particles(
    teacher: Callable[[Tensor], Outputs],
    images: Tensor,
    noise: Tensor,
    sigma: float,
    xi: float,
    eps: float,
    low: Tensor,
    high: Tensor,
    first: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One step of Stein variational gradient descent from random directions around each image.

    With d the noise, normalised (:func:`unit`), and s the gradient by d of the mean squared difference between the
    teacher's probabilities at x + xi d and at x:

    .. math:: \phi_i = \mathrm{unit}\Big(\frac1R \sum_j K_{ij} s_j - \frac1R \nabla_{d_i} \sum_j K_{ij}\Big), \quad
              x' = \mathrm{clip}(x + \epsilon \phi)

    Args:
        teacher: frozen.
        images: float [B,3,H,W], standardised.
        noise: float [R,3,H,W], R = n B: row p B + b is particle p of image b.
        sigma: of the kernel K, over all rows, of all processes where these share the images out.
        xi: how far from the image the teacher is asked.
        eps: how far the particles go.
        low, high: bounds of the pixels' values, such that they broadcast to the images.
        first: how many rows the processes before this one have, where several share the images out: all must call this
            together, and R and B may then be 0. None: this one is alone.

    Returns:
        Particles [R,3,H,W] and the kernel of all rows, without gradient.
    """
    count = len(noise) // max(len(images), 1)
    # Half precision would lose the small gradients and steps.
    with torch.autocast(images.device.type, enabled=False):
        repeated = images.repeat(count, 1, 1, 1)
        direction = unit(noise.flatten(1))
        score = _score(teacher, images, direction, xi) if count else direction
        if first is not None:
            score = score * len(noise)  # a mean over these rows so far, where one over all is meant
            direction, score = join_samples(direction, score)
            score = score / len(direction)
        kernel = rbf_kernel(direction, sigma)
        # Nothing repels itself; with the diagonal, rounding errors times 1/sigma^2 would.
        others = kernel - torch.diag(kernel.diagonal())
        repulsion = 2 / (1e-8 + 2 * sigma**2) * (others.sum(1, keepdim=True) * direction - others @ direction)
        phi = unit((kernel @ score + repulsion) / len(direction))
        phi = phi if first is None else phi[first : first + len(noise)]
        return torch.clamp(repeated + eps * phi.view_as(repeated), low, high), kernel


def _score(teacher: Callable[[Tensor], Outputs], images: Tensor, direction: Tensor, xi: float) -> Tensor:
    """s of :func:`particles`, [R,D], from directions [R,D]."""
    count = len(direction) // len(images)
    with torch.no_grad():
        plain = teacher(images).logits.softmax(1).repeat(count, 1)
    with torch.enable_grad():
        direction = direction.detach().requires_grad_()
        repeated = images.repeat(count, 1, 1, 1)
        moved = teacher(repeated + xi * direction.view_as(repeated)).logits.softmax(1)
        (score,) = torch.autograd.grad(F.mse_loss(moved, plain), direction)
    return score


class AdversarialLocalDistribution(Term):
    r"""Mean squared difference of the student's and the teacher's label losses, on particles and clean images.

    .. math:: \frac1{R+N} \sum_{x \in \text{particles, batch}} \big(\mathrm{CE}_s(x) - \mathrm{CE}_t(x)\big)^2

    The first ``images`` images of a batch get ``particles`` particles each (:func:`particles`); several processes
    share these images out (``relations: local``: each takes its share from its own slice). The recipe adds ``ce`` (0.1)
    and ``kd`` (0.9, T = 4); a step costs three passes of the teacher and one of the student over the particles. With a
    coded teacher, its answers count for the clean images.

    Source: Nguyen-Duc et al. 2023 (WACV), as their code computes it: one step from a random start, the particles of
    all images in one kernel. With the default sigma particles that differ do not act on each other. Outer weight there
    0.01. The default eps moves pixels by less than bfloat16 resolves: train in float32.

    Args:
        particles: n of each image, >= 1.
        images: how many of a global batch's images get particles, >= 1.
        sigma: of the kernel, > 0; null: 10^(1-n).
        xi: > 0, how far from the image the teacher is asked.
        eps: > 0, how far the particles go (L2, all pixels together).
        clip: > 0; pixels of particles stay within +-clip, in units of the standardised images; null: the pixels' own
            range, black to white.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes.
    """

    over_batch = True
    asks_again = True

    low: Tensor
    high: Tensor

    def __init__(
        self,
        particles: Count = 4,
        images: Count = 10,
        sigma: Positive | None = None,
        xi: Positive = 10.0,
        eps: Positive = 0.0005,
        clip: Positive | None = 2.5,
    ):
        super().__init__()
        self.particles = particles
        self.images = images
        self.sigma = checked("tald", "sigma", 10.0 ** (1 - particles), Positive) if sigma is None else sigma
        self.xi = xi
        self.eps = eps
        self.clip = clip

    def setup(self, task: Task) -> None:
        need_same_classes("tald", task)
        low, high = pixel_range("tald", task, self.clip)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.task = task

    def noise(self, batch: Batch, count: int) -> Tensor:
        """Uniform in (-0.5, 0.5) for the first ``count`` images: [n count,3,H,W], particle after particle."""
        shape = batch.image.shape[1:]
        draws = uniform(keys(batch)[:count], self.particles * shape.numel(), "tald") - 0.5
        return draws.view(count, self.particles, *shape).transpose(0, 1).flatten(0, 1)

    def shared_out(self, batch: Batch) -> tuple[Batch, int, float]:
        """The first images of the batch of all processes, one after the other to one process after the other.

        Returns:
            This process's (index holds their random keys); how many rows of particles the processes before it have; by
            what to multiply its mean over particles and slice, which counts with the slice's share of the batch, so
            that together they are the mean over all.
        """
        rank, world, counts = process_rank(), count_processes(), sample_counts(batch.label)
        wanted = max(self.images - sum(counts[:rank]), 0)
        parts = [batch.image, batch.label, keys(batch), *([] if batch.soft is None else [batch.soft])]
        image, label, key, *soft = join_samples(*(part[:wanted] for part in parts))
        few = Batch(image, label, key, soft=soft[0] if soft else None)
        mine = few.map_tensors(lambda values: values[rank::world])
        before = sum(len(range(other, len(few), world)) for other in range(rank))
        own = len(batch) + self.particles * len(mine)
        everyone = sum(counts) + self.particles * len(few)
        return mine, self.particles * before, own / everyone * sum(counts) / max(len(batch), 1)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        rank, world = process_rank(), count_processes()
        together = world > 1 and not self.over_slices
        first, factor = None, 1.0
        if together:
            few, first, factor = self.shared_out(batch)
        else:
            share = self.images // world + (rank < self.images % world)
            few = batch.map_tensors(lambda values: values[:share])
        students, teachers, labels = [student.logits], [teacher.logits], [batch.target]
        if together or len(few):
            noise = self.noise(few, len(few))
            strong = teacher_network("tald", self.task)
            moved, _ = particles(strong, few.image, noise, self.sigma, self.xi, self.eps, self.low, self.high, first)
        if len(few):
            with torch.no_grad():
                teachers.insert(0, strong(moved).logits)
            students.insert(0, ask_student(self.task, moved).logits)
            labels.insert(0, torch.cat([few.target] * self.particles))
        ours, theirs = (
            F.cross_entropy(at_least_float32(torch.cat(logits)), torch.cat(labels), reduction="none")
            for logits in (students, teachers)
        )
        value = F.mse_loss(ours, theirs)
        return value * factor if together else value
