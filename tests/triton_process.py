"""Processes in which Triton interprets kernels, or compiles them: which of both is settled when Triton is imported."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest
from processes import FORKS


@contextmanager
def interpreting_process() -> Iterator[ProcessPoolExecutor]:
    """A fresh one, in which Triton will interpret kernels: forks have imported it already."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _interpret) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")  # for this process alone
            pool.submit(os.getpid).result()
        yield pool


def _interpret() -> None:

    global triton_was_imported
    triton_was_imported = "triton" in sys.modules
    if importlib.util.find_spec("triton") is not None:
        from triton.runtime import interpreter

        # It works out whether sums overflow, which is more than half of its time, and tells it in debug mode only.
        interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def had_triton() -> bool:
    """Whether importing kdstream.jpeg.cuda has imported Triton in the interpreting process, in which this is called."""
    return triton_was_imported


@contextmanager
def compiling_process() -> Iterator[ProcessPoolExecutor]:
    """One in which kernels are compiled, and run where there is a GPU."""
    with ProcessPoolExecutor(1, FORKS) as pool:
        yield pool
