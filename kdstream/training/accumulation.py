"""Gradients of several batches and processes added up, so that every sample of a step of the optimizer counts alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdstream.stream.plan import Plan


@dataclass
class Accumulation:
    """The groups of batches between the steps of an optimizer.

    Attributes:
        plan: of the batches.
        size: batches in a group; an epoch's last one may be short.
        accelerator: of the processes, each of which sees a slice of every batch.
        seen: samples of the current group that this process has seen.
        step: the batch in hand, and whether it closes its group.
        closes: see ``step``.
    """

    plan: Plan
    size: int
    accelerator: Accelerator
    seen: int = 0
    step: int = 0
    closes: bool = True

    def share(self, step: int, count: int) -> float | Tensor:
        """By what the mean over this process's slice of a batch must be weighted, so that the processes' mean, summed
        over the group's batches, is the mean over all samples of the group.

        Args:
            step: of the epoch; steps come in order.
            count: samples in the slice.
        """
        self.step, self.seen = step, self.seen + count
        start, size = self._group()
        self.closes = step + 1 == start + size
        if size > 1:  # where stages drop samples, the gradients are corrected when all have been seen
            return count * self.accelerator.num_processes / self._planned()
        if self.accelerator.num_processes == 1:
            return 1.0
        total = self.accelerator.reduce(torch.full((), float(count), device=self.accelerator.device))
        return count * self.accelerator.num_processes / total

    def close(self, module: nn.Module) -> None:
        """Correct the gradients of a group that was weighted as planned where stages dropped samples of it."""
        seen, self.seen = self.seen, 0
        if self._group()[1] == 1:
            return
        planned = self._planned()
        if self.accelerator.num_processes == 1:
            if seen == planned:
                return
            factor: float | Tensor = planned / seen
        else:
            total = self.accelerator.reduce(torch.full((), float(seen), device=self.accelerator.device))
            shared: Tensor = planned / total
            if shared.device.type == "cpu" and shared == 1:
                return
            factor = shared
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _group(self) -> tuple[int, int]:
        """First batch of the current group, and how many it has."""
        start = self.step - self.step % self.size
        return start, min(self.size, self.plan.steps - start)

    def _planned(self) -> int:
        """Samples in the current group, all processes together, as planned."""
        start, size = self._group()
        return self.plan.bounds(start + size - 1)[1] - self.plan.bounds(start)[0]
