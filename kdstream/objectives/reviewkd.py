"""ReviewKD: fused maps of all the student's deeper stages answer to each of the teacher's (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.checks import need_teacher, tap_pairs
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Blocks, Count, Counts, Taps, Whole, module_name
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term


def hierarchical_context_loss(student: Tensor, teacher: Tensor, levels: Sequence[int] = (4, 2, 1)) -> Tensor:
    r"""Weighted mean of the mean squared errors of two maps at full size and pooled to l x l.

    .. math:: \frac{\mathrm{mse}(o, t) + \sum_{k \ge 1} 2^{-k} \, \mathrm{mse}(P_{l_k} o, P_{l_k} t)}{\sum_k 2^{-k}}

    Args:
        student, teacher: [N,C,H,W].
        levels: the l in order; those not below H are skipped and the weights move up.

    Returns:
        A scalar >= 0, float32 for half-precision maps.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for level in levels:
        if level < student.shape[2]:
            weight /= 2
            weights += weight
            ours, theirs = (F.adaptive_avg_pool2d(maps, level) for maps in (student, teacher))
            total = total + weight * F.mse_loss(ours, theirs)
    return total / weights


class AttentionBasedFusion(nn.Module):
    """One stage of the review: the student's map and the residual of the next deeper stage become one.

    Args:
        inputs: channels of the student's map.
        mid: channels of the residuals.
        outputs: channels of the teacher's map.
        fuses: False for the deepest stage, which has no residual to take.
    """

    def __init__(self, inputs: int, mid: int, outputs: int, fuses: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, mid, 1, bias=False)
        self.bn1 = _BatchNorm(mid)
        self.conv2 = nn.Conv2d(mid, outputs, 3, padding=1, bias=False)
        self.bn2 = _BatchNorm(outputs)
        self.att = nn.Conv2d(2 * mid, 2, 1) if fuses else None
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, maps: Tensor, residual: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Maps [N,inputs,H,W], residual [N,mid,*,*] -> output [N,outputs,*size], residual [N,mid,*size]."""
        x = self.bn1(self.conv1(maps))
        if self.att is not None:
            assert residual is not None
            residual = _resized(residual, x.shape[2:])
            ours, theirs = self.att(cat([x, residual], dim=1)).sigmoid().split(1, dim=1)
            x = x * ours + residual * theirs
        x = _resized(x, size)
        return self.bn2(self.conv2(x)), x


class _BatchNorm(nn.BatchNorm2d):
    """Uses its running statistics where a batch holds one value a channel (one sample, pooled), which has no spread."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return maps if tuple(maps.shape[2:]) == tuple(size) else F.interpolate(maps, tuple(size), mode="nearest")


def _as_maps(value: Tensor) -> Tensor:
    """[N,C,H,W] as it is, [N,D] as [N,D,1,1]."""
    value = at_least_float32(value)
    return value[:, :, None, None] if value.ndim == 2 else value


class ReviewKD(Term):
    r"""Sum over stages of the hierarchical context loss between the fused student and the teacher.

    .. math:: \sum_j \mathrm{HCL}(o_j, t_j), \quad (o_j, r_j) = \mathrm{ABF}_j(s_j, r_{j+1})

    From the deepest stage up, each residual r is resized (nearest) and fused into the next shallower map by two
    attention maps (:class:`AttentionBasedFusion`); a 3x3 convolution brings the result to the teacher's channels. The
    blocks are trained beside the student as ``abf.<tap>``. Sizes follow from the maps: each stage fuses at the
    student's height and width and answers at the teacher's.

    Source: Chen et al. 2021 (arXiv:2104.09044), sections 3.2 to 3.4, with the taps, inner width and warm-up of the
    authors' CIFAR-100 code: the student's maps after the ReLU, the teacher's before it, both with the pooled
    embedding. Outer weight there: 5 for most pairs, 0.6 to 8 for others.

    Args:
        taps: the student's, shallow to deep; maps [N,C,H,W] or vectors [N,D], which are maps of 1x1. Default: all
            blocks that both networks have, and the pooled embedding.
        teacher_taps: the teacher's, in the same order. By default ``<tap>.pre`` for every ``block``, else the same.
        mid_channels: width of the residuals. Default: that of the student's deepest tap, at most 512.
        hcl_levels: see :func:`hierarchical_context_loss`, whole numbers >= 1.
        warmup_epochs: epoch e = 1, 2, ... of the main phase counts min(e / warmup_epochs, 1). Default 20; 0 = none.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is neither map nor vector.
    """

    def __init__(
        self,
        taps: Blocks = ("block*", "penultimate"),
        teacher_taps: Taps | None = None,
        mid_channels: Count | None = None,
        hcl_levels: Counts = (4, 2, 1),
        warmup_epochs: Whole = 20,
    ):
        super().__init__()
        if teacher_taps is None:
            teacher_taps = [f"{name.removesuffix('.pre')}.pre" if name.startswith("block") else name for name in taps]
        self.student_taps, self.teacher_taps = tap_pairs("reviewkd", taps, teacher_taps)
        self.mid_channels = mid_channels
        self.hcl_levels = hcl_levels
        self.warmup_epochs = warmup_epochs
        self.ramp = 1.0

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("reviewkd", task)
        for role, outputs, taps in (("student", student, self.student_taps), ("teacher", teacher, self.teacher_taps)):
            for tap in taps:
                if outputs.features[tap].ndim not in (2, 4):
                    raise UserError(
                        f"reviewkd: tap {tap!r} of the {role} has shape {list(outputs.features[tap].shape)}, neither "
                        "that of a feature map [N,C,H,W] nor of a vector [N,D]; choose another tap"
                    )
        widths = [student.features[tap].shape[1] for tap in self.student_taps]
        mid = self.mid_channels or min(512, widths[-1])
        self.abf = nn.ModuleDict()
        for ours, theirs, width in zip(self.student_taps, self.teacher_taps, widths, strict=True):
            fuses = ours != self.student_taps[-1]
            self.abf[module_name(ours)] = AttentionBasedFusion(width, mid, teacher.features[theirs].shape[1], fuses)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.ramp = min((epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0

    def stage_losses(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """The hierarchical context loss of every stage: the student's tap -> scalar."""
        losses: dict[str, Tensor] = {}
        residual: Tensor | None = None
        for ours, theirs in reversed(list(zip(self.student_taps, self.teacher_taps, strict=True))):
            target = _as_maps(teacher.features[theirs])
            fusion = self.abf[module_name(ours)]
            output, residual = fusion(_as_maps(student.features[ours]), residual, target.shape[2:])
            losses[ours] = hierarchical_context_loss(output, target, self.hcl_levels)
        return losses

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.ramp * total(self.stage_losses(student, teacher).values())
