"""ONE: a network with several branches learns from their gated ensemble (Lan et al. 2018)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.notes import spec_of
from kdstream.objectives.common.checks import need_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative, Positive, whole
from kdstream.objectives.term import Build, Task, Term

if TYPE_CHECKING:
    from kdstream.models.branches import Branched


def ensemble_kl(branches: Tensor, ensemble: Tensor, temperature: float, eps: float = 0.0) -> Tensor:
    r"""Divergence of every branch from the ensemble, which is a constant to it.

    .. math:: \sum_b \frac{T^2}{N} \sum_n \sum_c P_{nc} (\log P_{nc} - \log \sigma(z_{nb}/T)_c), \quad
              P = \sigma(z_e/T) + \epsilon

    Args:
        branches: logits [N,m,C].
        ensemble: logits [N,C].
        temperature: T > 0.
        eps: epsilon >= 0.
    """
    log_q = F.log_softmax(at_least_float32(branches) / temperature, dim=-1)
    log_p = F.log_softmax(at_least_float32(ensemble.detach()) / temperature, dim=-1)
    p = log_p.exp() + eps
    log_p = p.log() if eps else log_p
    return temperature**2 * (p[:, None] * (log_p[:, None] - log_q)).sum() / len(branches)


def branch_cross_entropies(branches: Tensor, label: Tensor) -> Tensor:
    """Each branch's batch mean: logits [N,m,C], labels int64 [N] or their shares [N,C] -> [m]."""
    count = branches.shape[1]
    costs = F.cross_entropy(
        at_least_float32(branches).flatten(0, 1), label.repeat_interleave(count, dim=0), reduction="none"
    )
    return costs.view(-1, count).mean(0)


class OnTheFlyNativeEnsemble(Term):
    r"""Label losses of the branches and of their ensemble, and the branches' divergence from the ensemble.

    .. math:: \lambda \Big(\sum_b \mathrm{CE}(z_b, y) + \mathrm{CE}(z_e, y)\Big) + r D, \quad r = e^{-5 (1 - e/E)^2}

    D is :func:`ensemble_kl`; e counts the epochs of the main phase from 0. The student's last stage is made anew for
    each branch; a gate, which sees the pooled output of the last shared stage, joins their logits to z_e. A complete
    loss: the recipe needs no ``ce`` beside it. Terms beside it see the answer of what is exported.

    Source: Lan et al. 2018 (arXiv:1806.04606), section 3, and the authors' code for epsilon and for r. Sarfraz et al.,
    "Knowledge Distillation Beyond Model Compression", Table I and section III: T = 3, three branches, the
    classification branch counts.

    Args:
        branches: how many, >= 2.
        temperature: T > 0.
        export: "branch" = the student that the recipe asks for, with the first branch; "branches" = the same, and the
            other branches are evaluated as networks of their own, ``branch2`` and so on, of which ``export_network:
            best`` takes the best; "ensemble" = all branches and the gate, a larger network. This is also what
            evaluation measures.
        ramp: E, epochs over which the divergence gains its weight; null: 4/15 of the main phase (80 of 300 epochs, as
            in the authors' code); 0: r = 1.
        labels: lambda >= 0.
        eps: epsilon >= 0, added to the ensemble's probabilities.

    Raises:
        UserError: a setting out of range; a student that cannot be branched; a single class.
    """

    uses_teacher = False

    def __init__(
        self,
        branches: Annotated[int, whole(2)] = 3,
        temperature: Positive = 3.0,
        export: Literal["branch", "branches", "ensemble"] = "branch",
        ramp: NotNegative | None = None,
        labels: NotNegative = 1.0,
        eps: NotNegative = 1e-7,
    ):
        super().__init__()
        self.branches = branches
        self.temperature = temperature
        self.export = export
        self.ramp = ramp
        self.labels = labels
        self.eps = eps
        self.gain = 1.0
        self.others: list[nn.Module] = []  # no submodules: they share the student's weights
        self.exports = f"{'all' if export == 'ensemble' else 'the first of'} its {self.branches} branches"

    def adapt(self, student: nn.Module, teacher: nn.Module | None, image: Tensor, build: Build) -> nn.Module:
        # The taps of the branched network: before, the student has none of these names.
        self.student_taps = ("branches", "ensemble")
        spec = spec_of(student)
        base = {key: value for key, value in spec.items() if key != "num_classes"}
        network: Branched = build(
            "kdstream.models.branches:Branched",
            num_classes=spec["num_classes"],
            base=base,
            branches=self.branches,
            answer="ensemble" if self.export == "ensemble" else "branch",
        )
        network.adopt(student, image)
        return network

    def setup(self, task: Task) -> None:
        need_classes("one", task, 2, "an answer to learn from")
        if task.student_outputs.features["branches"].shape[1] != self.branches:
            raise UserError("one: another term changed the student's branches; keep one of the two")

    def deploy(self, student: nn.Module) -> nn.Module:
        branched: Any = student  # what adapt has made of it
        if self.export == "branches":
            self.others = [branched.branch(i) for i in range(1, self.branches)]
        return student if self.export == "ensemble" else branched.branch()

    def peers(self) -> dict[str, nn.Module]:
        return {f"branch{i}": network for i, network in enumerate(self.others, 2)}

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        length = 4 / 15 * epochs if self.ramp is None else self.ramp
        self.gain = math.exp(-5 * (1 - epoch / length) ** 2) if epoch < length else 1.0

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        branches, ensemble = student.features["branches"], student.features["ensemble"]
        loss = self.gain * ensemble_kl(branches, ensemble, self.temperature, self.eps)
        if self.labels:
            own = F.cross_entropy(at_least_float32(ensemble), batch.target)
            loss = loss + self.labels * (branch_cross_entropies(branches, batch.target).sum() + own)
        return loss
