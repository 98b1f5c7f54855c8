"""Settings for all tests."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch
from rich.console import Console

from kdstream.convert.make_shards import make_shards

# Small nets do not gain from threads, and several test processes on one machine lose by them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Shared machines stall now and then: an example's wall time says nothing about the code.
hypothesis.settings.register_profile("kdstream", deadline=None)
hypothesis.settings.load_profile("kdstream")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Shards of handwritten digits: 240 to train, 240 to evaluate, 16x16 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "digits"
    make_shards("digits", folder, limit=240, processes=1, console=Console(quiet=True))
    return folder
