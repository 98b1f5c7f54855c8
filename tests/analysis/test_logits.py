"""A student's logits beside its teacher's: each number as its definition gives it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdstream.analysis.logits import answers, beside, page


def test_matrices_and_shares():
    draw = torch.Generator().manual_seed(0)
    teacher, label = torch.randn(40, 4, generator=draw), torch.arange(40) % 3  # no image of the last class
    student = teacher + torch.tensor([0.0, 1.0, 0.0, -2.0])
    own, one = answers("s", student, label), beside("s", student, teacher, label)
    assert one.distances[:3].tolist() == [pytest.approx([0, 1, 0, 2], abs=1e-6)] * 3
    assert one.distances[3].isnan().all()
    assert one.correlations.abs().max() < 1e-6  # shifted, not turned
    assert own.correlation.numpy() == pytest.approx(np.corrcoef(student.numpy().T), abs=1e-6)
    assert one.distance == pytest.approx(0.75, rel=1e-5)
    assert one.pearson < 1
    assert sum(own.entropies) == pytest.approx(1)
    assert sum(own.logits) == pytest.approx(1)
    assert own.top1 == pytest.approx(100 * (student.argmax(1) == label).float().mean().item())
    assert one.as_dict()["distances"][3] == [None] * 4
    shown = page(answers("t", teacher, label), [(own, one)], list("abcd"), "40 images")
    assert [chart.title for chart in shown.charts] == [
        "Logits apart: s",
        "Correlations apart: s",
        "% of logits",
        "% of images",
    ]
