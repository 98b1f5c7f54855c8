"""Sizes and per-channel mean and deviation of a set of images: exact, whatever the order they are counted in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from kdstream.data.image_file import to_rgb

CHANNELS, LEVELS = 3, 256


@dataclass
class ImageStats:
    """What is counted over images: three histograms and the range of the sizes.

    Counts are integers, hence statistics of parts can be added in any order and give the same result to the bit.
    Every pixel has the same weight: a large image counts for more than a small one.

    Attributes:
        count: number of images.
        histogram: int64 [3,256], how many pixels have each 8-bit level in R, G, B.
        smallest: (height, width), each the minimum over the images; None when there is none.
        largest: (height, width), each the maximum.
        adjusted: how many images were more than plain 8 bits, by what was done to them: "orientation" = turned
            upright, "alpha" = laid on white, "depth" = brought to 8 bits, "frames" = the first of several was taken,
            "format" = of another format than their name says.
    """

    count: int = 0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros((CHANNELS, LEVELS), np.int64))
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    adjusted: dict[str, int] = field(default_factory=dict)

    def add(self, image: Image.Image) -> None:
        """Count one image: its pixels as :func:`~kdstream.data.image_file.to_rgb` gives them to training, upright.

        Raises:
            Exception: whatever Pillow raises for pixels that cannot be decoded; nothing is counted then.
        """
        seen: list[str] = []
        rgb = to_rgb(image, seen=seen)  # may raise, so it comes before anything is changed
        levels = rgb.histogram()
        self.histogram += np.asarray(levels, np.int64).reshape(CHANNELS, LEVELS)
        self.add_size(rgb.height, rgb.width)
        for name in seen:
            self.add_adjusted(name)

    def add_adjusted(self, name: str, count: int = 1) -> None:
        """Count images to which something was done."""
        self.adjusted[name] = self.adjusted.get(name, 0) + count

    def add_size(self, height: int, width: int) -> None:
        """Count one image of which only the size is known."""
        self.count += 1
        self._widen((height, width), (height, width))

    def merge(self, other: ImageStats) -> None:
        """Add the counts of ``other``."""
        self.count += other.count
        self.histogram += other.histogram
        if other.smallest is not None and other.largest is not None:
            self._widen(other.smallest, other.largest)
        for name, count in other.adjusted.items():
            self.add_adjusted(name, count)

    def _widen(self, smallest: tuple[int, int], largest: tuple[int, int]) -> None:
        low, high = self.smallest or smallest, self.largest or largest
        self.smallest = (min(low[0], smallest[0]), min(low[1], smallest[1]))
        self.largest = (max(high[0], largest[0]), max(high[1], largest[1]))

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) when all images have one size, else None."""
        return self.smallest if self.smallest == self.largest else None

    def mean_std(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Per-channel mean and standard deviation (of the population, not the sample) of the pixels, in [0,1].

        Sums are Python integers, so nothing is rounded before the last division. (0, 0, 0) and (1, 1, 1) when no
        pixel was counted.
        """
        means, stds = [], []
        for row in self.histogram.tolist():
            pixels = sum(row)
            if pixels == 0:
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            first = sum(level * n for level, n in enumerate(row))
            second = sum(level * level * n for level, n in enumerate(row))
            means.append(first / (pixels * 255))
            stds.append(math.sqrt(pixels * second - first * first) / (pixels * 255))
        return tuple(means), tuple(stds)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, see :meth:`from_json`."""
        return {
            "count": self.count,
            "histogram": self.histogram.tolist(),
            "smallest": self.smallest,
            "largest": self.largest,
            "adjusted": self.adjusted,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ImageStats:
        """The statistics that :meth:`to_json` wrote."""
        histogram = np.asarray(data["histogram"], np.int64).reshape(CHANNELS, LEVELS)
        smallest, largest = (tuple(data[name]) if data[name] else None for name in ("smallest", "largest"))
        adjusted = {str(name): int(count) for name, count in data.get("adjusted", {}).items()}
        return cls(int(data["count"]), histogram, smallest, largest, adjusted)
