"""Data sets of (image, label): pixels unchanged, whatever form they come in; what is no such data set is told."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from kdstream.convert.from_dataset import from_datasets
from kdstream.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)


class Pairs:
    """Items as they are given; ``classes`` where there are any."""

    def __init__(self, *items: object, classes: list[str] | None = None):
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]() if callable(self.items[i]) else self.items[i]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_every_form_of_an_image_keeps_its_pixels():
    first = torch.from_numpy(PIXELS).permute(2, 0, 1)
    forms = [Image.fromarray(PIXELS), PIXELS, first, first.float() / 255, Image.fromarray(PIXELS).convert("CMYK")]
    source = from_datasets("mine", {"train": Pairs(*((form, i) for i, form in enumerate(forms)))})
    images = [np.asarray(Image.open(io.BytesIO(item.data))) for item in source.splits["train"]]
    for image in images[:4]:
        assert np.array_equal(image, PIXELS)
    assert (source.classes, source.splits["train"].labels.tolist()) == (list("01234"), [0, 1, 2, 3, 4])
    grey = from_datasets("mine", {"train": Pairs((PIXELS[..., 0], np.int64(1)), (first[:1], torch.tensor(0)))})
    for item in grey.splits["train"]:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(item.data))), PIXELS[..., 0])
    assert from_datasets("mine", {"train": Pairs((PIXELS, 0), classes=["hen", "cat"])}).classes == ["hen", "cat"]


def test_what_is_no_data_set_of_images():
    draws = iter(range(9))
    for dataset, said in (
        (object(), "train is of type object"),
        (Pairs(PIXELS), "item 0 is no pair"),
        (Pairs((PIXELS, "cat")), "the label of item 0 is 'cat'"),
        (Pairs((PIXELS, 0), (PIXELS, True)), "the label of item 1 is True"),
        (Pairs((torch.randn(3, 4, 4), 0)), "before they are normalised"),
        (Pairs((np.zeros((2, 4, 5), np.uint8), 0)), r"uint8 \[2, 4, 5\] is neither"),
        (Pairs(("bird.jpg", 0)), "str is no PIL image"),
        (Pairs((PIXELS, 3), classes=["hen"]), "a label 3, but 1 classes"),
        (Pairs(lambda: (PIXELS + np.uint8(next(draws)), 0)), "another image each time: leave random transforms out"),
    ):
        with pytest.raises(UserError, match=said):
            from_datasets("mine", {"train": dataset})
