"""Contrastive representation distillation, with memory banks of all training samples (Tian et al. 2020)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.checks import need_teacher
from kdstream.objectives.common.contrast import Contrast
from kdstream.objectives.common.features import tap_pair
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.processes import join_samples, sum_over_processes
from kdstream.objectives.common.settings import Count, Fraction, OneTap, Positive, real, whole
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term

_DENSE = 16
"""Up to so many samples a negative, one matrix product with the whole bank is cheaper than gathering rows (measured on
a CPU: 16 against 450 nanoseconds for an entry, forward and backward)."""
_ROWS = {"cpu": 1 << 20}
"""Device -> numbers of a bank's rows that are gathered at once: what a CPU's cache holds; elsewhere 2^26."""


class Embedding(nn.Module):
    """A linear layer to the unit sphere: [N,...] -> [N,width]."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.linear = nn.Linear(inputs, width)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.linear(at_least_float32(features).flatten(1)), dim=1)


def similarities(anchor: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """Inner products of each anchor with the rows of the bank that are chosen for it.

    Args:
        anchor: [N,d].
        bank: [M,d].
        chosen: int64 [N,K], rows of the bank.

    Returns:
        [N,K]. Needs N*M numbers beside where the bank is small (M <= 16 K), and a constant number otherwise.
    """
    if _is_dense(bank, chosen):
        return (anchor @ bank.T).gather(1, chosen)
    step = max(1, _ROWS.get(bank.device.type, 1 << 26) // anchor.numel())
    parts = [torch.bmm(bank[columns], anchor[:, :, None]).squeeze(2) for columns in chosen.split(step, dim=1)]
    return torch.cat(parts, dim=1)


def weighted_rows(weights: Tensor, bank: Tensor, chosen: Tensor) -> Tensor:
    """Sums of the chosen rows of the bank, weighted: the gradient of :func:`similarities`.

    Args:
        weights: [N,K].
        bank: [M,d].
        chosen: int64 [N,K].

    Returns:
        [N,d].
    """
    if _is_dense(bank, chosen):
        return weights.new_zeros(len(weights), len(bank)).scatter_add_(1, chosen, weights) @ bank
    return F.embedding_bag(chosen, bank, per_sample_weights=weights, mode="sum")


def _is_dense(bank: Tensor, chosen: Tensor) -> bool:
    return len(bank) <= _DENSE * chosen.shape[1]


class CRD(Term):
    r"""Student and teacher recognise each other's embedding of a sample among those of other classes.

    .. math:: -\frac1N \sum_i \Big[\log \frac{x_{i0}}{x_{i0} + c + \epsilon}
              + \sum_{k=1}^{K} \log \frac{c}{x_{ik} + c + \epsilon}\Big], \quad
              x_{ik} = \frac{e^{\langle m_{ik}, v_i \rangle / T}}{Z}, \quad c = K/n

    for the student's embedding v against the bank of the teacher's (m), plus the same for the teacher's embedding
    against the bank of the student's; k = 0 is the positive. Z is n times the mean exponential of the first global
    batch and stays. Both embeddings (linear, unit length) are trained, the teacher's too. After the loss, the banks'
    rows of the batch become normalise(momentum * old + (1 - momentum) * new), on all processes alike.

    Source: Tian et al. 2020 (arXiv:1910.10699), eq. (18); Z and epsilon as in the authors' code. Outer weight
    0.8 (there, and with WTTM in Zheng & Yang 2024, appendix A.5).

    Args:
        feat_dim: d, the embeddings' width. Default 128, as all defaults that of the authors' code.
        nce_k: K, negatives a sample. Drawn on the device from the sample's random key (:class:`Contrast`); without
            repetition unless the other classes have fewer samples.
        nce_t: temperature T >= 0.02 (the exponentials overflow float32 below).
        nce_m: momentum of the banks, in 0..1.
        mode: "exact": the positive is the sample itself; "relax": any sample of its class.
        eps: epsilon > 0.
        taps: the student's feature, flattened to [N,D].
        teacher_taps: the teacher's; the same name by default.

    The banks take 2 n d floats on every process. A step needs about 22 N K further ones at most (10 N K of them to draw
    the negatives, which int64 numbers are): where n <= 16 K, the similarities to a whole bank are among them, N n;
    where n is larger, the banks' rows are gathered by and by, 2^26 numbers at once (2^20 on a CPU) beside the rest.

    Raises:
        UserError: a setting out of range; no teacher; classes unknown or only one.
    """

    keeps = "an embedding of each sample"
    replicated = ("memory_v1", "memory_v2", "Z_v1", "Z_v2", "draw")

    memory_v1: Tensor
    memory_v2: Tensor
    Z_v1: Tensor
    Z_v2: Tensor

    def __init__(
        self,
        feat_dim: Annotated[int, whole(2)] = 128,
        nce_k: Count = 16384,
        nce_t: Annotated[float, real(at_least=0.02)] = 0.07,
        nce_m: Fraction = 0.5,
        mode: Literal["exact", "relax"] = "exact",
        eps: Positive = 1e-7,
        taps: OneTap = "penultimate",
        teacher_taps: OneTap | None = None,
    ):
        super().__init__()
        self.feat_dim = feat_dim
        self.nce_k = nce_k
        self.nce_t = nce_t
        self.nce_m = nce_m
        self.mode = mode
        self.eps = eps
        self.student_taps, self.teacher_taps = tap_pair(taps, teacher_taps)

    def setup(self, task: Task) -> None:
        teacher = need_teacher("crd", task)
        if task.labels is None:
            raise UserError("crd: needs the class of every training sample, which this data set does not tell")
        ours, theirs = task.student_outputs.features[self.student_taps[0]], teacher.features[self.teacher_taps[0]]
        self.embed_s = Embedding(ours[0].numel(), self.feat_dim)
        self.embed_t = Embedding(theirs[0].numel(), self.feat_dim)
        self.draw = Contrast(task.labels, self.nce_k, self.mode == "relax")
        bound = 1 / math.sqrt(self.feat_dim / 3)
        for view in ("v1", "v2"):  # v1: the student's, v2: the teacher's
            bank = torch.empty(task.num_samples, self.feat_dim).uniform_(-bound, bound)
            self.register_buffer(f"memory_{view}", bank)
            self.register_buffer(f"Z_{view}", torch.zeros(()))  # 0: not known yet

    def contrast(self, batch: Batch) -> Tensor:
        """Rows of the banks to compare each sample with: int64 [N,1+K], the positive first."""
        return self.draw(batch.index, batch.rng_key)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return total(self.sides(student, teacher, batch))

    def sides(self, student: Outputs, teacher: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two summands, of the student's and of the teacher's anchor; a step of the banks, too."""
        ours, theirs = student.features[self.student_taps[0]], teacher.features[self.teacher_taps[0]]
        # In half precision, 1 / T would make percents of an embedding's rounding.
        with torch.autocast(ours.device.type, enabled=False):
            v1, v2 = self.embed_s(ours), self.embed_t(theirs)
            with torch.no_grad():
                chosen = self.contrast(batch)
                anchors, banks = (v1.detach(), v2.detach()), (self.memory_v2, self.memory_v1)
                scores = [
                    similarities(anchor, bank, chosen).div_(self.nce_t)
                    for anchor, bank in zip(anchors, banks, strict=True)
                ]
                positives = [score[:, 0].clone() for score in scores]
                exponentials = [score.exp_() for score in scores]
                self._normalise(exponentials)
                found = [
                    self._value(*of_one, chosen)
                    for of_one in zip(exponentials, positives, (self.Z_v1, self.Z_v2), banks, strict=True)
                ]
                self._remember(batch.index, *anchors)
        # Value and gradient are there already, from the banks before their update; this joins them: it adds 0.
        return tuple(
            value + ((v - v.detach()) * gradient).sum() for v, (value, gradient) in zip((v1, v2), found, strict=True)
        )

    def _normalise(self, exponentials: list[Tensor]) -> None:
        """Set Z from the global batch, where it is not known yet. (A branch would wait for the device.)"""
        sums = torch.stack([values.mean(dim=1).sum() for values in exponentials])
        count = sums.new_full((1,), len(exponentials[0]))
        *totals, samples = sum_over_processes(torch.cat([sums, count])).unbind()
        for z, summed in zip((self.Z_v1, self.Z_v2), totals, strict=True):
            z.copy_(torch.where(z > 0, z, summed / samples * len(self.memory_v1)))

    def _value(
        self, exponentials: Tensor, positive: Tensor, z: Tensor, bank: Tensor, chosen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One anchor's summand and its gradient by the anchor.

        Args:
            exponentials: exp(<m, v> / T) [N,1+K]; overwritten.
            positive: <m, v> / T of the positives [N].
            z: Z.
            bank, chosen: where the m stand.
        """
        c = (exponentials.shape[1] - 1) / len(bank)
        positive = positive - z.log() - math.log(c)
        x = exponentials.div_(z)
        shifted = x + self.eps
        value = ((shifted / c).log1p_().sum(dim=1) - positive).mean()
        weights = x.div_(shifted.add_(c))
        weights[:, 0] -= 1
        return value, weighted_rows(weights, bank, chosen) / (self.nce_t * len(chosen))

    def _remember(self, index: Tensor, v1: Tensor, v2: Tensor) -> None:
        """Move the banks' rows of the global batch towards its embeddings."""
        index, v1, v2 = join_samples(index, v1, v2)
        for bank, new in ((self.memory_v1, v1), (self.memory_v2, v2)):
            rows = self.nce_m * bank[index] + (1 - self.nce_m) * new
            bank.index_copy_(0, index, F.normalize(rows, dim=1).to(bank.dtype))
