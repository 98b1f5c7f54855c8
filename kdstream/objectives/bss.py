"""Distillation with samples that support the teacher's decision boundary (Heo et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.attack import ask_student, channel_scale, pixel_range
from kdstream.objectives.common.checks import need_same_classes, teacher_network
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.processes import join_samples, process_rank
from kdstream.objectives.common.settings import Count, Positive, PositiveFraction
from kdstream.objectives.term import Task, Term
from kdstream.rng import keys, uniform


def base_samples(student: Tensor, teacher: Tensor, label: Tensor, size: int) -> tuple[Tensor, int, float]:
    """Which samples are attacked: those that both networks get right and, where they are more than ``size``, on which
    they differ most (squared difference of the probabilities of the wrong classes).

    Args:
        student, teacher: logits [N,C] of this process's slice of the global batch.
        label: int64 [N].
        size: of all processes together.

    Returns:
        int64 [M], this process's chosen positions, in order of falling difference if some had to be left out, else
        rising; how many all processes chose; and size of the global batch / N.
    """
    student, teacher = at_least_float32(student.detach()), at_least_float32(teacher)
    right = (student.argmax(1) == label) & (teacher.argmax(1) == label)
    squared = (teacher.softmax(1) - student.softmax(1)).square()
    difference = squared.sum(1) - squared.gather(1, label[:, None])[:, 0]
    rank, position = process_rank(), torch.arange(len(label), device=label.device)
    difference, right, position, ranks = join_samples(difference, right, position, torch.full_like(position, rank))
    chosen = right.nonzero()[:, 0]
    if len(chosen) > size:
        chosen = chosen[difference[chosen].argsort(descending=True, stable=True)[:size]]
    return position[chosen][ranks[chosen] == rank], len(chosen), len(right) / len(label)


def target_classes(logits: Tensor, draws: Tensor) -> Tensor:
    """A class other than the likeliest, drawn by its probability: float [M,C], draws in [0,1) [M] -> int64 [M]."""
    probability, classes = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    running = probability[:, 1:].cumsum(1)
    below = (running < draws[:, None] * probability[:, 1:].sum(1, keepdim=True)).sum(1)
    return classes.gather(1, 1 + below.clamp(max=running.shape[1] - 1)[:, None])[:, 0]


@dataclass
class Attacked:
    """Images [M,3,H,W] moved towards another class; the teacher's logits for them [M,C]; which class they left and
    which they went to (int64 [M]); steps made (int64 [M])."""

    images: Tensor
    logits: Tensor
    base: Tensor
    target: Tensor
    steps: Tensor


def boundary_attack(
    teacher: Callable[[Tensor], Outputs],
    images: Tensor,
    draws: Tensor,
    steps: int,
    rate: float,
    low: Tensor,
    high: Tensor,
) -> Attacked:
    r"""Move every image along the gradient of the logits' gap until the teacher changes its mind.

    .. math:: x \leftarrow \mathrm{clip}\big(x + \alpha (v_b - v_k + 10^{-4}) \, g / \lVert g \rVert_2\big), \quad
              g = \nabla_x (v_k - v_b)

    b is the teacher's class for the image as it is, k the class drawn by :func:`target_classes`. Every step asks the
    teacher only about the images that still move.

    Args:
        teacher: frozen.
        images: float [M,3,H,W], standardised.
        draws: [M] in [0,1), for the target class.
        steps: at most.
        rate: alpha.
        low, high: bounds of the pixels' values, each [M,3,H,W] or such that it broadcasts to that.
    """
    low, high = low.expand_as(images), high.expand_as(images)
    adversarial, made = images.detach().clone(), torch.zeros(len(images), dtype=torch.int64, device=images.device)
    moving = torch.arange(len(images), device=images.device)
    base = target = logits = made
    # Half precision would lose the small gradients.
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        for step in range(steps + 1):
            view = adversarial[moving].requires_grad_(step < steps)
            answer = teacher(view).logits
            if step == 0:
                logits = answer.detach().clone()
                base, target = logits.argmax(1), target_classes(logits, draws)
            else:
                logits[moving] = answer.detach()
            if step == steps:
                break
            # Waits for a GPU, but saves most of the passes: two or three steps are usual.
            still = (answer.argmax(1) == base[moving]).nonzero()[:, 0]
            if not len(still):
                break
            gap = (answer.gather(1, target[moving, None]) - answer.gather(1, base[moving, None]))[:, 0]
            (gradient,) = torch.autograd.grad(gap.sum(), view)
            moving, view, gap, gradient = moving[still], view.detach()[still], gap.detach()[still], gradient[still]
            norm = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
            # The unit vector first: where the gradient is zero, the quotient of the length and its norm is infinite.
            way = (rate * (1e-4 - gap))[:, None, None, None] * (gradient / norm[:, None, None, None])
            adversarial[moving] = torch.clamp(view + way, low[moving], high[moving])
            made[moving] += 1
    return Attacked(adversarial, logits, base, target, made)


class BoundarySupportingSamples(Term):
    r"""Cross-entropy of the student with the teacher's softened answers to images attacked across its boundary.

    .. math:: -\frac{w}{M} \sum_m \sum_c \sigma(v_m/T)_c \log \sigma(z_m/T)_c

    Attacked are at most ``attack_size`` samples of a batch that both networks classify rightly
    (:func:`base_samples`, :func:`boundary_attack`); nothing else enters, so the recipe adds ``ce`` and ``kd``. A step
    of training costs up to ``steps`` + 1 passes of the teacher and one of the student over them. With a coded teacher,
    its answers choose the samples; the attack runs on the view itself.

    Source: Heo et al. 2019 (arXiv:1805.05532) and its authors' code, where the weight falls from 2 to 0 over the first
    three quarters of the training; the outer weight 2 with the default ``until`` is that. Sarfraz et al., "Knowledge
    Distillation Beyond Model Compression", Table I: T = 4, attack size 32, 10 steps, and a "max eps 16" that has no
    effect in the authors' attack, whose steps are not projected: hence none is the default here. No factor T^2.

    Args:
        temperature: T > 0.
        attack_size: samples attacked in each global batch, at most, >= 1.
        steps: of the attack, at most, >= 1.
        rate: alpha > 0, the attack's step.
        clip: > 0; attacked pixels stay within +-clip, in units of the standardised images. The authors' 2.5 is about
            the range of CIFAR's pixels when these have mean 0 and deviation 1. null: the pixels' own range, black to
            white, which suits any data.
        max_eps: > 0; no pixel moves further than max_eps/255 of that range; null: no such bound.
        until: share of the main phase, in (0, 1], over which w falls linearly from 1 to 0; null: w = 1 throughout.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes; a single class.
    """

    asks_again = True

    low: Tensor
    high: Tensor
    reach: Tensor

    def __init__(
        self,
        temperature: Positive = 4.0,
        attack_size: Count = 32,
        steps: Count = 10,
        rate: Positive = 0.3,
        clip: Positive | None = 2.5,
        max_eps: Positive | None = None,
        until: PositiveFraction | None = 0.75,
    ):
        super().__init__()
        self.temperature = temperature
        self.attack_size = attack_size
        self.steps = steps
        self.rate = rate
        self.clip = clip
        self.max_eps = max_eps
        self.until = until
        self.share = 1.0

    def setup(self, task: Task) -> None:
        need_same_classes("bss", task)
        low, high = pixel_range("bss", task, self.clip)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        if self.max_eps is not None:
            reach = self.max_eps / 255 * channel_scale("bss", "max_eps", task)
            self.register_buffer("reach", reach, persistent=False)
        self.task = task

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        if self.until is not None:
            self.share = max(0.0, 1 - epoch / (self.until * epochs))

    def draws(self, batch: Batch, chosen: Tensor) -> Tensor:
        """Uniform numbers for the target classes of the chosen samples, [M] in [0,1)."""
        return uniform(keys(batch)[chosen], 1, "bss")[:, 0]

    def attack(self, images: Tensor, draws: Tensor) -> Attacked:
        """:func:`boundary_attack` by the term's settings."""
        low, high = self.low, self.high
        if self.max_eps is not None:
            low, high = torch.maximum(low, images - self.reach), torch.minimum(high, images + self.reach)
        return boundary_attack(teacher_network("bss", self.task), images, draws, self.steps, self.rate, low, high)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        nothing = at_least_float32(student.logits).sum() * 0
        if not self.share:
            return nothing
        chosen, count, slices = base_samples(student.logits, teacher.logits, batch.label, self.attack_size)
        if not len(chosen):
            return nothing
        attacked = self.attack(batch.image[chosen], self.draws(batch, chosen))
        target = F.softmax(at_least_float32(attacked.logits) / self.temperature, dim=1)
        answer = at_least_float32(ask_student(self.task, attacked.images).logits)
        answer = F.log_softmax(answer / self.temperature, dim=1)
        # The trainer weights each process's value by its slice; the mean is to run over all processes' samples.
        return nothing - self.share * slices / count * (target * answer).sum()
