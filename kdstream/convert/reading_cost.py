"""What it will cost to train from photographs as they are, measured on some of them, and from smaller ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kdstream.convert.smaller import Smaller
from kdstream.convert.split import Split
from kdstream.data.image_file import open_image, to_rgb
from kdstream.data.image_stats import ImageStats

LARGE = 1_000_000
"""Pixels an image, on the average, above which there is something to say."""
MEASURED = 8
"""Images that are decoded for it."""
OFFERED = 256
"""Shorter side that is offered: from it, views of 224 pixels are cut."""


def is_large(stats: ImageStats) -> bool:
    """Whether the images of a split are so large that reading them is what a training waits for."""
    return _pixels(stats) > LARGE


def _pixels(stats: ImageStats) -> float:
    """Of an image, on the average."""
    return int(stats.histogram[0].sum()) / max(stats.count, 1)


def cost_of(name: str, images: Split, numbers: Sequence[int], stats: ImageStats) -> list[str]:
    """What to say of a split of large images.

    Args:
        name: its name.
        images: its images.
        numbers: of some of them; those that cannot be decoded do not count.
        stats: of the whole split.

    Returns:
        One line; none where no image can be decoded, or none is larger than what is offered.
    """
    smaller = Smaller(OFFERED)
    whole = less = bytes_whole = bytes_less = 0.0
    count = 0
    for number in numbers:
        try:
            data = images.load(number)
            made = smaller(data)
            if made is None:
                continue
            whole += _decoding_seconds(data)
            less += _decoding_seconds(made)
        except Exception:  # Pillow raises many kinds for damaged files
            continue
        bytes_whole, bytes_less, count = bytes_whole + len(data), bytes_less + len(made), count + 1
    if not count:
        return []
    whole, less = whole / count, less / count
    return [
        f"the images of {name} have {_pixels(stats) / 1e6:.1f} megapixels on the average: to decode one takes "
        f"{1e3 * whole:.0f} ms of a core here, an epoch of {stats.count:,} images {_time(whole * stats.count)}; with "
        f"--resize {OFFERED} it takes {1e3 * less:.1f} ms and {_time(less * stats.count)}, and "
        f"{bytes_less / count / 1e3:,.0f} KB an image in place of {bytes_whole / count / 1e3:,.0f}"
    ]


def _decoding_seconds(data: bytes) -> float:
    """Of one image: the faster of two times, for the first may be that of a cold cache."""
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        to_rgb(open_image(data))
        times.append(time.perf_counter() - begin)
    return min(times)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
