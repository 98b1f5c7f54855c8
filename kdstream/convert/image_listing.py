"""Finding the image files below a folder, and saying what was left out."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdstream.data.file_kinds import HEAD, is_photograph, kind_of, refusal
from kdstream.data.image_file import ImageRefused, format_of
from kdstream.data.index import IMAGE_EXTENSIONS
from kdstream.errors import UserError

_LOOKS = 1000


class Found(NamedTuple):
    """An image file: its path below the source, size in bytes, modification time in ns, and why it cannot be read."""

    path: str
    size: int
    time: int
    refused: str | None


@dataclass
class LeftOut:
    """Counts files that are no images by their names."""

    count: int = 0
    example: str = ""
    images: int = 0
    image: str = ""

    def add(self, path: str, place: str) -> None:
        """One file, known as ``path``, that lies at ``place``."""
        self.count += 1
        self.example = self.example or path
        if self.count > _LOOKS:
            return
        try:
            format_of(_head(place))
        except (OSError, ImageRefused):
            return
        self.images += 1
        self.image = self.image or path

    def notes(self) -> list[str]:
        """What to tell of them."""
        notes = []
        if self.count:
            notes.append(f"{self.count:,} files without an image's extension left out, e.g. {self.example}")
        if self.images:
            notes.append(f"{self.images:,} of them hold images, e.g. {self.image}: to use them, let their names end so")
        return notes


def hidden(name: str) -> bool:
    """Whether a file or folder is of the system, not of the user."""
    return name.startswith(".") or name == "__MACOSX"


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is a picture of any kind, readable or not."""
    return os.path.splitext(name)[1][1:].lower() in IMAGE_EXTENSIONS or is_photograph(name)


def find_images(folder: Path, prefix: str, left_out: LeftOut, above: tuple = ()) -> Iterator[Found]:
    """The image files below a folder, in no order. Links to folders are followed, but not round in circles.

    Raises:
        UserError: a link that leads nowhere, or something that is no file under an image's name.
        OSError: a folder that cannot be read.
    """
    state = os.stat(folder)
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if hidden(entry.name):
                continue
            path = f"{prefix}/{entry.name}"
            if entry.is_dir():
                yield from find_images(Path(entry.path), path, left_out, (*above, here))
            elif is_image_name(entry.name):
                try:
                    state = entry.stat()
                except OSError as error:
                    raise UserError(f"cannot read {entry.path}: {error.strerror or error}") from error
                yield found_image(path, entry.path, state)
            else:
                left_out.add(path, entry.path)


def found_image(path: str, place: str, state: os.stat_result) -> Found:
    """The file at ``place``, which has an image's name.

    Raises:
        UserError: it is no file.
    """
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"cannot read {place}: it is no file")  # a pipe would wait for ever
    return Found(path, state.st_size, state.st_mtime_ns, _refusal(place, state.st_size))


def _refusal(place: str, size: int) -> str | None:
    if size == 0:
        return kind_of(b"")
    if not is_photograph(place):
        return None
    try:
        head = _head(place)
        if reason := refusal(place, head):
            return reason
        format_of(head)  # an ordinary image under an odd name
    except ImageRefused as refused:
        return str(refused)
    except OSError:  # whoever reads the image reports it
        pass
    return None


def _head(place: str) -> bytes:
    if not stat.S_ISREG(os.stat(place).st_mode):
        return b""
    with open(place, "rb", buffering=0) as file:
        return file.read(HEAD)
