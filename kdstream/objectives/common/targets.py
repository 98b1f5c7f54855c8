"""Label losses for labels as they are and for those of mixed images, which are shares of several classes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def negative_log_likelihood(log_q: Tensor, target: Tensor) -> Tensor:
    """Batch mean of -log q on the target: log-probabilities [N,C]; labels int64 [N] or shares float [N,C] -> scalar."""
    return F.nll_loss(log_q, target) if target.dim() == 1 else -(target * log_q).sum(dim=1).mean()
