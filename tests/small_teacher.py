"""A small teacher for streams, and a batch for it to see."""

from __future__ import annotations

import torch
from torch import nn

from kdstream.batch import Batch, Outputs
from kdstream.rng import sample_keys

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class Net(nn.Module):
    """A small random teacher that reacts to detail, with one tap; counts what it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.fc = nn.Linear(16, 4)
        self.seen = 0

    def forward(self, images):
        assert not self.training
        self.seen += len(images)
        maps = self.conv(images).relu()
        return Outputs(self.fc(maps.mean((2, 3))) * 20, {"maps": maps})


def batch_of(count: int = 12, side: int = 16) -> Batch:
    """Random pixels uint8 of four classes."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    index = torch.arange(count)
    return Batch(image, index % 4, index, rng_key=sample_keys(0, 0, index))


def run(chain, batch, net):
    """What a chain makes of one batch, whose teacher is the net."""
    known = {"teacher": net, "teacher_mean": MEAN, "teacher_std": STD}
    return next(chain.bind(known)(iter([batch])))
