"""Settings for all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import hypothesis
import numpy as np
import plain_reports
import pytest
import torch
from every import EVERY
from PIL import Image
from rich.console import Console

from kdstream.convert.make_shards import make_shards

# Small nets do not gain from threads, and several test processes on one machine lose by them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# The same on every machine: on one with GPUs, test_on_a_gpu.py and the tests of kernels use them, the rest does not.
os.environ["ACCELERATE_USE_CPU"] = "true"
# Shared machines stall now and then: an example's wall time says nothing about the code.
hypothesis.settings.register_profile("kdstream", deadline=None, max_examples=100 if EVERY else 25)
hypothesis.settings.load_profile("kdstream")
plain_reports.install()


def pytest_collection_finish() -> None:
    """All that was imported stays: whatever collects garbage, as each training does, need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _what_was_loaded_stays():
    """So does what tests import when they run, as numba's functions: the garbage of a training is a tenth of it."""
    yield
    if len(gc.get_objects()) > 50_000:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Shards of handwritten digits: 240 to train, 240 to evaluate, 16x16 pixels."""
    folder = tmp_path_factory.mktemp("shards") / "digits"
    make_shards("digits", folder, limit=240, processes=1, console=Console(quiet=True))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Two classes of 150 images."""
    root = tmp_path_factory.mktemp("photos")
    for c, name in enumerate(("cat", "dog")):
        (root / name).mkdir()
        for i in range(150):
            pixels = np.random.default_rng(1000 * c + i).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.jpg")
    return root


@pytest.fixture(scope="session")
def photo_shards(photos, tmp_path_factory) -> Path:
    """The shards of them, 12, made by one process."""
    dest = tmp_path_factory.mktemp("photo_shards") / "set"
    make_shards(f"imagefolder:{photos}", dest, shard_count=12, processes=1)
    return dest


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Two classes of six images; and three files that are none under their names."""
    root = tmp_path / "damaged"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(root / name / f"{i}.png")
    (root / "cat" / "text.jpg").write_text("hello")
    cut = (root / "dog" / "5.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(cut[: len(cut) // 2])
    (root / "dog" / "empty.png").write_bytes(b"")
    return root


@pytest.fixture(scope="session")
def interpreting():
    """A process in which Triton interprets kernels."""
    from triton_process import interpreting_process

    with interpreting_process() as pool:
        yield pool


@pytest.fixture(scope="session")
def compiling():
    """A process in which Triton compiles kernels."""
    from triton_process import compiling_process

    with compiling_process() as pool:
        yield pool


@pytest.fixture
def kernels(request):
    """The process in which Triton's kernels run here."""
    return request.getfixturevalue("compiling" if torch.cuda.is_available() else "interpreting")
