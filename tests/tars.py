"""Tars as others write them, images in them, and the one line that a refused place gets."""

from __future__ import annotations

import filecmp
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdstream.data.shards import open_shards
from kdstream.errors import UserError

SYM = tarfile.SYMTYPE


def image_bytes(seed: int, size: tuple[int, int] = (9, 7), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


JPG = image_bytes(0)


def write_tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """A tar as others write it; a text instead of bytes makes a symbolic link to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tuple[str, bytes, str]:
    return name, kind, target


def write_links(path: Path, members: list[tuple], form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of files, (name, bytes), and links, see :func:`link`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, *rest in members:
            member = tarfile.TarInfo(name)
            if len(rest) == 2:
                member.type, member.linkname = rest
                tar.addfile(member)
            else:
                member.size = len(rest[0])
                tar.addfile(member, io.BytesIO(rest[0]))
    return path


def message(place: Any, opener: Callable[[Any], Any] = open_shards) -> str:
    """What is said of a place that cannot be opened."""
    with pytest.raises(UserError) as caught:
        opener(place)
    text = str(caught.value)
    assert "\n" not in text
    return text


def assert_same_files(first: Path, second: Path) -> None:
    """That two folders hold the same bytes under the same names."""
    names = sorted(os.listdir(first))
    assert names == sorted(os.listdir(second))
    assert filecmp.cmpfiles(first, second, names, shallow=False) == (names, [], [])
