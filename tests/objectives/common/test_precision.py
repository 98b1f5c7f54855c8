"""Half precision becomes float32, with a gradient in half precision; what is wider stays as it is."""

from __future__ import annotations

import pytest
import torch

from kdstream.objectives.common.precision import at_least_float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_its_gradient_comes_back(dtype):
    values = torch.tensor([300.0, -2.0], dtype=dtype, requires_grad=True)
    wide = at_least_float32(values)
    assert wide.dtype == torch.float32
    wide.square().mean().backward()  # 300 squared is more than float16 holds
    torch.testing.assert_close(values.grad, values.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_wide_enough_stays(dtype):
    values = torch.ones(2, dtype=dtype)
    assert at_least_float32(values) is values
