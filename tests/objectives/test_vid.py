"""vid: the variance that it starts from, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import activations, batch, ready

from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES


@pytest.mark.parametrize("variance", [2e-5, 5.0, 2000.0])
def test_vid_starts_at_the_variance_that_was_asked_for(variance):
    term = ready("vid", init_pred_var=variance)
    scale = term.vid["block2"].log_scale.double()
    assert torch.log1p(scale.exp()).where(scale < 700, scale)[0].item() + 1e-5 == pytest.approx(variance, rel=1e-3)
    zeros = activations(3, 0).map(torch.zeros_like)
    expected = 3 * 0.5 * torch.tensor(variance, dtype=torch.float64).log().item()
    assert term(zeros, zeros, batch(3)).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"eps": 1, "init_pred_var": 1}, "vid: init_pred_var must be a finite number > 1, got 1"),
        ({"taps": ["block1", "block1.pre"]}, "vid: taps holds one block twice: block1, block1.pre"),
    ],
)
def test_vid_refuses_settings(settings_, message):
    with pytest.raises(UserError) as caught:
        OBJECTIVES.find("vid")(**settings_)
    assert str(caught.value).startswith(message)
