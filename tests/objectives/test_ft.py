"""ft: its two forms, factors of unit length, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, maps, outputs, seeds, task
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdstream.errors import UserError
from kdstream.objectives.ft import FactorTransfer


@pytest.mark.parametrize("form", ["repdistiller", "paper"])
def test_ft_forms_differ_in_batch_norm_and_rounding(form):
    term = FactorTransfer(form=form, k=0.55, tap="block2")
    term.setup(task(outputs(block2=(3, 4, 4)), outputs(block2=(5, 4, 4))))
    public = form == "repdistiller"
    factor = 2 if public else 3
    assert term.paraphraser.encoder.conv3.out_channels == term.translator.conv3.out_channels == factor
    assert any(isinstance(module, nn.BatchNorm2d) for module in term.translator.modules()) == public
    assert not any(isinstance(module, nn.BatchNorm2d) for module in term.paraphraser.modules())
    assert not any("bn" in name for name, _ in term.paraphraser.named_parameters())


@given(seeds, st.sampled_from(["repdistiller", "paper"]), st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_ft_normalised_factors_have_unit_length_and_no_scale(seed, form, scale):
    term, factor = FactorTransfer(form=form), maps(3, 4, 3, 3, seed=seed)
    found = term.normalised(factor)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(term.normalised(scale * factor), found, rtol=1e-4, atol=1e-6)
    assert found.shape == (3, 9 if form == "repdistiller" else 36)


@pytest.mark.parametrize("form", ["repdistiller", "paper"])
@pytest.mark.parametrize(("ours", "theirs"), [(8, 4), (4, 8), (4, 4)])
def test_ft_pools_the_larger_factor_and_survives_half_precision(form, ours, theirs):
    student, teacher = outputs(block3=(6, ours, ours)), outputs(1, block3=(10, theirs, theirs))
    torch.manual_seed(0)
    term = FactorTransfer(form=form)
    term.setup(task(student, teacher))
    factors = term.translator(student.features["block3"]), term.paraphraser.encoder(teacher.features["block3"])
    pooled = [term.normalised(nn.functional.adaptive_avg_pool2d(factor, 4)) for factor in factors]
    value = term(student, teacher, batch())
    torch.testing.assert_close(value, (pooled[0] - pooled[1]).abs().mean())
    half = term(student.map(torch.Tensor.half), teacher.map(torch.Tensor.half), batch())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(value.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"k": 0}, "ft: k must be a finite number > 0, got 0"),
        ({"p1": 0}, "ft: p1 must be a whole number >= 1, got 0"),
        ({"p2": 0.5}, "ft: p2 must be a whole number >= 1, got 0.5"),
        ({"form": "x"}, "ft: form must be repdistiller or paper, got 'x'"),
        ({"leaky_slope": -1}, "ft: leaky_slope must be a finite number >= 0, got -1"),
        ({"tap": ""}, "ft: tap must be the name of one tap such as block3, got ''"),
    ],
)
def test_ft_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        FactorTransfer(**settings_)
    assert str(caught.value).startswith(message)


def test_ft_refuses_a_factor_without_channels():
    with pytest.raises(
        UserError, match=r"ft: k 0\.1 leaves no channel of the teacher's 'block3', which has 5: raise k"
    ):
        FactorTransfer(k=0.1).setup(task(outputs(block3=(5, 4, 4)), outputs(block3=(5, 4, 4))))
