"""Functions of tests in processes of their own: one that may die, or several that know of one another.

They are forked from a server that has imported torch, numba and kdstream once, which takes seconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import plain_reports
import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pytest", "hypothesis", "kdstream.training.job", "kdstream.stream.sample_kernels", "torchvision"]
)


def together(count: int, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function of a module in ``count`` processes that torch.distributed can connect, as a launcher does it.

    Raises:
        torch.multiprocessing.ProcessException: one of them failed, with its traceback, or was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _one_of, (count, port, dict(os.environ), function, arguments), nprocs=count, start_method="forkserver"
    )


def _one_of(
    rank: int, count: int, port: int, environment: dict[str, str], function: Callable[..., object], arguments: tuple
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    _settle({**environment, **{name: str(value) for name, value in place.items()}})
    function(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # none goes while another still talks to it
        torch.distributed.destroy_process_group()


def alone(function: Callable[..., object], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start a process that calls a function of a module; ``join`` it."""
    process = FORKS.Process(target=_alone, args=(dict(os.environ), function, arguments))
    process.start()
    return process


def _alone(environment: dict[str, str], function: Callable[..., object], arguments: tuple) -> None:
    _settle(environment)
    function(*arguments)


def _settle(environment: dict[str, str]) -> None:
    """The variables of the test; those of the server are older."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()  # what the server has imported stays
    plain_reports.install()
