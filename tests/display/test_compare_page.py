"""A comparison on the terminal, in HTML and in Markdown: all of it, in 80 columns, and nothing of it acts."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

from rich.console import Console

from kdstream.analysis.spread import Difference, Spread
from kdstream.display.compare_page import ComparePage, Line, grids, to_html, to_markdown

TOPS = ([78.25, 79.0, 78.5], [77.0, 77.25, 77.5])
OVER = Difference(3, 1.25, -10.5, 12.75)
PAGE = ComparePage(
    "a|b <script>\x1b[31m",
    "500 images",
    ["<b>dist</b> is best."],
    [
        Line("dist|x", "1 ce + 2 dist(tau=4)", "dist/dist/cifar100", dict(enumerate(TOPS[0])), Spread.of(TOPS[0]), OVER,
             OVER, Spread.of([4.5, 5.5]), Spread.of([0.75]), 754.0, 12345.0, 3 * 2**30),
        Line("labels only", "1 ce", "no teacher", dict(enumerate(TOPS[1])), Spread.of(TOPS[1])),
    ],
    [("chance", "of seeds")],
    ["<i>note</i>"],
)  # fmt: skip
SAID = (
    "78.58 ± 0.38",
    "+1.25 [-10.50, +12.75]",
    "5.00 ± 0.71",
    "0.750",
    "12:34",
    "12,345",
    "3,072 MiB",
    "77.25 ± 0.25",
)


def test_the_terminal_shows_every_cell_whole_in_80_columns():
    file = io.StringIO()
    for grid in grids(PAGE):
        Console(file=file, width=80).print(grid)
    text = file.getvalue()
    for said in (*SAID, "dist|x", "labels only"):
        assert said in text
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_html_holds_all_of_it_with_its_figures_and_nothing_acts():
    text = to_html(PAGE)
    for said in (*SAID, "1 ce + 2 dist(tau=4)", "of seeds", "dist|x"):
        assert said.replace("+", "+") in text
    for acting in ("<script>", "<b>dist", "<i>note", "\x1b"):
        assert acting not in text
    assert "&lt;b&gt;dist" in text
    assert "http" not in text.partition("<body>")[2].replace("http://www.w3.org", "")
    titles = ["Every seed", "Over labels only", "Over kd", "Accuracy and cost"]
    assert [title for title in titles if f'aria-label="{title}"' in text] == titles
    for svg in text.split("<svg ")[1:]:
        ElementTree.fromstring("<svg " + svg.partition("</svg>")[0] + "</svg>")


def test_one_seed_and_nothing_finished_still_make_a_page():
    single = Line("kd", "kd", "x", {0: 50.0}, Spread.of([50.0]), Difference(1, 2.0, None, None))
    text = to_html(ComparePage("t", "a", ["s"], [single]))
    assert "+2.00" in text
    assert "hold together" not in text
    assert "<svg" not in to_html(ComparePage("t", "a", ["s"], []))


def test_markdown_is_three_tables():
    lines = to_markdown(PAGE).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == 3 * 4
    assert "- **<b>dist</b> is best.**" in lines
    assert any("dist\\|x" in line and "+1.25 [-10.50, +12.75]" in line for line in tables)
    assert "\x1b" not in "".join(lines)
