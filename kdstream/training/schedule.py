"""The learning rate as a pure function of how far the training is."""

from __future__ import annotations

import math

from kdstream.recipe import Schedule


def learning_rate(schedule: Schedule, base: float, epoch: int, fraction: float, epochs: int) -> float:
    """The rate of one optimizer step.

    Args:
        schedule: its shape.
        base: the rate after warm-up.
        epoch: counted from 0.
        fraction: share of the epoch that will be done after this step, in (0, 1].
        epochs: length of the training.

    Returns:
        ``step``: base * gamma^(milestones passed); ``cosine``: base * (end + (1 - end) (1 + cos(pi * progress)) / 2),
        progress counted from the end of the warm-up to the end of the last epoch; ``constant``: base. During warm-up
        that rate grows linearly from its start (a share of it).
    """
    done = epoch + fraction
    rate = base
    if schedule.name == "step":
        rate *= schedule.gamma ** sum(milestone <= epoch for milestone in schedule.milestones)
    elif schedule.name == "cosine":
        length = max(epochs - schedule.warmup, 1e-9)
        share = (1 + math.cos(math.pi * min(max(done - schedule.warmup, 0) / length, 1))) / 2
        rate *= schedule.end_factor + (1 - schedule.end_factor) * share
    if not schedule.warmup:
        return rate
    return rate * (schedule.start_factor + (1 - schedule.start_factor) * min(done / schedule.warmup, 1))
