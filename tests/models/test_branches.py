"""A branched network: its gate, what each branch has of its own, and what cannot be branched."""

from __future__ import annotations

import pytest
import torch
from jobs import views

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.branches import Branched, Gate, join
from kdstream.models.taps import Tapped


def test_the_gate_weighs_the_branches_also_for_one_sample_in_training():
    torch.manual_seed(0)
    gate = Gate(6, 3).train()
    for count in (1, 5):
        before = gate.bn.running_mean.clone()
        weights = gate(torch.randn(count, 6))
        torch.testing.assert_close(weights.sum(1), torch.ones(count))
        assert gate.bn.running_mean.equal(before) == (count == 1)
    logits = torch.randn(2, 3, 4)
    torch.testing.assert_close(join(logits, torch.tensor([[0.0, 1, 0]]).expand(2, 3)), logits[:, 1])


def test_every_branch_has_weights_of_its_own_from_the_last_stage_on():
    torch.manual_seed(0)
    branched = Branched(5, {"name": "resnet8"}, branches=3)
    shared, own = build("resnet8", 5), branched.trunk.module
    assert sum(p.numel() for p in own.conv1.parameters()) == sum(p.numel() for p in shared.conv1.parameters())
    heads = [own.fc.copies[i].weight for i in range(3)]
    assert not any(heads[i].equal(heads[j]) for i in range(3) for j in range(i))
    last = sum(p.numel() for name in ("layer3", "fc") for p in shared.get_submodule(name).parameters())
    count = sum(p.numel() for p in shared.parameters()) + 2 * last + sum(p.numel() for p in branched.gate.parameters())
    assert sum(p.numel() for p in branched.parameters()) == count
    # One step's gradient reaches all of it.
    Tapped(branched, ["branches"])(views()).features["branches"].sum().backward()
    assert all(p.grad is not None for name, p in branched.named_parameters() if not name.startswith("gate"))


def test_batch_statistics_are_those_of_each_branch():
    torch.manual_seed(0)
    branched = Branched(5, {"name": "resnet8"}, branches=2).train()
    first = branched.branch().train()
    with torch.no_grad():
        torch.testing.assert_close(
            Tapped(branched, ["branches"])(views()).features["branches"][:, 0], first(views()), rtol=1e-4, atol=1e-5
        )


def test_a_branched_network_of_bad_settings_is_refused():
    with pytest.raises(UserError, match=r"2 branches or more, not 1"):
        Branched(5, {"name": "resnet8"}, branches=1)
    with pytest.raises(UserError, match=r"'ensemble' or its first 'branch', not 'all'"):
        Branched(5, {"name": "resnet8"}, answer="all")
