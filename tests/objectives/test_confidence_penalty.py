"""confidence_penalty: cross-entropy less entropy, and what it refuses."""

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
from kdstream.objectives.confidence_penalty import ConfidencePenalty


@given(seeds, st.floats(0, 2))
@settings(max_examples=20)
def test_confidence_penalty_is_cross_entropy_less_entropy(seed, eta):
    ours, label = logits(seed), labels(seed)
    value = ConfidencePenalty(eta=eta)(Outputs(ours), None, batch(label=label))
    entropy = torch.distributions.Categorical(logits=ours).entropy().mean()
    torch.testing.assert_close(value, F.cross_entropy(ours, label) - eta * entropy)


def test_confidence_penalty_without_its_share_is_cross_entropy():
    term, ours, drawn = ConfidencePenalty(eta=0), Outputs(logits(0)), batch(label=labels(0))
    assert term.uses_teacher is False
    torch.testing.assert_close(term(ours, None, drawn), CrossEntropy()(ours, None, drawn))


def test_confidence_penalty_refuses_a_weight_out_of_range():
    with pytest.raises(UserError, match=r"^confidence_penalty: eta must be a finite number >= 0, got -1"):
        parse_loss({"confidence_penalty": {"eta": -1}})
