"""fsp: its flow matrices, their weights, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, outputs, task
from torch import nn

from kdstream.errors import UserError
from kdstream.objectives.fsp import FlowOfSolution

FSP = {"stem": (4, 8, 8), "block1": (6, 8, 8), "block2": (8, 4, 4)}


def test_fsp_flow_is_the_mean_product_over_positions():
    term, student = FlowOfSolution(taps=list(FSP), weights=[1, 1]), outputs(**FSP)
    first, second = term.flows(tuple(FSP), student.features)
    stem, block1, block2 = (student.features[tap] for tap in FSP)
    torch.testing.assert_close(first, torch.einsum("nahw,nbhw->nab", block1, stem) / 64)
    pooled = nn.functional.avg_pool2d(block1, 2)
    torch.testing.assert_close(second, torch.einsum("nahw,nbhw->nab", block2, pooled) / 16)


@pytest.mark.parametrize("form", ["repdistiller", "paper"])
def test_fsp_is_zero_for_equal_maps_weights_its_parts_and_takes_other_sizes(form):
    term = FlowOfSolution(taps=list(FSP), weights=[2, 0.5], form=form)
    student = outputs(**FSP)
    teacher = outputs(1, stem=(4, 16, 16), block1=(6, 4, 4), block2=(8, 2, 2))
    term.setup(task(student, teacher))
    assert term(student, student, batch()).item() == 0
    parts = term.parts(student, teacher)
    torch.testing.assert_close(term(student, teacher, batch()), 2 * parts[0] + 0.5 * parts[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(term(student, teacher, batch()), 2 * parts[0] + 0.5 * parts[1])
    half = term(student.map(torch.Tensor.half), teacher.map(torch.Tensor.half), batch())
    assert half.dtype == torch.float32


def test_fsp_says_why_unequal_channels_have_no_result():
    with pytest.raises(UserError) as caught:
        FlowOfSolution(taps=list(FSP), weights=[1, 1]).setup(
            task(outputs(**FSP), outputs(**{**FSP, "block1": (12, 8, 8)}))
        )
    message = str(caught.value)
    assert message.startswith("fsp: the student's 'block1' [6, 8, 8] and the teacher's 'block1' [12, 8, 8] ([C,H,W])")
    assert "the paper has no result for such pairs" in message


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"taps": "block1"}, "fsp: a flow matrix needs two taps, got block1 alone"),
        (
            {"taps": ["a", "b"], "weights": [1, 3]},
            "fsp: weights must be one a pair of consecutive taps, got 2 for 1 pairs",
        ),
        ({"weights": [0, 0, 0]}, "fsp: weights are all 0"),
        ({"weights": [1, -3, 1]}, "fsp: weights must be a finite number >= 0, got -3"),
        ({"form": "x"}, "fsp: form must be repdistiller or paper, got 'x'"),
    ],
)
def test_fsp_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        FlowOfSolution(**settings_)
    assert str(caught.value).startswith(message)
