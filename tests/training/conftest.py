"""Data sets for the trainer's tests."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from tars import write_tar


def write_labelled(path, samples):
    """A foreign tar of (bytes of a PNG, label)."""
    members = [((f"{i:04}.png", png), (f"{i:04}.cls", b"%d" % label)) for i, (png, label) in enumerate(samples)]
    write_tar(path, [member for pair in members for member in pair])


@pytest.fixture
def make_tars():
    """A function that writes a foreign data set: ``make_tars(folder, train=[0, 1], val=[1])`` gives 8x8 images of
    these classes in folder/train/0.tar and folder/val/0.tar; with ``flat=True`` in folder/set-train-0.tar, ..."""

    def picture(number, label):
        png = io.BytesIO()
        Image.new("RGB", (8, 8), (20 * label, 5 * number % 256, 99)).save(png, "png")
        return png.getvalue()

    def make(folder, flat=False, **splits):
        for split, labels in splits.items():
            path = folder / f"set-{split}-0.tar" if flat else folder / split / "0.tar"
            write_labelled(path, [(picture(i, label), label) for i, label in enumerate(labels)])

    return make


@pytest.fixture
def retell():
    """A function that writes samples of a split as a foreign tar: ``retell(shards, {3: 0}, path)`` those of class 3,
    as class 0."""

    def write(shards, labels, path):
        kept = [number for number, label in enumerate(shards.labels.tolist()) if label in labels]
        write_labelled(path, [(shards.read(n)["png"], labels[int(shards.labels[n])]) for n in kept])

    return write
