"""decode: image bytes to pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from kdstream.errors import UserError
from kdstream.stream.image_file import open_image
from kdstream.stream.shards import IMAGE_EXTENSIONS
from kdstream.stream.stage import stage
from kdstream.types import Sample


def read_image(data: bytes, what: str) -> torch.Tensor:
    """Decode one image file.

    Args:
        data: the file's bytes, any format that Pillow reads.
        what: names the image in messages.

    Returns:
        uint8 [3,H,W], RGB; grey images have three equal channels, transparency is dropped.

    Raises:
        UserError: the bytes are no whole image.
    """
    try:
        with open_image(data) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"cannot decode {what} ({reason}): the shard is damaged or was made from a broken file; "
            "check the set with `python tools/make_shards.py --verify FOLDER` and make it again with --on-error skip"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@stage
def decode(samples: Iterator[Sample]) -> Iterator[Sample]:
    """Add ``image`` (uint8 [3,H,W], RGB) and ``label`` (int, from ``cls``) to every sample."""
    for sample in samples:
        extension = next((name for name in sample if name.lower() in IMAGE_EXTENSIONS), None)
        what = f"sample {sample.get('__key__')!r} of {sample.get('__url__')}"
        if extension is None:
            raise UserError(f"{what} holds no image: its members are {', '.join(n for n in sample if n[:2] != '__')}")
        sample["image"] = read_image(sample[extension], f"{what} ({extension})")
        sample["label"] = int(sample["cls"])
        yield sample
