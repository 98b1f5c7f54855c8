"""The JPEG round trip: what an image looks like after it was saved as JPEG at some quality, without any JPEG bytes."""

from __future__ import annotations

from kdstream.jpeg.reference import roundtrip
from kdstream.jpeg.tables import quant_table

__all__ = ["quant_table", "roundtrip"]
