"""Deep mutual learning: a cohort of students teaches each other, without a teacher (Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs, logits_of
from kdstream.errors import UserError
from kdstream.notes import spec_of
from kdstream.objectives.common.checks import is_composed, need_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, NotNegative, Positive, checked
from kdstream.objectives.common.total import total
from kdstream.objectives.kd import softened_kl
from kdstream.objectives.term import Task, Term


def mutual_kl(logits: Sequence[Tensor], temperature: float) -> list[Tensor]:
    r"""How far each network is from the others, which are constants to it.

    .. math:: k_i = \frac1{K-1} \sum_{j \ne i} \frac1N \sum_n
              \mathrm{KL}\big(\sigma(z_{jn}/T) \,\|\, \sigma(z_{in}/T)\big)

    Args:
        logits: z, one float [N,C] a network, at least two.
        temperature: T > 0.

    Returns:
        K scalars >= 0 in nats, without the factor T^2.
    """
    return [
        total(softened_kl(own, other.detach(), temperature) for j, other in enumerate(logits) if j != i)
        / (len(logits) - 1)
        for i, own in enumerate(logits)
    ]


class DeepMutualLearning(Term):
    r"""Sum over the cohort (the student and its peers) of the label loss and the divergence from the others.

    .. math:: \sum_{i=1}^{K} \big(\lambda \, \mathrm{CE}(z_i, y) + T^2 k_i\big)

    k_i is :func:`mutual_kl`. All networks learn in the same step (the authors' alternate). A complete loss: the recipe
    needs no ``ce`` beside it. Every network is evaluated; the student is exported, or the best of all (the recipe's
    ``export_network: best``), or all of them (``export_all``).

    Source: Zhang et al. 2018 (arXiv:1706.00384), sections 3.2 and 3.4 (the mean over the other networks of a larger
    cohort; the authors' code adds them up). Sarfraz et al., "Knowledge Distillation Beyond Model Compression", Table I:
    T = 4, a cohort of 2 of one architecture, the best student counts (``export_network: best``).

    Args:
        peers: how many networks of the student's architecture learn beside it, >= 1; or a list of architectures, each
            a name that ``build`` knows or ``{model: name, options: {...}}``.
        temperature: T > 0. The paper has T = 1.
        labels: weight of each network's cross-entropy, >= 0.

    Raises:
        UserError: a setting out of range; a network that cannot be built; a single class.
    """

    uses_teacher = False

    def __init__(
        self,
        peers: int | str | Sequence[str | Mapping[str, Any]] = 1,
        temperature: Positive = 4.0,
        labels: NotNegative = 1.0,
    ):
        super().__init__()
        self.temperature = temperature
        self.labels = labels
        self.copies = 0
        if isinstance(peers, str | Mapping):
            peers = [peers]
        if isinstance(peers, Sequence) and not isinstance(peers, bytes):
            self.builds = tuple(_spec(peer) for peer in peers)
            if not self.builds:
                raise UserError("dml: peers is empty; name at least one network, or say how many copies of the student")
        else:
            self.copies = checked("dml", "peers", peers, Count)

    def setup(self, task: Task) -> None:
        need_classes("dml", task, 2, "an answer to learn from")
        specs = [{"num_classes": task.num_classes, **spec} for spec in self.builds]
        own = spec_of(task.student.module)
        if self.copies and is_composed(own):
            raise UserError(
                "dml: there can be no copies of a student that another term (one, simkd, ijckd) has changed; name the "
                "peers' networks, such as peers: [resnet8]"
            )
        specs += [own] * self.copies
        self.cohort = nn.ModuleList(task.build(**spec) for spec in specs)

    def peers(self) -> dict[str, nn.Module]:
        return {f"peer{i}": network for i, network in enumerate(self.cohort, 1)}

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        logits = [student.logits, *(logits_of(peer(batch.image)) for peer in self.cohort)]
        loss = self.temperature**2 * total(mutual_kl(logits, self.temperature))
        if self.labels:
            loss = loss + self.labels * total(F.cross_entropy(at_least_float32(z), batch.target) for z in logits)
        return loss


def _spec(peer: Any) -> dict[str, Any]:
    """What ``build`` takes for one entry of ``peers``."""
    if isinstance(peer, str) and peer:
        return {"name": peer}
    known = isinstance(peer, Mapping) and isinstance(peer.get("model"), str) and peer.keys() <= {"model", "options"}
    options = peer.get("options", {}) if known else None
    if not isinstance(options, Mapping) or not all(isinstance(key, str) and key != "num_classes" for key in options):
        raise UserError(f"dml: peers must hold names of networks or {{model: name, options: {{...}}}}, got {peer!r}")
    return {**options, "name": peer["model"]}
