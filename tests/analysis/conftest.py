"""A network to measure, and photographs that differ in size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import open_shards
from kdstream.models import build


@pytest.fixture(scope="session")
def network():
    """A random resnet8 whose answers differ from image to image."""
    torch.manual_seed(0)
    network = build("resnet8", 10).eval()
    with torch.no_grad():
        network.get_submodule(network.classifier_path).weight *= 20
    return network


@pytest.fixture(scope="session")
def uneven(tmp_path_factory):
    """Four photographs of two classes, each of another size."""
    root = tmp_path_factory.mktemp("uneven")
    for i, side in enumerate((20, 31, 40, 24)):
        folder = root / "in" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (side, side + i, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    make_shards(f"imagefolder:{root / 'in'}", root / "set", processes=1)
    return open_shards(root / "set" / "train")
