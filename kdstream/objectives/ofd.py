"""OFD, the overhaul of feature distillation: partial L2 before the ReLU, with margins (Heo et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.exact import exact
from kdstream.objectives.common.checks import need_maps, need_teacher, tap_pairs
from kdstream.objectives.common.features import pooled
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Blocks, Probability, Taps, Weights, module_name
from kdstream.objectives.common.tap_groups import need_one_a_tap
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term


def margin(norm: nn.BatchNorm2d, cdf_threshold: float) -> Tensor:
    r"""What the teacher's channel is on average where it is negative: :math:`E[x \mid x < 0], x \sim N(b, w)`.

    .. math:: m = b - w \, \varphi(b/w) / \Phi(-b/w) \quad\text{if } \Phi(-b/w) > \text{threshold, else } -3w

    Args:
        norm: the BatchNorm that feeds the tap; w = \|weight\|, b = bias.
        cdf_threshold: in 0..1; channels that are negative more rarely get -3w.

    Returns:
        [C], all <= 0, in the weight's dtype (computed in float64).
    """
    # A channel of weight 0 is constant: a tiny w gives the limits of the formula, where 0 would give NaN.
    w, b = exact(norm.weight.detach()).abs().clamp(min=1e-12), exact(norm.bias.detach())
    below = torch.special.ndtr(-b / w)
    density = torch.exp(-0.5 * (b / w).square()) / math.sqrt(2 * math.pi)
    expected = b - w * density / below.clamp(min=1e-300)
    return torch.where(below > cdf_threshold, expected, -3 * w).to(norm.weight)


def partial_l2(student: Tensor, teacher: Tensor, margins: Tensor) -> Tensor:
    r"""Squared distance to the teacher's margin ReLU, blind where both are on the right side of zero.

    .. math:: \frac1N \sum (s - \tau)^2 \, [\, s > \tau \text{ or } \tau > 0 \,], \quad \tau = \max(t, m_c)

    Args:
        student: [N,C,H,W], after the connector.
        teacher: [N,C,H,W]; pooled to the student's height and width (adaptive average) where these differ.
        margins: [C], see :func:`margin`.

    Returns:
        A scalar >= 0, float32 for half-precision maps: the sum over C, H, W, averaged over N.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if student.shape[2:] != teacher.shape[2:]:
        teacher = pooled(teacher, student.shape[2:])
    target = torch.maximum(teacher, margins.to(teacher.dtype).view(-1, 1, 1))
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0.0).square().flatten(1).sum(1).mean()


class Connector(nn.Module):
    """1x1 convolution without bias, BatchNorm: [N,inputs,H,W] -> [N,outputs,H,W]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.normal_(self.conv.weight, std=math.sqrt(2.0 / outputs))

    def forward(self, maps: Tensor) -> Tensor:
        return self.bn(self.conv(maps))


def norm_before(network: nn.Module, path: str, channels: int) -> nn.BatchNorm2d | None:
    """The BatchNorm on the main path to a tapped value, found by the names of modules alone.

    Args:
        network: the teacher.
        path: of the tap: a module (its output counts), or ``module:input``.
        channels: C of the tapped map; BatchNorms of another width do not count.

    Returns:
        The tapped module itself, or the last one within it; for an input, the last one among its neighbours in
        the same block (in a Sequential: before it). So residual blocks give the last BatchNorm of their branch, not
        the shortcut's, as the authors chose. None: no such BatchNorm with weight and bias.
    """
    module_path, _, is_input = path.partition(":")
    if not is_input:
        return _last_norm(network.get_submodule(module_path), channels)
    parent_path, _, name = module_path.rpartition(".")
    parent = network.get_submodule(parent_path)
    if not isinstance(parent, nn.Sequential):
        return _own_norm(parent, channels)
    before = list(parent)[: list(dict(parent.named_children())).index(name)]
    return next((norm for child in reversed(before) if (norm := _last_norm(child, channels)) is not None), None)


def _fits(module: nn.Module, channels: int) -> TypeGuard[nn.BatchNorm2d]:
    return isinstance(module, nn.BatchNorm2d) and module.num_features == channels and module.affine


def _own_norm(module: nn.Module, channels: int) -> nn.BatchNorm2d | None:
    """The last of the module's direct children that is a fitting BatchNorm."""
    return next((child for child in reversed(list(module.children())) if _fits(child, channels)), None)


def _last_norm(module: nn.Module, channels: int) -> nn.BatchNorm2d | None:
    if _fits(module, channels):
        return module
    found = _own_norm(module, channels)
    children = reversed(list(module.children()))
    return found or next((norm for child in children if (norm := _last_norm(child, channels)) is not None), None)


class OverhaulOfFeatureDistillation(Term):
    r"""Weighted sum over taps of the partial L2 distance between pre-activation maps.

    .. math:: \sum_{i=1}^n 2^{i-n} \frac1N \sum (r_i(s_i) - \tau_i)^2 \,
              [\, r_i(s_i) > \tau_i \text{ or } \tau_i > 0\,], \quad \tau_i = \max(t_i, m_i)

    The connectors r (1x1 convolution without bias, BatchNorm) are trained beside the student as ``connector.<tap>``.
    The margins m are constants of the teacher's BatchNorms. The teacher answers in eval mode, as everywhere in
    kdstream (the authors leave it in train mode).

    Source: Heo et al. 2019 (arXiv:1904.01866), sections 3.2 and 3.3; weights and threshold are those of the
    authors' code. Their outer weight is 0.001 for CIFAR and 0.0001 for ImageNet.

    Args:
        taps: the student's maps before the ReLU, shallow to deep. Default ``block*.pre``: all blocks that both networks
            have. Of MobileNetV2 these are the outputs of linear bottlenecks, as in RepDistiller and mdistiller; the
            authors' own MobileNetV2 (for segmentation) takes what precedes the first ReLU of the unit that follows.
        teacher_taps: the teacher's, in the same order; the same names by default.
        layer_weights: one number >= 0 a tap; 2^(i-n) by default (of three taps 1/4, 1/2, 1). A tap of weight 0 is left
            out of loss and training.
        cdf_threshold: see :func:`margin`, in 0..1. Default 0.001.
        teacher_norms: module paths of the teacher's BatchNorms that feed its taps, one a tap. By default
            :func:`norm_before` finds them.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map; no BatchNorm before a tap.
    """

    def __init__(
        self,
        taps: Blocks = ("block*.pre",),
        teacher_taps: Taps | None = None,
        layer_weights: Weights | None = None,
        cdf_threshold: Probability = 0.001,
        teacher_norms: Taps | None = None,
    ):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("ofd", taps, teacher_taps)
        self.layer_weights: Sequence[float] = layer_weights or ()  # without taps by name, known in setup
        self.cdf_threshold = cdf_threshold
        self.teacher_norms = teacher_norms
        self._need_one_a_tap()

    def _need_one_a_tap(self) -> None:
        for name, values in (("layer_weights", self.layer_weights), ("teacher_norms", self.teacher_norms)):
            if values:
                need_one_a_tap("ofd", name, values, self.student_taps)

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("ofd", task)
        self._need_one_a_tap()
        count = len(self.student_taps)
        if not self.layer_weights:
            self.layer_weights = [2.0 ** (i + 1 - count) for i in range(count)]
        self.connector = nn.ModuleDict()
        for i, (ours, theirs, weight) in enumerate(
            zip(self.student_taps, self.teacher_taps, self.layer_weights, strict=True)
        ):
            need_maps("ofd", ours, theirs, student.features[ours], teacher.features[theirs])
            channels = teacher.features[theirs].shape[1]
            connector = Connector(student.features[ours].shape[1], channels)
            self.connector[module_name(ours)] = connector.requires_grad_(weight > 0)
            norm = self._norm(task, i, channels)
            self.register_buffer(f"margin_{module_name(ours)}", margin(norm, self.cdf_threshold))

    def _norm(self, task: Task, i: int, channels: int) -> nn.BatchNorm2d:
        """The BatchNorm before the teacher's i-th tap."""
        tap, network = self.teacher_taps[i], getattr(task.teacher, "module", None)
        advice = (
            "name one a tap by teacher_norms: [module path, ...], or choose other teacher_taps (before a ReLU, after "
            "a BatchNorm)"
        )
        if self.teacher_norms is not None:
            path = self.teacher_norms[i]
            found = dict(network.named_modules()).get(path) if network is not None else None
            if found is None or not _fits(found, channels):
                raise UserError(
                    f"ofd: teacher_norms: the teacher has no BatchNorm2d of {channels} channels with weight and bias "
                    f"at {path!r}, for its tap {tap!r}"
                )
            return found
        place = getattr(task.teacher, "paths", {}).get(tap)
        norm = norm_before(network, place, channels) if network is not None and place is not None else None
        if norm is None:
            raise UserError(
                f"ofd: no BatchNorm of {channels} channels found before the teacher's tap {tap!r}, so it has no "
                f"margins; {advice}"
            )
        return norm

    def margins(self, tap: str) -> Tensor:
        """[C'], of the teacher's map that is paired with the student's ``tap``."""
        return self.get_buffer(f"margin_{module_name(tap)}")

    def distance(self, tap: str, student: Tensor, teacher: Tensor) -> Tensor:
        """The partial L2 distance at ``tap``, unweighted: [N,C,H,W], [N,C',H',W'] -> scalar."""
        predicted = self.connector[module_name(tap)](at_least_float32(student))
        return partial_l2(predicted, teacher, self.margins(tap))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return total(
            weight * self.distance(ours, student.features[ours], teacher.features[theirs])
            for ours, theirs, weight in zip(self.student_taps, self.teacher_taps, self.layer_weights, strict=True)
            if weight > 0
        )
