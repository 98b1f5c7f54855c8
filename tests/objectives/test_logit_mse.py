"""logit_mse: a mean over classes or a sum."""

from __future__ import annotations

import pytest
import torch
from builders import no_labels

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.logit_mse import LogitMatching, logit_distance


def test_logit_mse_is_a_mean_over_classes_or_a_sum():
    ours, theirs = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert LogitMatching()(Outputs(ours), Outputs(theirs), no_labels(2)).item() == pytest.approx(14 / 4)
    assert LogitMatching(classes="sum")(Outputs(ours), Outputs(theirs), no_labels(2)).item() == pytest.approx(7)
    assert logit_distance(ours, ours).item() == 0
    with pytest.raises(UserError, match="logit_mse: classes must be mean or sum, got 'max'"):
        LogitMatching(classes="max")
