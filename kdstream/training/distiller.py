"""Distiller: the student and the terms of its loss as one module, so that one wrapper distributes them all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.objectives import Loss, Phase, WeightedTerm
from kdstream.objectives.loss import weighted_sum
from kdstream.tap_names import TWO_HEADS


@dataclass
class Stage:
    """One phase of a training: which losses count and what is trained.

    Attributes:
        name: "main" for the last.
        losses: (name, weight, term's method).
        trains: see :class:`~kdstream.objectives.term.Phase`.
        phase: the settings of a phase before the main one.
    """

    name: str
    losses: list[tuple[str, float, Callable[..., Tensor]]] = field(default_factory=list)
    trains: Literal["student", "term", "nothing"] = "student"
    phase: Phase | None = None


class Distiller(nn.Module):
    """Student and terms.

    Where the student has two heads (taps :data:`kdstream.tap_names.TWO_HEADS`, those of DeiT's distilled networks) and
    the main loss has terms with a teacher and terms without, these get the first head's logits, those the second one's
    (Touvron et al. 2021, arXiv:2012.12877, section 4). Otherwise all train the mean, which answers in evaluation.

    Args:
        student: images [N,3,H,W] -> Outputs, with the taps that the terms read.
        loss: its terms, set up.
        layout: memory format of the images.
    """

    def __init__(
        self, student: nn.Module, loss: Sequence[WeightedTerm], layout: torch.memory_format = torch.contiguous_format
    ):
        super().__init__()
        self.layout = layout
        self.student = student
        self.loss = loss if isinstance(loss, Loss) else Loss(loss)
        self.terms = nn.ModuleList(self.loss.terms)
        self._frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.stage = self.stages()[-1]
        self.reached: set[str] = set()
        asks = {term.uses_teacher for _, weight, term in self.loss.main if weight}
        self._two_heads = len(asks) == 2 and set(TWO_HEADS) <= set(getattr(student, "paths", ()))
        # The name under which DistributedDataParallel looks for what it need not send.
        self._ddp_params_and_buffers_to_ignore = [
            f"terms.{number}.{name}"
            for number, term in enumerate(self.loss.terms)
            for name, _ in term.named_buffers()
            if any(f"{name}.".startswith(f"{place}.") for place in term.replicated)
        ]

    def stages(self) -> list[Stage]:
        """The phases of every term in order, then the main one with the weighted sum of the terms."""
        stages = [
            Stage(phase.name, [(name, 1.0, getattr(term, phase.loss))], phase.trains, phase)
            for (name, _, term), phase in self.loss.phases()
        ]
        main = [(name, weight, term.__call__) for name, weight, term in self.loss.main]
        return [*stages, Stage("main", main)]

    def train(self, mode: bool = True) -> Distiller:
        """Training mode, except for the student in a stage that does not train it: its batch statistics stay."""
        super().train(mode)
        if self.stage.trains != "student":
            self.student.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of the current stage.

        Args:
            batch: images float [N,3,H,W], standardised; with the teacher's answer where a term needs it.

        Returns:
            loss (scalar), the unweighted value of each of the stage's losses (detached, [T]), the student's logits
            (detached, [N,C]).
        """
        # For the terms as well: some have networks of their own, or ask the student again.
        batch = replace(batch, image=batch.image.contiguous(memory_format=self.layout))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage.trains == "student"):
            student: Outputs = self.student(batch.image)
        losses = [(weight, loss) for _, weight, loss in self.stage.losses]
        if self._two_heads and self.stage.phase is None:
            each = zip(losses, (term.uses_teacher for _, _, term in self.loss.main), strict=True)
            losses = [(weight, _of_head(loss, TWO_HEADS[asks])) for (weight, loss), asks in each]
        total, values = weighted_sum(losses, student, batch.teacher, batch)
        if torch.is_grad_enabled() and not total.requires_grad:
            # A batch with nothing to learn from (none of the samples that a term wants): a step like any other.
            trained = next((parameter for parameter in self.parameters() if parameter.requires_grad), None)
            total = total if trained is None else _Unreached.apply(total, trained)
        return total, values, student.logits.detach()

    def begin(self, stage: Stage, probe: Batch) -> list[nn.Parameter]:
        """Make ``stage`` the current one.

        Args:
            stage: one of :meth:`stages`.
            probe: a small batch, for :meth:`look`.

        Returns:
            The parameters to optimise: all that the stage may train. Frozen are the others, and those that were when
            the distiller was made. What the stage's loss reaches is for every batch to say (layers above a hint are
            reached by none, a layer that is skipped at random by some): the rest gets no gradient (None, not zero), and
            torch's optimizers leave alone what has none.
        """
        self.stage, self.reached = stage, set()
        self.requires_grad_(False)
        if stage.trains == "nothing":
            return []
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(
                name not in self._frozen and (stage.trains == "student" or name.startswith("terms."))
            )
        self.look(probe)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def look(self, batch: Batch) -> None:
        """Add to ``reached`` the names of the parameters that the stage's loss of ``batch`` reaches.

        One batch shows what is reached, not what is unreachable. Gradients, buffers and random state are left as they
        were.
        """
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self.train()
        with torch.random.fork_rng([batch.image.device] if batch.image.is_cuda else []):
            self(batch)[0].backward()
        for name, buffer in self.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        for name, parameter in self.named_parameters():
            if parameter.grad is not None:
                self.reached.add(name)
                parameter.grad = None

    def frozen(self) -> list[str]:
        """What the current stage does not train, by the names of the largest modules of which it trains nothing."""
        return self._places({name for name, parameter in self.named_parameters() if not parameter.requires_grad})

    def unreached(self) -> list[str]:
        """What the current stage may train and no loss has reached yet, named in the same way."""
        may = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return self._places(may - self.reached)

    def _places(self, chosen: Collection[str]) -> list[str]:
        others = [f"{name}." for name, _ in self.named_parameters() if name not in chosen]
        places: dict[str, None] = {}
        for name in (name for name, _ in self.named_parameters() if name in chosen):
            parts = name.split(".")
            ends = range(1 if parts[0] == "student" else 2, len(parts) + 1)
            prefixes = [".".join(parts[:end]) for end in ends]
            places[next(one for one in prefixes if not any(other.startswith(f"{one}.") for other in others))] = None
        return [self._said(place) for place in places]

    def _said(self, place: str) -> str:
        """A place as a recipe would: "student.layer3" for student.module.layer3, "crd.embed_s" for terms.1.embed_s."""
        owner, *rest = place.split(".")
        if owner == "student":
            return ".".join([owner, *(rest[1:] if rest[:1] == ["module"] else rest)])
        return ".".join([self.loss[int(rest[0])].name, *rest[1:]])


def _of_head(loss: Callable[..., Tensor], head: str) -> Callable[..., Tensor]:
    """A term's loss, for the logits of one of the student's heads."""

    def of_head(student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return loss(replace(student, logits=student.features[head]), teacher, batch)

    return of_head


class _Unreached(torch.autograd.Function):
    """A loss that depends on nothing, as a loss that can be differentiated: by it, no parameter gets a gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, parameter: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None
