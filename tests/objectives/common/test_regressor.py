"""The regressor between two maps: which convolution joins which sizes."""

from __future__ import annotations

import pytest
import torch
from builders import maps

from kdstream.objectives.common.regressor import ConvRegressor


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "kernel", "stride"),
    [
        ((3, 8, 8), (5, 8, 8), torch.nn.Conv2d, (1, 1), (1, 1)),
        ((3, 8, 8), (5, 4, 4), torch.nn.Conv2d, (3, 3), (2, 2)),
        ((3, 4, 4), (5, 8, 8), torch.nn.ConvTranspose2d, (4, 4), (2, 2)),
        ((3, 7, 9), (5, 4, 4), torch.nn.Conv2d, (4, 6), (1, 1)),
        ((3, 8, 12), (5, 4, 6), torch.nn.Conv2d, (3, 3), (2, 2)),
    ],
)
def test_regressor_reaches_the_shape_of_the_teacher(ours, theirs, kind, kernel, stride):
    regressor = ConvRegressor("fitnet", "block1", maps(2, *ours), maps(2, *theirs))
    assert isinstance(regressor.conv, kind)
    assert (regressor.conv.kernel_size, regressor.conv.stride) == (kernel, stride)
    assert regressor.conv.bias is not None
    out = regressor(maps(2, *ours))
    assert out.shape == (2, *theirs)
    assert out.min() >= 0
    assert ConvRegressor("ab", "block1", maps(2, *ours), maps(2, *theirs), relu=False)(maps(2, *ours)).min() < 0
