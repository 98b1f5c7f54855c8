"""The classes beside the label, which DKD and NKD soften on their own."""

from __future__ import annotations

from torch import Tensor

ABSENT = -1e30
"""The label's logit where it is left out. Its exponential is 0; unlike -inf it stays finite times 0."""


def without_label(logits: Tensor, label: Tensor) -> Tensor:
    """The logits with the label's class left out of any softmax over them.

    Args:
        logits: float32 or float64 [N,C], already divided by the temperature.
        label: int64 [N].

    Returns:
        [N,C]; the label's entry is :data:`ABSENT` and has no gradient.
    """
    return logits.scatter(1, label[:, None], ABSENT)
