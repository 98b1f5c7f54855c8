"""Data sets for the trainer's tests."""

from __future__ import annotations

import io
import tarfile

import pytest
from PIL import Image


@pytest.fixture
def make_tars():
    """A function that writes a foreign data set: ``make_tars(folder, train=[0, 1], val=[1])`` gives 8x8 images of
    these classes in folder/train/0.tar and folder/val/0.tar; with ``flat=True`` in folder/set-train-0.tar, ..."""

    def make(folder, flat=False, **splits):
        for split, labels in splits.items():
            path = folder / f"set-{split}-0.tar" if flat else folder / split / "0.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(path, "w") as tar:
                for i, label in enumerate(labels):
                    png = io.BytesIO()
                    Image.new("RGB", (8, 8), (20 * label, 5 * i, 99)).save(png, "png")
                    for name, data in ((f"{i:04}.png", png.getvalue()), (f"{i:04}.cls", b"%d" % label)):
                        info = tarfile.TarInfo(name)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))

    return make
