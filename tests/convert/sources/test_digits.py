"""digits: scikit-learn's, the same split always."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from source_places import message

from kdstream.convert.open_source import open_source


def test_digits():
    source = open_source("digits")
    train, val = source.splits["train"], source.splits["val"]
    assert (len(train), len(val)) == (1438, 359)
    assert not set(train.keys) & set(val.keys)
    for label in range(10):
        held, kept = int((val.labels == label).sum()), int((train.labels == label).sum())
        assert held == round((held + kept) / 5)
    from sklearn.datasets import load_digits

    data = load_digits()
    for split in (train, val):
        for i in (0, 7, 200):
            item = split[i]
            number = int(item.key.split("/")[1])
            image = Image.open(io.BytesIO(item.data))
            assert (image.format, image.mode, image.size) == ("PNG", "L", (16, 16))
            assert item.label == data.target[number] == int(item.key.split("/")[0])
            back = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float) * 16 / 255
            assert np.corrcoef(back.ravel(), data.images[number].ravel())[0, 1] > 0.9
    assert open_source("digits").splits["val"].keys == val.keys
    assert "takes no place" in message("digits:here")
    assert "has no split 'test': found train, val" in message("digits", ["test"])
