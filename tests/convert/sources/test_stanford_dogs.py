"""Stanford Dogs on a stand-in of its files' form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat
from source_places import labelled, message, write_image

from kdstream.convert.open_source import open_source


def dogs(root: Path, **lists: list[tuple[str, int]]) -> Path:
    for split, rows in lists.items():
        files = np.empty((len(rows), 1), object)
        for i, (path, _) in enumerate(rows):
            write_image(root / "Images" / path)
            files[i, 0] = path
        labels = np.array([[label] for _, label in rows], np.uint8)
        savemat(root / f"{split}_list.mat", {"file_list": files, "labels": labels, "annotation_list": files})
    return root


def test_stanford_dogs(tmp_path):
    root = dogs(
        tmp_path,
        train=[("n02085620-Chihuahua/a.jpg", 1), ("n02085782-Japanese_spaniel/b.jpg", 2)],
        test=[("n02085620-Chihuahua/c.jpg", 1)],
    )
    source = open_source(f"stanford_dogs:{root}")
    assert source.classes == ["Chihuahua", "Japanese_spaniel"]
    assert labelled(source, "train") == {"a.jpg": "Chihuahua", "b.jpg": "Japanese_spaniel"}
    assert labelled(source, "test") == {"c.jpg": "Chihuahua"}


def test_what_is_wrong_with_dogs(tmp_path):
    one = ("n1-a/a.jpg", 1)
    for label, wrong in ((1, "class 1 holds 'a' and 'b'"), (3, "classes 1 to 3, not all")):
        folder = dogs(tmp_path / str(label), train=[one], test=[("n2-b/b.jpg", label)])
        assert wrong in message(f"stanford_dogs:{folder}")
    damaged = dogs(tmp_path / "damaged", train=[one], test=[one])
    (damaged / "test_list.mat").write_bytes(b"no matlab")
    assert "test_list.mat is no list of Stanford Dogs" in message(f"stanford_dogs:{damaged}")
