"""Charts: SVG that is well formed, takes its colours from the page, and draws what is there."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.display.charts import DASHES, PALETTE, Line, Plotter, nth_look

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=14)


def test_looks_are_told_apart_as_long_as_there_are_some():
    looks = [nth_look("run", n) for n in range(len(PALETTE) * len(DASHES))]
    assert len({(look.stroke, look.pattern) for look in looks}) == len(looks)
    assert nth_look("run", len(looks)) == looks[0]


@given(VALUES, st.text(max_size=20))
@settings(max_examples=15)
def test_a_curve_has_a_point_for_every_value(values, title):
    chart = Plotter().lines(title, [Line([*range(len(values))], values, 1, dots=False)])
    if not any(map(math.isfinite, values)):
        assert chart is None
        return
    ElementTree.fromstring(chart.svg)
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--c1\)', chart.svg)
    joined = any(map(math.isfinite, (sum(pair) for pair in itertools.pairwise(values))))
    assert ("L" in "".join(paths)) == joined  # a line where two neighbours are, and over no gap
    assert chart.title == title


def test_colours_are_the_pages_and_ids_differ_from_chart_to_chart():
    plotter = Plotter()
    charts = [plotter.bars("which", ["original", "50", "100"], [20, 30, 50]) for _ in range(2)]
    ids = [re.findall(r'\bid="([^"]+)"', chart.svg) for chart in charts]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert "var(--ink)" in charts[0].svg
    assert "var(--c0)" in charts[0].svg
    assert not any(colour in charts[0].svg for pair in PALETTE for colour in pair)
    assert "orig." in charts[0].svg


def test_every_value_of_a_row_has_its_dot_and_every_row_its_name():
    rows = [("<a> $x$", [1.0, 2.0, 2.0, 5.0]), ("b", [3.0])]
    chart = Plotter().dots("seeds", rows, "top-1, %")
    ElementTree.fromstring(chart.svg)
    assert chart.svg.count("<use ") >= 5
    assert "&lt;a&gt; $x$" in chart.svg
    assert "top-1, %" in chart.svg


def test_intervals_that_leave_0_out_are_coloured_by_their_side():
    rows = [
        ("up", 1.0, 0.5, 1.5),
        ("down", -1.0, -1.5, -0.5),
        ("neither", 0.2, -1.0, 1.4),
        ("unknown", 2.0, None, None),
    ]
    for some, colours in (([0], {"--c2"}), ([1], {"--c1"}), ([2, 3], set()), ([0, 1, 2, 3], {"--c1", "--c2"})):
        svg = Plotter().intervals("over", [rows[i] for i in some], "points").svg
        ElementTree.fromstring(svg)
        assert set(re.findall(r"--c\d", svg)) == colours


@pytest.mark.parametrize("count", [3, 12])
def test_names_of_points_do_not_lie_on_one_another(count):
    points = [(f"method {i}", 10.0, 70.0 + 0.001 * i, 0.1 if i else None) for i in range(count)]
    svg = Plotter().scatter("cost", points, "seconds", "top-1, %").svg
    ElementTree.fromstring(svg)
    places = sorted(float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>method \d', svg))
    assert len(places) == count
    assert all(second - first >= 10 for first, second in itertools.pairwise(places)), "letters of 10 points"
