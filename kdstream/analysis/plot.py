"""What the figures of the analyses share: canvas, colours, PNG.

matplotlib's objects are used without pyplot, so nothing outlives a figure; it is imported on first use, so that whoever
only measures does not wait for it.
"""

from __future__ import annotations

import io
from typing import Any

BLUE, VERMILION = "#0072B2", "#D55E00"
"""Okabe & Ito's: distinct with any colour vision."""


def canvas(width: float, height: float, title: str) -> Any:
    """An empty matplotlib figure of width x height inches with a title at its top left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title, x=0.008, ha="left", fontsize=11, parse_math=False)
    return made


def plain(*axes: Any, grid: str | None = "y") -> None:
    """Take the frame's top and right away and put a faint grid behind."""
    for each in axes:
        if grid is not None:
            each.grid(axis=grid, alpha=0.25)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)


def png(figure: Any) -> bytes:
    """The figure as a PNG, 150 pixels an inch; the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
