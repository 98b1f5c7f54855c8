"""Differentiable ranks: the projection of a row on the permutahedron (Blondel et al. 2020)."""

from __future__ import annotations

import functools
import math
import pickle
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.exact import exact_device
from kdstream.objectives.common.precision import at_least_float32


def soft_rank(values: Tensor, strength: float = 1.0, backend: Literal["auto", "numba", "torch"] = "auto") -> Tensor:
    r"""Ranks of every row that have a gradient: 1 = the smallest value, n = the largest, softened by ``strength``.

    .. math:: r = \arg\min_{y \in \mathcal P(1, \dots, n)} \lVert y - x / \varepsilon \rVert^2

    P is the permutahedron, the convex hull of all orders of (1, ..., n). With s = x/eps in descending order and
    w = (n, ..., 1), the ranks in that order are s - v, where v is the non-increasing vector nearest to s - w
    (isotonic regression). v is constant on blocks; hence the Jacobian is (I - mean over one's block) / eps.

    The projection is exact. Values at least eps apart have their ordinary ranks (and gradient 0); where a row's
    values all lie well within eps, its ranks are (n + 1)/2 + (x - mean x)/eps. Tied values share a rank. A row with
    NaN gives NaN.

    Source: Blondel, Teboul, Berthet & Djolonga 2020 (arXiv:2002.08871), Propositions 3 and 4 and section 5, with the
    L2 regularisation.

    Args:
        values: float [N,n] on any device.
        strength: eps > 0, in units of ``values``. Default 1.0, that of the package torchsort.
        backend: "numba" = row after row in compiled code, for main memory; "torch" = all rows at once, in a number of
            steps that grows with log n and without looking at the data, for accelerators; "auto" = "numba" in main
            memory where numba can be imported, otherwise "torch". They differ by rounding only.

    Returns:
        [N,n] in 1..n, each row summing to n(n + 1)/2; float32 for half precision, otherwise the type of ``values``.
        Can be differentiated once (the second derivative is 0 almost everywhere).

    Raises:
        UserError: values of another shape or type, a strength that is no finite number > 0, an unknown backend or one
            that cannot run here.
    """
    if values.ndim != 2 or not values.is_floating_point():
        raise UserError(f"soft_rank: values must be float [N,n], got {values.dtype} {list(values.shape)}")
    if not (math.isfinite(strength) and strength > 0):
        raise UserError(f"soft_rank: strength must be a finite number > 0, got {strength!r}")
    if backend not in ("auto", "numba", "torch"):
        raise UserError(f"soft_rank: unknown backend {backend!r}: use 'auto', 'numba' or 'torch'")
    device = values.device
    values = at_least_float32(values).to(exact_device(device))
    by_row = backend != "torch" and values.device.type == "cpu" and _compiled(values.dtype) is not None
    if backend == "numba" and not by_row:
        raise UserError(f"soft_rank: backend 'numba' needs numba and main memory, got {values.device}: use 'auto'")
    return _SoftRank.apply(values, float(strength), by_row).to(device)


class _SoftRank(torch.autograd.Function):
    """values [N,n] -> ranks [N,n]; keeps the order, and for every place in it the place where its block starts."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float, by_row: bool) -> Tensor:
        ordered, order = torch.sort(values, dim=1, descending=True)
        ranks, starts = (project_by_row if by_row else project_at_once)(ordered, order, strength)
        ctx.save_for_backward(order, starts)
        ctx.strength, ctx.by_row = strength, by_row
        return ranks

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, starts = ctx.saved_tensors
        deviations = deviate_by_row if ctx.by_row else deviate_at_once
        return deviations(gradient, order, starts, ctx.strength), None, None


# ------------------------------------------------------------------------------------- row after row: numba


def project_by_row(ordered: Tensor, order: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Ranks by pooling adjacent violators, O(n) a row.

    Args:
        ordered: float32 or float64 [N,n] in main memory, each row descending.
        order: int64 [N,n], where the sorted values stood.
        strength: eps.

    Returns:
        ranks [N,n] where the values stood, and int32 [N,n]: for every place of the sorted row the first of its block.
    """
    ranks = torch.empty_like(ordered, memory_format=torch.contiguous_format)
    starts = torch.empty(ordered.shape, dtype=torch.int32)
    compiled = _compiled(ordered.dtype)
    assert compiled is not None  # whoever goes by row knows that numba is there
    compiled.project(ordered.contiguous().numpy(), order.contiguous().numpy(), strength, ranks.numpy(), starts.numpy())
    return ranks, starts


def deviate_by_row(gradient: Tensor, order: Tensor, starts: Tensor, strength: float) -> Tensor:
    """The vector-Jacobian product: the gradient minus its mean over each block, by eps; [N,n] -> [N,n]."""
    gradient = gradient.detach().contiguous()
    result = torch.empty_like(gradient)
    compiled = _compiled(gradient.dtype)
    assert compiled is not None
    compiled.deviate(gradient.numpy(), order.contiguous().numpy(), starts.numpy(), strength, result.numpy())
    return result


def _project(ordered, order, strength, ranks, starts):
    rows, n = ordered.shape
    total, first = np.empty(n, np.float64), np.empty(n + 1, np.int64)  # the blocks so far: a stack
    for r in range(rows):
        blocks = 0
        for i in range(n):
            begin, value = i, ordered[r, i] / strength - (n - i)
            # Two blocks whose means increase or are equal become one.
            while blocks > 0 and total[blocks - 1] * (i + 1 - begin) <= value * (begin - first[blocks - 1]):
                blocks -= 1
                begin = first[blocks]
                value += total[blocks]
            total[blocks], first[blocks] = value, begin
            blocks += 1
        first[blocks] = n
        for block in range(blocks):
            begin, end = first[block], first[block + 1]
            mean = total[block] / (end - begin)
            for i in range(begin, end):
                ranks[r, order[r, i]] = ordered[r, i] / strength - mean
                starts[r, i] = begin


def _deviate(gradient, order, starts, strength, result):
    rows, n = gradient.shape
    for r in range(rows):
        begin = 0
        while begin < n:
            end, total = begin, 0.0
            while end < n and starts[r, end] == begin:
                total += gradient[r, order[r, end]]
                end += 1
            mean = total / (end - begin)
            for i in range(begin, end):
                result[r, order[r, i]] = (gradient[r, order[r, i]] - mean) / strength
            begin = end


@functools.cache
def _compiled(dtype: torch.dtype) -> SimpleNamespace | None:
    """``_project`` and ``_deviate`` for float32 or float64, compiled or from numba's cache; None without numba."""
    try:
        import numba
    except ImportError:
        return None
    kinds: dict[torch.dtype, Any] = {torch.float32: numba.float32, torch.float64: numba.float64}
    real = kinds[dtype][:, ::1]
    order, starts, strength = numba.int64[:, ::1], numba.int32[:, ::1], numba.float64

    def compiled(function: Any, *arguments: Any) -> Any:
        options: dict[str, Any] = {"error_model": "numpy", "nogil": True}
        try:
            return numba.njit(numba.void(*arguments), cache=True, **options)(function)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            # numba finds no folder, or it is full, or a file in it is broken.
            return numba.njit(numba.void(*arguments), **options)(function)

    return SimpleNamespace(
        project=compiled(_project, real, order, strength, real, starts),
        deviate=compiled(_deviate, real, order, starts, strength, real),
    )


# --------------------------------------------------------------------------------- all rows at once: torch


def project_at_once(ordered: Tensor, order: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """As :func:`project_by_row`, in plain torch on any device; the starts are int64."""
    n = ordered.shape[1]
    places = torch.arange(n, device=ordered.device)
    scaled = ordered.double() / strength
    fitted = non_increasing(scaled - (n - places))
    changed = F.pad(fitted[:, 1:] != fitted[:, :-1], (1, 0))
    starts = torch.where(changed, places, 0).cummax(dim=1).values if n else order
    ranks = torch.empty_like(ordered).scatter_(1, order, (scaled - fitted).to(ordered.dtype))
    return ranks, starts


def deviate_at_once(gradient: Tensor, order: Tensor, starts: Tensor, strength: float) -> Tensor:
    """As :func:`deviate_by_row`, in plain torch on any device."""
    ends = torch.searchsorted(starts, starts, right=True)
    ordered = gradient.gather(1, order).double()
    sums = F.pad(ordered.cumsum(dim=1), (1, 0))
    means = (sums.gather(1, ends) - sums.gather(1, starts)) / (ends - starts)
    return torch.empty_like(gradient).scatter_(1, order, ((ordered - means) / strength).to(gradient.dtype))


def non_increasing(values: Tensor) -> Tensor:
    """Isotonic regression of every row: the non-increasing rows nearest to ``values``.

    Halves that are non-increasing already are joined, from single entries up. Joining pools one run: the end of the
    left half below a level t and the start of the right half above it, where t is their mean. That is the root of
    g(t) = sum max(t - left, 0) - sum max(right - t, 0), which grows with t; so an entry of the left half belongs to
    the run where g(entry) < 0, one of the right half where g(entry) > 0. Every entry's g comes from running sums and
    its place in the other half: ceil(log2 n) joins, each some twenty operations on [N,n].

    Args:
        values: float64 [N,n].

    Returns:
        [N,n]; the entries of a block are equal to the last bit.
    """
    rows, n = values.shape
    if n < 2:
        return values
    center = values.mean(dim=1, keepdim=True)  # smaller sums round less
    fitted = values - center
    low = fitted.amin(dim=1, keepdim=True)
    size = 1 << (n - 1).bit_length()
    fitted = torch.cat([fitted, (2 * low - 1).expand(rows, size - n)], dim=1)  # below all others: never pooled
    half = 1
    while half < size:
        halves = fitted.view(rows, size // (2 * half), 2, half)
        left, right = halves[:, :, 0].flip(-1).contiguous(), halves[:, :, 1].neg().contiguous()  # both ascending
        left_sums, right_sums = (F.pad(side.cumsum(dim=-1), (1, 0)) for side in (left, right))
        places = torch.arange(half, device=values.device)
        above = torch.searchsorted(right, left.neg())  # of the right half's entries, as many exceed this left one
        below = torch.searchsorted(left, right.neg())  # of the left half's, as many lie below this right one
        g_left = places * left - left_sums[..., :-1] + above * left + right_sums.gather(-1, above)
        g_right = right_sums[..., :-1] - places * right - below * right - left_sums.gather(-1, below)
        # Where the halves are in order already, g is 0 inside of blocks but for rounding.
        apart = right[..., :1].neg() > left[..., :1]
        pooled_left = (apart & (g_left < 0)).sum(dim=-1, keepdim=True)
        pooled_right = (apart & (g_right > 0)).sum(dim=-1, keepdim=True)
        total = left_sums.gather(-1, pooled_left) - right_sums.gather(-1, pooled_right)
        level = total / (pooled_left + pooled_right)  # 0/0 where nothing is pooled: not used
        left = torch.where(places < pooled_left, level, left)
        right = torch.where(places < pooled_right, -level, right)
        fitted = torch.stack([left.flip(-1), right.neg()], dim=2).view(rows, size)
        half *= 2
    return fitted[:, :n] + center
