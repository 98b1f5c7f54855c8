"""nkd: its value in plain probabilities, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, logits

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.nkd import NormalisedKD, nontarget_cross_entropy, target_part


def test_nkd_in_plain_probabilities():
    ours, theirs, label = logits(0, n=2, c=3), logits(1, n=2, c=3), torch.tensor([2, 0])
    others = [[0, 1], [1, 2]]
    target = -sum(
        theirs[n].softmax(0)[label[n]] * ours[n].log_softmax(0)[label[n]] for n in range(2)
    ) / 2  # fmt: skip
    rest = -sum((theirs[n, o] / 3).softmax(0) @ (ours[n, o] / 3).log_softmax(0) for n, o in enumerate(others)) / 2
    torch.testing.assert_close(target_part(ours, theirs, label), target)
    torch.testing.assert_close(nontarget_cross_entropy(ours, theirs, label, 3.0), rest)
    value = NormalisedKD()(Outputs(ours), Outputs(theirs), batch(label=label))
    torch.testing.assert_close(value, target + 3.5 * 9 * rest)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"nkd": {"gamma": -1}}, "nkd: gamma must be a finite number >= 0, got -1"),
        ({"nkd": {"temperature": None}}, "nkd: temperature must be a finite number > 0, got None"),
    ],
)
def test_nkd_refuses_settings_out_of_range(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).startswith(message)
