"""ViTKD: mimic a vision transformer's first layers, generate its last from masked tokens (Yang et al. 2022)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.checks import need_teacher, need_weight, tap_pairs
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative, PositiveFraction, Taps
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term

_SALT = 0x76_69_74_6B_64  # "vitkd": keeps the masks independent of other draws from the same key


def random_mask(key: Tensor, tokens: int, masked: int) -> Tensor:
    """A random choice of tokens for every sample, as a function of its key alone.

    Hence the same on any device and any number of processes. Keys and token numbers are mixed by the finaliser of
    SplitMix64 (Steele, Lea & Flood 2014); the tokens of the ``masked`` smallest values are chosen.

    Args:
        key: int64 [N].
        tokens: L.
        masked: how many of the L.

    Returns:
        bool [N,L], ``masked`` times True in each row.
    """
    values = _mix(_mix(key ^ _SALT)[:, None] ^ torch.arange(tokens, device=key.device))
    chosen = values.argsort(dim=1)[:, :masked]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, chosen, True)


def _mix(value: Tensor) -> Tensor:
    """A bijection of int64 whose output bits all depend on all input bits; overflow wraps around, as it must."""
    value = value - 0x61C8864680B583EB
    value = (value ^ ((value >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & (2**33 - 1))


class ViTKD(Term):
    r"""Squared distances of aligned shallow tokens, and of generated masked tokens of the last layer.

    .. math:: \alpha \frac1N \sum_i \sum (a_i(s_i) - t_i)^2
              + \beta \frac1{\lambda N} \sum_{\text{masked}} (G(\tilde s) - t)^2

    Sums run over patch tokens and widths. The linear layers a (``align_shallow.<i>``, ``align_deep``) exist where
    widths differ. A share lambda of the student's last tokens, drawn anew for every sample and epoch, is
    replaced by the learnt ``mask_token``; G (``generation``: 3x3 convolution, ReLU, 3x3 convolution on the square of
    tokens) restores the teacher's there. All of these are trained beside the student. Class, distillation and register
    tokens at the front are left out.

    Source: Yang et al. 2022 (arXiv:2209.02432), sections 3.2 and 3.3, with the defaults of the authors' code: first two
    layers, last layer after the final norm. Seed of the combinations: Zheng & Yang 2024, "Knowledge Distillation
    Based on Transformed Teacher Matching", appendix A.9 (WTTM + ViTKD).

    Args:
        alpha: weight of the mimicking, >= 0. Default 3e-5. At 0 it is left out.
        beta: weight of the generation, >= 0. Default 3e-6. At 0 it is left out.
        mask_ratio: lambda, above 0, at most 1. Default 0.5; of L tokens L - int(L (1 - lambda)) are masked.
        taps: the student's tokens [N,L,D]; the last is generated, those before it are mimicked.
        teacher_taps: the teacher's, in the same order; the same names by default.

    Raises:
        UserError: a setting out of range; no teacher; taps that are no tokens of a square grid, or of another number of
            patches in student and teacher.
    """

    def __init__(
        self,
        alpha: NotNegative = 3e-5,
        beta: NotNegative = 3e-6,
        mask_ratio: PositiveFraction = 0.5,
        taps: Taps = ("tokens.1", "tokens.2", "tokens.last"),
        teacher_taps: Taps | None = None,
    ):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        need_weight("vitkd", alpha=alpha, beta=beta)
        self.mask_ratio = mask_ratio
        self.student_taps, self.teacher_taps = tap_pairs("vitkd", taps, teacher_taps)
        if len(self.student_taps) < 2:
            raise UserError(
                f"vitkd: taps needs two names or more, those to mimic and the last to generate; got {self.student_taps}"
            )

    def setup(self, task: Task) -> None:
        outputs = need_teacher("vitkd", task)
        shapes = _patch_shapes("student", self.student_taps, task.student_outputs, task.student)
        shapes += _patch_shapes("teacher", self.teacher_taps, outputs, task.teacher)
        (tap, self.patches, _), *others = shapes
        for other, patches, _ in others:
            if patches != self.patches:
                raise UserError(
                    f"vitkd: {other} has {patches} patches, {tap} has {self.patches}; both networks need the same "
                    "image and patch size"
                )
        widths = [width for _, _, width in shapes]
        ours, theirs = widths[: len(self.student_taps)], widths[len(self.student_taps) :]
        layers = [nn.Linear(s, t) if s != t else nn.Identity() for s, t in zip(ours, theirs, strict=True)]
        self.align_shallow = nn.ModuleList(layers[:-1]).requires_grad_(self.alpha > 0)
        width = theirs[-1]
        self.align_deep = layers[-1].requires_grad_(self.beta > 0)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=self.beta > 0)
        convolutions = {"conv1": nn.Conv2d(width, width, 3, padding=1), "relu": nn.ReLU()}
        convolutions["conv2"] = nn.Conv2d(width, width, 3, padding=1)
        self.generation = nn.Sequential(OrderedDict(convolutions)).requires_grad_(self.beta > 0)

    def _tokens(self, outputs: Outputs, tap: str) -> Tensor:
        """The patch tokens of a tap, [N,L,D]: what stands before them is the class token and the like."""
        return at_least_float32(outputs.features[tap][:, -self.patches :])

    def mimic(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Sum of squared distances at the shallow taps, averaged over samples."""
        pairs = list(zip(self.align_shallow, self.student_taps, self.teacher_taps, strict=False))
        return total(_distance(align(self._tokens(student, s)), self._tokens(teacher, t)) for align, s, t in pairs)

    def mask(self, batch: Batch) -> Tensor:
        """bool [N,L]: the tokens that the mask token replaces, by the samples' ``rng_key`` (without one: index)."""
        key = batch.index if batch.rng_key is None else batch.rng_key
        return random_mask(key, self.patches, self.patches - int(self.patches * (1 - self.mask_ratio)))

    def generate(self, student: Outputs, teacher: Outputs, mask: Tensor) -> Tensor:
        """Sum of squared distances of the generated tokens to the teacher's where masked, / (N lambda)."""
        tokens = self.align_deep(self._tokens(student, self.student_taps[-1]))
        tokens = torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        side = math.isqrt(self.patches)
        made = self.generation(tokens.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
        return _distance(made, self._tokens(teacher, self.teacher_taps[-1]), mask) / self.mask_ratio

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        # A part of weight 0 must not be multiplied by 0: weight decay would shrink what nothing trains.
        parts = []
        if self.alpha > 0:
            parts.append(self.alpha * self.mimic(student, teacher))
        if self.beta > 0:
            parts.append(self.beta * self.generate(student, teacher, self.mask(batch)))
        return total(parts)


def _patch_shapes(role: str, taps: Sequence[str], outputs: Outputs, network: Any) -> list[tuple[str, int, int]]:
    """(tap in words, number of patches, width) of every tap.

    Raises:
        UserError: a tap that holds no square of tokens.
    """
    declared = getattr(getattr(network, "module", None), "num_prefix_tokens", None)
    found = []
    for tap in taps:
        shape = list(outputs.features[tap].shape)
        name = f"tap {tap!r} of the {role} {shape}"
        patches = _patches(shape[1], declared) if len(shape) == 3 else None
        if patches is None:
            raise UserError(
                f"vitkd: {name} is not [N,L,D] with a square grid of patches (and up to two tokens before them); it is "
                "for vision transformers and square images"
            )
        found.append((name, patches, shape[2]))
    return found


def _patches(tokens: int, declared: int | None) -> int | None:
    """How many of a layer's tokens are patches of a square grid: all but the declared number of tokens before them
    (timm's ``num_prefix_tokens``), else all, all but a class token, or all but class and distillation token; None:
    none of these."""
    for prefix in (*([] if declared is None else [declared]), 0, 1, 2):
        patches = tokens - prefix
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            return patches
    return None


def _distance(ours: Tensor, theirs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of squares over (masked) tokens [N,L,D] and widths, averaged over N."""
    squares = (at_least_float32(ours) - theirs).square().sum(2)
    return (squares if mask is None else squares * mask).sum(1).mean()
