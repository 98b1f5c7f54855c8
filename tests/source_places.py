"""Images at places, for sources to find; and the one line that a refused source gets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdstream.convert.open_source import open_source
from kdstream.convert.split import Source
from kdstream.errors import UserError


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return path


def message(text: str, splits: list[str] | None = None) -> str:
    """What is said of a source that cannot be opened."""
    with pytest.raises(UserError) as caught:
        open_source(text, splits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labelled(source: Source, split: str) -> dict[str, str]:
    """File name -> class, of one split."""
    part = source.splits[split]
    return {os.path.basename(part.where(i)): source.classes[part.labels[i]] for i in range(len(part))}
