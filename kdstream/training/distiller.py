"""Distiller: the student and the terms of its loss as one module, so that one wrapper distributes them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from kdstream.objectives import Phase, Term, WeightedTerm
from kdstream.types import Batch, Outputs


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

    Args:
        student: images [N,3,H,W] -> Outputs, with the taps that the terms read.
        terms: of the loss, set up.
        layout: memory format of the images.
    """

    def __init__(
        self, student: nn.Module, terms: Sequence[WeightedTerm], layout: torch.memory_format = torch.contiguous_format
    ):
        super().__init__()
        self.layout = layout
        self.student = student
        self.terms = nn.ModuleList(term for _, _, term in terms)
        self._names = [(name, weight) for name, weight, _ in terms]
        self._frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.stage = self.stages()[-1]
        # The name under which DistributedDataParallel looks for what it need not send.
        self._ddp_params_and_buffers_to_ignore = [
            f"terms.{number}.{name}"
            for number, (_, _, term) in enumerate(terms)
            for name, _ in term.named_buffers()
            if any(f"{name}.".startswith(f"{place}.") for place in term.replicated)
        ]

    def _all_terms(self) -> list[tuple[str, float, Term]]:
        return [(name, weight, term) for (name, weight), term in zip(self._names, self.terms, strict=True)]  # type: ignore[misc]

    def stages(self) -> list[Stage]:
        """The phases of every term in order, then the main one with the weighted sum of the terms."""
        stages = [
            Stage(phase.name, [(name, 1.0, getattr(term, phase.loss))], phase.trains, phase)
            for name, _, term in self._all_terms()
            for phase in term.phases()
        ]
        main = [(name, weight, term.__call__) for name, weight, term in self._all_terms() if term.in_main]
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
        values = [loss(student, batch.teacher, batch) for _, _, loss in self.stage.losses]
        total = sum(
            (weight * value for (_, weight, _), value in zip(self.stage.losses, values, strict=True)),
            start=torch.zeros((), device=student.logits.device),
        )
        return total, torch.stack([value.detach().float() for value in values]), student.logits.detach()

    def begin(self, stage: Stage, probe: Batch) -> list[nn.Parameter]:
        """Make ``stage`` the current one.

        Args:
            stage: one of :meth:`stages`.
            probe: a small batch; one forward and backward pass over it finds the parameters that the stage's loss
                reaches. Buffers and random state are left as they were.

        Returns:
            The parameters to optimise; all others are frozen (no weight decay creeps into layers above a hint, and
            every process knows which gradients to wait for), and so are those that were when the distiller was made.
        """
        self.stage = stage
        self.requires_grad_(False)
        if stage.trains == "nothing":
            return []
        reachable = [
            parameter
            for name, parameter in self.named_parameters()
            if name not in self._frozen and (stage.trains == "student" or name.startswith("terms."))
        ]
        for parameter in reachable:
            parameter.requires_grad_(True)
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self.train()
        with torch.random.fork_rng([probe.image.device] if probe.image.is_cuda else []):
            loss, _, _ = self(probe)
            if loss.requires_grad:
                loss.backward()
        for name, buffer in self.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        for parameter in reachable:
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        return [parameter for parameter in reachable if parameter.requires_grad]
