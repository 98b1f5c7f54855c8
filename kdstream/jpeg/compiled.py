"""Kernels compiled by numba, or read from its cache on disk."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from numba import njit, types


def compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """A function compiled for these types of arguments, or read from the cache; without cache where none can be read or
    written. It gives an int64, does not hold Python's lock and does not look whether places in arrays exist."""
    signature = types.int64(*arguments)
    try:
        return njit(signature, error_model="numpy", nogil=True, cache=True)(function)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        # numba finds no folder, or it is full, or a file in it is broken.
        return njit(signature, error_model="numpy", nogil=True)(function)
