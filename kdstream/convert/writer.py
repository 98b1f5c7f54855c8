"""Writing one shard: a deterministic tar with a checksum, which appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kdstream.atomic import sync_folder, write_atomic
from kdstream.convert.smaller import Smaller
from kdstream.convert.split import Item, Split
from kdstream.data.image_file import EXTENSIONS, MAX_PIXELS, ImageRefused, open_image
from kdstream.data.image_stats import ImageStats
from kdstream.data.index import BLOCK, IMAGE_EXTENSIONS
from kdstream.errors import UserError

_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_SYSTEM |= {errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR}
"""Failures to read that say nothing of the file: what was asked for is not done by leaving it out."""


@dataclass
class ShardRecord:
    """What was written into a shard: all that the index and dataset.json need to know of it.

    Attributes:
        name: file name.
        bytes: its size.
        sha256: its checksum.
        samples: (key, label, members) of each sample, in order, as :meth:`~.index.IndexBuilder.add_sample` takes them.
        stats: sizes and pixels of its images.
        skipped: (file, reason) of the images that could not be read.
    """

    name: str
    bytes: int = 0
    sha256: str = ""
    samples: list[tuple[str, int, list[tuple[str, int, int]]]] = field(default_factory=list)
    stats: ImageStats = field(default_factory=ImageStats)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write atomically, as JSON."""
        data: dict[str, Any] = {**vars(self), "stats": self.stats.to_json()}
        write_atomic(path, json.dumps(data).encode())

    @classmethod
    def load(cls, path: Path) -> ShardRecord:
        """Read what :meth:`save` wrote."""
        data = json.loads(path.read_bytes())
        return cls(**{**data, "stats": ImageStats.from_json(data["stats"])})


def write_shard(
    images: Split,
    path: Path,
    record_path: Path,
    skip_errors: bool = False,
    tick: Callable[[], None] = lambda: None,
    max_pixels: int = MAX_PIXELS,
    smaller: Smaller | None = None,
) -> ShardRecord:
    """Write ``images`` as the shard ``path`` and what is in it as ``record_path``.

    The record comes first and the shard is renamed into place last, so a shard that stands under its name is whole
    and has its record. Every image is decoded once, to know that it can be; its bytes are stored as they are.

    Args:
        skip_errors: leave out images that cannot be decoded, and note them, instead of raising.
        tick: called after each image.
        max_pixels: greater images count as unreadable.
        smaller: what makes large images smaller.

    Raises:
        UserError: an image cannot be decoded; the shard cannot be written (disk full, no permission).
    """
    record = ShardRecord(path.name)
    temporary = record_path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", buffering=1 << 20) as file, _Written(file) as written:
            tar = _Shard(written)
            for i in range(len(images)):
                item = _read(images, i, record, skip_errors, max_pixels, smaller)
                if item is not None:
                    # Neighbours with one key are one sample to every reader of WebDataset.
                    members = [
                        (item.extension, *tar.add(item.key, item.extension, item.data)),
                        ("cls", *tar.add(item.key, "cls", b"%d" % item.label)),
                    ]
                    record.samples.append((item.key, item.label, members))
                tick()
            tar.finish()
            record.bytes, record.sha256 = written.size, written.sha256
            file.flush()
            os.fsync(file.fileno())
        record.save(record_path)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write shard {path}: {error.strerror or error}; mend that, then the same command continues"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # what stays is removed when the conversion goes on
            temporary.unlink(missing_ok=True)
    return record


def unreadable(file: str, reason: str) -> UserError:
    """The error for an image that cannot be read."""
    return UserError(f"cannot read image {file}: {reason}; mend or remove it, or leave such files out: --on-error skip")


def _read(
    images: Split, i: int, record: ShardRecord, skip_errors: bool, max_pixels: int, smaller: Smaller | None
) -> Item | None:
    """Image i, counted in the record; None when it is unreadable and may be left out."""
    try:
        item = images[i]
        if i in images.refused:
            raise ImageRefused(images.refused[i])
        made = None if smaller is None else smaller(item.data, max_pixels)
        if made is not None:
            item = item._replace(data=made, extension="jpg")
            record.stats.add_adjusted("resized")
        with open_image(item.data, max_pixels) as image:
            record.stats.add(image)
        name = EXTENSIONS[image.format or ""]
        if _family(item.extension) != _family(name):
            record.stats.add_adjusted("format")
        # A shard's readers know images by the extension.
        return item if item.extension in IMAGE_EXTENSIONS else item._replace(extension=name)
    except MemoryError as error:
        raise UserError(f"not enough memory for image {_place(images, i)}: use fewer --processes") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        if isinstance(error, OSError) and error.errno in _SYSTEM:
            raise UserError(
                f"cannot read image {_place(images, i)}: {error.strerror}; mend that, then the same command continues"
            ) from error
        file, reason = _place(images, i), _reason(error)
    if not skip_errors:
        raise unreadable(file, reason)
    record.skipped.append((file, reason))
    return None


def _place(images: Split, i: int) -> str:
    return images.where(i).encode("utf-8", "backslashreplace").decode()


def _family(extension: str) -> str:
    """The format that an extension stands for."""
    same = {"tiff": "tif", "pgm": "ppm", "pbm": "ppm", "pnm": "ppm", "jpeg": "jpg", "jpe": "jpg", "jfif": "jpg"}
    return same.get(extension, extension)


def _reason(error: Exception) -> str:
    if isinstance(error, ImageRefused):
        more = "; --max-pixels allows more" if "allowed" in str(error) else ""
        return f"it is {error}{more}"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


class _Written:
    """A file that is written to once, front to back, with the checksum of what was."""

    def __init__(self, file: IO[bytes]):
        self._file: IO[bytes] | None = file
        self._digest, self.size = hashlib.sha256(), 0

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file = None  # a tar that was given up writes its end when it is collected

    def write(self, data: bytes) -> int:
        if self._file is None:
            return len(data)
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class _Shard:
    """webdataset's TarWriter, told to write no times, owners or anything else that changes from one run to the next,
    and asked where it put the members."""

    def __init__(self, file: _Written):
        from webdataset.writer import TarWriter  # loads torch, and only who writes needs it

        self._tar = TarWriter(file, encoder=False, user="", group="", mode=0o644, mtime=0)

    def add(self, key: str, extension: str, data: bytes) -> tuple[int, int]:
        """Append a member; returns (offset of its bytes, size). One at a time: of several it sorts the extensions."""
        self._tar.write({"__key__": key, extension: data})
        self._tar.tarstream.members.clear()  # which it would keep to the end, half a kilobyte each
        padded = -(-len(data) // BLOCK) * BLOCK
        return self._tar.tarstream.offset - padded, len(data)

    def finish(self) -> None:
        """Append the end mark, and zeros up to whole records of 20 blocks, as tar does."""
        self._tar.close()
