"""What figures share: the same bytes for the same figure, text that is only text, and no trace in pyplot."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from kdstream.analysis.plot import BLUE, canvas, plain, png


def drawn(title: str) -> bytes:
    figure = canvas(4, 3, title)
    axes = figure.add_subplot()
    axes.bar(range(3), [1, 2, 3], color=BLUE)
    plain(axes)
    assert not axes.spines["top"].get_visible()
    assert axes.spines["left"].get_visible()
    return png(figure)


def test_a_figure_has_its_size_and_the_same_bytes_each_time():
    first = drawn("a")
    assert drawn("a") == first
    assert drawn("b") != first
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (600, 450)
        assert (np.asarray(image.convert("RGB")) == (0x00, 0x72, 0xB2)).all(-1).mean() > 0.1


def test_formulas_in_a_title_are_text_and_pyplot_knows_of_no_figure():
    from matplotlib import _pylab_helpers

    assert drawn(r"$\frac{1$ of $_x")  # as a formula it would be none
    assert not _pylab_helpers.Gcf.figs
