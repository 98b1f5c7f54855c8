"""Sums over an epoch: accuracy, losses, how peaky the teacher's answers were, which JPEG qualities were chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdstream.batch import Batch


@dataclass
class Sums:
    """What is summed over an epoch, on the device, in float64; saved with every checkpoint."""

    names: list[str]
    device: torch.device
    values: Tensor = field(init=False)
    qualities: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # samples, correct, loss, teacher's entropy and its square, ground-truth probability and its square, terms...
        self.values = torch.zeros(7 + len(self.names), dtype=torch.float64, device=self.device)
        self.qualities = torch.zeros(102, dtype=torch.int64, device=self.device)

    def add(self, batch: Batch, loss: Tensor, terms: Tensor, logits: Tensor) -> None:
        """Count one step."""
        peaky = [torch.zeros((), dtype=torch.float64, device=self.device)] * 4
        if batch.teacher is not None:
            log_p = torch.log_softmax(batch.teacher.logits.double(), dim=1)
            entropy = -(log_p.exp() * log_p).sum(1)
            truth = log_p.gather(1, batch.label[:, None])[:, 0].exp()
            peaky = [entropy.sum(), (entropy**2).sum(), truth.sum(), (truth**2).sum()]
        count = len(batch)
        correct = (logits.argmax(1) == batch.label).sum().double()
        head = torch.stack([torch.full_like(correct, count), correct, loss.double() * count, *peaky])
        self.values += torch.cat([head, terms.double() * count])
        if batch.quality is not None:
            self.qualities.index_add_(0, batch.quality + 1, torch.ones_like(batch.quality))

    def state_dict(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {"values": self.values.cpu(), "qualities": self.qualities.cpu()}

    def add_state(self, state: dict[str, Tensor]) -> None:
        """Add what a checkpoint holds of one process."""
        self.values += state["values"].to(self.device)
        self.qualities += state["qualities"].to(self.device)
