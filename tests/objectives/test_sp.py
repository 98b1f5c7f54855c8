"""sp: its similarities, the sum over taps, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import activations, batch, maps, ready
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES
from kdstream.objectives.sp import similarities


def test_sp_similarities_are_unit_rows_of_inner_products():
    features = maps(3, 4, 2, 2)
    rows = similarities(features)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    inner = [[(a * b).sum().item() for b in features] for a in features]
    torch.testing.assert_close(rows, F.normalize(torch.tensor(inner), dim=1))


def test_sp_sums_over_taps():
    term, student, teacher = ready("sp", taps=["block1", "block3"]), activations(4, 1), activations(4, 9)
    alone = [ready("sp", taps=tap)(student, teacher, batch(4)) for tap in ("block1", "block3")]
    torch.testing.assert_close(term(student, teacher, batch(4)), sum(alone))


def test_sp_refuses_settings():
    with pytest.raises(UserError, match=r"^sp: taps must be a list of tap names"):
        OBJECTIVES.find("sp")(taps=[])
