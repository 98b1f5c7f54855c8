"""digits: the handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kdstream.convert.split import ArraySplit, Source, Split
from kdstream.errors import UserError


def digits(place: str, splits: Sequence[str] | None) -> Source:
    """The 1,797 handwritten digits (8x8, grey) that ship with scikit-learn, as 16x16 by bilinear interpolation.

    Splits "train" and "val", 80/20 within each class, always the same.
    """
    if place:
        raise UserError(f"source 'digits' ships with scikit-learn and takes no place, not {place!r}")
    from sklearn.datasets import load_digits

    data = load_digits()
    small = np.rint(data.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) for image in small]
    )
    labels = data.target.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label).tolist()
        # A hash, not a random generator: the same split with every version of every library.
        members.sort(key=lambda i: hashlib.blake2b(f"digits {i}".encode()).digest())
        held_out[members[: round(len(members) / 5)]] = True
    keys = [f"{label}/{i:04d}" for i, label in enumerate(labels.tolist())]
    whole = ArraySplit(images, keys, labels)
    made: dict[str, Split] = {
        "train": whole.subset(np.flatnonzero(~held_out)),
        "val": whole.subset(np.flatnonzero(held_out)),
    }
    return Source("digits", [str(label) for label in range(10)], made)
