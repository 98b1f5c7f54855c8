"""Soft ranks: the exact projection, on both backends, and their gradient."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression
from torch.utils._python_dispatch import TorchDispatchMode

from kdstream.errors import UserError
from kdstream.objectives.common import soft_rank as module
from kdstream.objectives.common.soft_rank import non_increasing, soft_rank

BACKENDS = pytest.mark.parametrize("backend", ["numba", "torch"])
SIZES = st.integers(1, 70)
SEEDS = st.integers(0, 2**31)
STRENGTHS = st.sampled_from([1e-4, 0.01, 0.3, 1.0, 7.0, 1000.0])


def rows(seed: int, n: int, count: int = 3, ties: bool = False) -> torch.Tensor:
    values = torch.randn(count, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (2 * values).round() if ties else values


def reference(values: torch.Tensor, strength: float) -> torch.Tensor:
    """The definition, by another library's isotonic regression."""
    n = values.shape[1]
    result = torch.empty_like(values)
    for row, x in enumerate(values.numpy()):
        order = np.argsort(-x, kind="stable")
        s = x[order] / strength
        result[row, order] = torch.from_numpy(s - isotonic_regression(s - np.arange(n, 0, -1), increasing=False))
    return result


@BACKENDS
@given(seed=SEEDS, n=SIZES, strength=STRENGTHS, ties=st.booleans())
def test_equals_the_definition(backend, seed, n, strength, ties):
    values = rows(seed, n, ties=ties)
    torch.testing.assert_close(
        soft_rank(values, strength, backend), reference(values, strength), rtol=0, atol=1e-9 * max(n, 1 / strength)
    )


@BACKENDS
@given(seed=SEEDS, n=SIZES, strength=STRENGTHS)
def test_ranks_sum_up_keep_the_order_and_ignore_shifts(backend, seed, n, strength):
    values = rows(seed, n)
    ranks = soft_rank(values, strength, backend)
    near = {"rtol": 0, "atol": 1e-7 * n}
    torch.testing.assert_close(ranks.sum(dim=1), torch.full((3,), n * (n + 1) / 2, dtype=torch.float64), **near)
    assert (ranks.gather(1, values.argsort(dim=1)).diff(dim=1) >= -1e-7).all()
    assert ranks.min() >= 1 - 1e-7
    assert ranks.max() <= n + 1e-7
    torch.testing.assert_close(
        soft_rank(values + 3, strength, backend), ranks, rtol=0, atol=1e-7 * max(n, 1 / strength)
    )
    torch.testing.assert_close(soft_rank(-values, strength, backend), n + 1 - ranks, **near)


@given(seed=SEEDS, n=SIZES, strength=STRENGTHS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_backends_agree_in_value_and_gradient(seed, n, strength, dtype):
    weights = rows(seed + 1, n).to(dtype)
    found = []
    for backend in ("numba", "torch"):
        values = rows(seed, n).to(dtype).requires_grad_()
        ranks = soft_rank(values, strength, backend)
        assert ranks.dtype == dtype
        found.append((ranks.detach(), *torch.autograd.grad(ranks, values, weights)))
    near = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found[0][0], found[1][0], rtol=near, atol=near)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=near, atol=near * 10 / strength)


@BACKENDS
@pytest.mark.parametrize("strength", [0.05, 0.5, 5.0])
def test_gradient_is_that_of_the_values(backend, strength):
    values = rows(5, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_rank(x, strength, backend), values, eps=1e-7, atol=1e-5)


@BACKENDS
def test_far_apart_the_ranks_are_ordinary_and_flat(backend):
    values = torch.tensor([[3.0, -1.0, 10.0, 0.5]], requires_grad=True)
    ranks = soft_rank(values, 0.1, backend)
    torch.testing.assert_close(ranks, torch.tensor([[3.0, 1.0, 4.0, 2.0]]))
    (gradient,) = torch.autograd.grad(ranks, values, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert gradient.abs().max() == 0


@BACKENDS
def test_close_together_the_ranks_are_linear(backend):
    values = torch.tensor([[0.3, 0.1, 0.2, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(soft_rank(values, 1.0, backend), 2.5 + values - values.mean())


@BACKENDS
def test_ties_share_their_rank(backend):
    torch.testing.assert_close(
        soft_rank(torch.tensor([[1.0, 5.0, 1.0, 9.0]]), 0.01, backend), torch.tensor([[1.5, 3.0, 1.5, 4.0]])
    )


@BACKENDS
def test_a_long_cascade_of_pools(backend):
    # Steps just above the strength, then a run of ties: pooled entry by entry, the ties swallow the whole row.
    values = torch.cat([torch.arange(300, 0, -1) * 1.001, torch.zeros(700)]).double()[None]
    torch.testing.assert_close(soft_rank(values, 1.0, backend), reference(values, 1.0), rtol=0, atol=1e-6)


@BACKENDS
def test_nan_stays_in_its_row(backend):
    ranks = soft_rank(torch.tensor([[1.0, float("nan"), 2.0], [3.0, 1.0, 2.0]]), 0.1, backend)
    assert ranks[0].isnan().any()
    torch.testing.assert_close(ranks[1], torch.tensor([3.0, 1.0, 2.0]))


@BACKENDS
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 1)])
def test_small_shapes(backend, shape):
    values = torch.randn(shape, requires_grad=True)
    ranks = soft_rank(values, 1.0, backend)
    ranks.sum().backward()
    assert torch.equal(ranks, torch.ones(shape)[:, :1].expand(shape))
    assert torch.equal(values.grad, torch.zeros(shape))


@BACKENDS
def test_strided_values_and_gradients(backend):
    values = rows(2, 6, count=4).t().requires_grad_()
    ranks = soft_rank(values, 0.5, backend)
    (gradient,) = torch.autograd.grad(ranks, values, rows(3, 6, count=4).t())
    plain = values.detach().contiguous().requires_grad_()
    ranks_plain = soft_rank(plain, 0.5, backend)
    torch.testing.assert_close(ranks, ranks_plain)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(ranks_plain, plain, rows(3, 6, count=4).t().contiguous())[0]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_in_float32(dtype):
    values = torch.randn(2, 8).to(dtype).requires_grad_()
    ranks = soft_rank(values, 0.1)
    assert ranks.dtype == torch.float32
    ranks.square().sum().backward()
    assert values.grad.dtype == dtype
    assert values.grad.isfinite().all()


def test_at_once_works_in_float32_alone():
    values = rows(4, 100).float()
    expected = torch.from_numpy(np.stack([isotonic_regression(x, increasing=False) for x in values.numpy()]))
    torch.testing.assert_close(non_increasing(values), expected, rtol=1e-4, atol=1e-4)


class Operations(TorchDispatchMode):
    """Counts what runs, and refuses to hand values to Python (on a GPU, that waits for it)."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), func
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_at_once_has_no_loop_over_rows():
    counts = []
    for number in (2, 64):
        values = rows(1, 100, count=number).requires_grad_()
        with Operations() as operations:
            soft_rank(values, 0.1, "torch").square().sum().backward()
        counts.append(operations.count)
    assert counts[0] == counts[1]


def test_without_numba(monkeypatch):
    values = rows(6, 20)
    expected = soft_rank(values, 0.2)
    monkeypatch.setattr(module, "_compiled", lambda dtype: None)
    torch.testing.assert_close(soft_rank(values, 0.2), expected)
    with pytest.raises(UserError, match="backend 'numba' needs numba"):
        soft_rank(values, 0.2, "numba")


def test_compiles_where_nothing_can_be_kept(monkeypatch):
    njit = numba.njit

    def no_folder(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", no_folder)
    compiled = module._compiled.__wrapped__(torch.float64)
    gradient, result = np.array([[1.0, 2.0, 6.0]]), np.empty((1, 3))
    compiled.deviate(gradient, np.array([[2, 0, 1]]), np.array([[0, 0, 2]], dtype=np.int32), 0.5, result)
    assert result.tolist() == [[-5.0, 0.0, 5.0]]


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (torch.zeros(3), {}, r"soft_rank: values must be float \[N,n\], got torch.float32 \[3\]"),
        (torch.zeros(2, 3, dtype=torch.int64), {}, "got torch.int64"),
        (torch.zeros(2, 3), {"strength": 0}, "soft_rank: strength must be a finite number > 0, got 0"),
        (torch.zeros(2, 3), {"strength": float("inf")}, "got inf"),
        (torch.zeros(2, 3), {"backend": "cuda"}, "soft_rank: unknown backend 'cuda'"),
    ],
)
def test_mistakes(values, settings, message):
    with pytest.raises(UserError, match=message):
        soft_rank(values, **settings)
