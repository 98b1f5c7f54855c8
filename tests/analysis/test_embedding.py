"""Features in the plane: classes that are apart stay apart."""

from __future__ import annotations

import pytest
import torch

from kdstream.analysis.asked import Asked
from kdstream.analysis.embedding import embed, features, page
from kdstream.analysis.one_pass import one_pass
from kdstream.errors import UserError


def test_classes_that_are_apart_stay_apart(network, uneven):
    label = torch.arange(24) % 2
    rows = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)) + 9 * label[:, None]
    found = embed("net", rows, torch.eye(2)[label], label)
    assert found.points.shape == (24, 2)
    assert found.top1 == 100
    assert found.silhouette > 0.8
    assert found.silhouette_plane > 0.3
    assert found.points.equal(embed("net", rows, torch.eye(2)[label], label).points)
    assert page([found], label, ["a", "b"], "24 images").tables[0].rows[0][1][2] == "100.00"
    with pytest.raises(UserError, match="an embedding needs 5"):
        embed("net", rows[:4], rows[:4], label[:4])
    ((of, logits),), labels = features([Asked("net", network, (0.5,) * 3, (0.2,) * 3)], one_pass(uneven, size=16))
    assert of.shape == (4, 64)
    assert logits.shape == (4, 10)
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
