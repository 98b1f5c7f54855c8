"""A process in which Triton interprets kernels, or compiles them: which of both is settled when Triton is imported."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest


@contextmanager
def child_process(interpret: bool) -> Iterator[ProcessPoolExecutor]:
    """A fresh process in which Triton interprets kernels or compiles them."""
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        patch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
        pool.submit(os.getpid).result()
        yield pool
