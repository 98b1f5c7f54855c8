"""Distillation with samples that support the teacher's decision boundary (Heo et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.objectives.checks import need_same_classes, number, whole
from kdstream.objectives.draw import keys, uniform
from kdstream.objectives.precision import at_least_float32
from kdstream.objectives.processes import join_samples, process_rank
from kdstream.objectives.term import Task, Term
from kdstream.types import Batch, Outputs


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
    """Images [M,3,H,W] moved towards another class; which class they left and which they went to (int64 [M]); steps
    made (int64 [M])."""

    images: Tensor
    base: Tensor
    target: Tensor
    steps: Tensor


def boundary_attack(
    teacher: Callable[[Tensor], Outputs], images: Tensor, draws: Tensor, steps: int, rate: float, clip: float
) -> Attacked:
    r"""Move every image along the gradient of the logits' gap until the teacher changes its mind.

    .. math:: x \leftarrow \mathrm{clip}\big(x + \alpha (v_b - v_k + 10^{-4}) \, g / \lVert g \rVert_2\big), \quad
              g = \nabla_x (v_k - v_b)

    b is the teacher's class for the image as it is, k the class drawn by :func:`target_classes`.

    Args:
        teacher: frozen.
        images: float [M,3,H,W], standardised.
        draws: [M] in [0,1), for the target class.
        steps: at most.
        rate: alpha.
        clip: bound of the pixels' absolute values.
    """
    adversarial, made = images, torch.zeros(len(images), dtype=torch.int64, device=images.device)
    base = target = made
    # Half precision would lose the small gradients.
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        for step in range(steps):
            moving = adversarial.detach().requires_grad_()
            logits = teacher(moving).logits
            if step == 0:
                base, target = logits.argmax(1), target_classes(logits.detach(), draws)
            active = logits.argmax(1) == base
            if not active.any():  # waits for a GPU, but saves most of the steps: two or three are usual
                break
            gap = (logits.gather(1, target[:, None]) - logits.gather(1, base[:, None]))[:, 0]
            (gradient,) = torch.autograd.grad(gap.sum(), moving)
            norm = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
            length = rate * (1e-4 - gap.detach()) / norm * active
            adversarial = (moving.detach() + length[:, None, None, None] * gradient).clamp(-clip, clip)
            made = made + active
    return Attacked(adversarial.detach(), base, target, made)


class BoundarySupportingSamples(Term):
    r"""Cross-entropy of the student with the teacher's softened answers to images attacked across its boundary.

    .. math:: -\frac{w}{M} \sum_m \sum_c \sigma(v_m/T)_c \log \sigma(z_m/T)_c

    Attacked are at most ``attack_size`` samples of a batch that both networks classify rightly
    (:func:`base_samples`, :func:`boundary_attack`); nothing else enters, so the recipe adds ``ce`` and ``kd``. A step
    costs up to ``steps`` + 1 passes of the teacher and one of the student over them. With a coded teacher, its answers
    choose the samples; the attack runs on the view itself.

    Source: Heo et al. 2019 (arXiv:1805.05532) and its authors' code, where the weight falls from 2 to 0 over the first
    three quarters of the training; the outer weight 2 with the default ``until`` is that. Sarfraz et al., "Knowledge
    Distillation Beyond Model Compression", Table I: T = 4, attack size 32, 10 steps (the "max eps 16" there has no
    effect in the authors' attack, whose steps are not projected). No factor T^2.

    Args:
        temperature: T > 0.
        attack_size: samples attacked in each global batch, at most, >= 1.
        steps: of the attack, at most, >= 1.
        rate: alpha > 0, the attack's step.
        clip: > 0; attacked pixels stay within +-clip, in units of the standardised images. The authors' 2.5 is about
            the range of CIFAR's pixels when these have mean 0 and deviation 1.
        until: share of the main phase, in (0, 1], over which w falls linearly from 1 to 0; null: w = 1 throughout.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes; a single class.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        attack_size: int = 32,
        steps: int = 10,
        rate: float = 0.3,
        clip: float = 2.5,
        until: float | None = 0.75,
    ):
        super().__init__()
        self.temperature = number("bss", "temperature", temperature, above=0)
        self.attack_size = whole("bss", "attack_size", attack_size, at_least=1)
        self.steps = whole("bss", "steps", steps, at_least=1)
        self.rate = number("bss", "rate", rate, above=0)
        self.clip = number("bss", "clip", clip, above=0)
        self.until = None if until is None else number("bss", "until", until, above=0)
        if self.until is not None and self.until > 1:
            raise UserError(f"bss: until must be a share of the training, in (0, 1], got {until}")
        self.share = 1.0

    def setup(self, task: Task) -> None:
        need_same_classes("bss", task)
        if task.num_classes < 2:
            raise UserError("bss: there is one class only, hence no boundary to attack")
        self.task = task

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        if self.until is not None:
            self.share = max(0.0, 1 - epoch / (self.until * epochs))

    def draws(self, batch: Batch, chosen: Tensor) -> Tensor:
        """Uniform numbers for the target classes of the chosen samples, [M] in [0,1)."""
        return uniform(keys(batch)[chosen], 1, "bss")[:, 0]

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        nothing = at_least_float32(student.logits).sum() * 0
        if not self.share:
            return nothing
        chosen, count, slices = base_samples(student.logits, teacher.logits, batch.label, self.attack_size)
        if not len(chosen):
            return nothing
        draws = self.draws(batch, chosen)
        images = boundary_attack(self.task.teacher, batch.image[chosen], draws, self.steps, self.rate, self.clip).images
        with torch.no_grad():
            target = F.softmax(at_least_float32(self.task.teacher(images).logits) / self.temperature, dim=1)
        answer = F.log_softmax(at_least_float32(self.task.student(images).logits) / self.temperature, dim=1)
        # The trainer weights each process's value by its slice; the mean is to run over all processes' samples.
        return nothing - self.share * slices / count * (target * answer).sum()
