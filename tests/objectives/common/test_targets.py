"""Label losses of labels and of shares of classes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kdstream.objectives.common.targets import negative_log_likelihood


def test_shares_weigh_the_losses_of_their_labels():
    log_q = torch.log_softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    one, other = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 1])
    shares = 0.7 * F.one_hot(one, 3) + 0.3 * F.one_hot(other, 3)
    expected = 0.7 * negative_log_likelihood(log_q, one) + 0.3 * negative_log_likelihood(log_q, other)
    torch.testing.assert_close(negative_log_likelihood(log_q, shares), expected)
    torch.testing.assert_close(negative_log_likelihood(log_q, one), -log_q.gather(1, one[:, None]).mean())
