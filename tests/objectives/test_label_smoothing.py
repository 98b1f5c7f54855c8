"""label_smoothing: it is torch's, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, labels, logits, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.ce import CrossEntropy
from kdstream.objectives.label_smoothing import LabelSmoothing


@given(seeds, st.floats(0, 1))
@settings(max_examples=20)
def test_label_smoothing_is_torchs(seed, epsilon):
    ours, label = logits(seed), labels(seed)
    value = LabelSmoothing(epsilon=epsilon)(Outputs(ours), None, batch(label=label))
    torch.testing.assert_close(value, F.cross_entropy(ours, label, label_smoothing=epsilon))


def test_label_smoothing_without_its_share_is_cross_entropy():
    term, ours, drawn = LabelSmoothing(epsilon=0), Outputs(logits(0)), batch(label=labels(0))
    assert term.uses_teacher is False
    torch.testing.assert_close(term(ours, None, drawn), CrossEntropy()(ours, None, drawn))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"label_smoothing": {"epsilon": 1.1}},
            "label_smoothing: epsilon must be a finite number >= 0 and at most 1, got 1.1",
        ),
        (
            {"label_smoothing": {"epsilon": -0.1}},
            "label_smoothing: epsilon must be a finite number >= 0 and at most 1, got -0.1",
        ),
    ],
)
def test_label_smoothing_refuses_settings_out_of_range(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).startswith(message)
