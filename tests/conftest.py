"""Settings for all tests."""

from __future__ import annotations

import os

import hypothesis
import torch

# Small nets do not gain from threads, and several test processes on one machine lose by them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Shared machines stall now and then: an example's wall time says nothing about the code.
hypothesis.settings.register_profile("kdstream", deadline=None)
hypothesis.settings.load_profile("kdstream")
