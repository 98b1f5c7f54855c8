"""A paper's table on the terminal, in HTML and in Markdown: all of it, and nothing of it acts."""

from __future__ import annotations

import io

from rich.console import Console

from kdstream.display.table_page import Shown, TablePage, grids, to_html, to_markdown

FULL = Shown("73.08±0.2", "72.00 ± 2.00", "75.00 ± 1.00", 3, "+1.92", True, "lacks 2: 480 epochs", ("<b>why</b>",))
PAGE = TablePage(
    "a|b <script>\x1b[31m",
    "paper, table 1",
    ["one|two", "three"],
    [("KD", [FULL, Shown("n/a")]), ("AT", [Shown(), FULL])],
    [("compared", "the best")],
    ["<i>note</i>"],
)
SAID = ("73.08±0.2", "last 72.00 ± 2.00", "best 75.00 ± 1.00", "+1.92*, n = 3", "lacks 2: 480 epochs", "n/a")


def printed(width):
    found = grids(PAGE, width)
    file = io.StringIO()
    for grid in found:
        Console(file=file, width=width).print(grid)
    return len(found), file.getvalue()


def test_as_many_columns_stand_side_by_side_as_have_room():
    wide, narrow = printed(200), printed(32)
    assert (wide[0], narrow[0]) == (1, 2)
    for _, text in (wide, narrow):
        for said in (
            "73.08±0.2",
            "last 72.00 ± 2.00",
            "best 75.00 ± 1.00",
            "+1.92*, n = 3",
            "lacks 2: 480 epochs",
            "n/a",
        ):
            assert said in text


def test_html_holds_all_of_it_and_nothing_acts():
    text = to_html(PAGE)
    for said in ("last 72.00 ± 2.00", "+1.92*, n = 3", "lacks 2: 480 epochs", "the best", "one|two"):
        assert said in text
    assert text.count('class="marked"') == 2
    for acting in ("<script>", "<b>why", "<i>note", "\x1b"):
        assert acting not in text
    assert "&lt;b&gt;why" in text
    assert "http" not in text.partition("<body>")[2]


def test_markdown_is_one_table():
    lines = to_markdown(PAGE).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "73.08±0.2<br>last 72.00 ± 2.00<br>best 75.00 ± 1.00<br>+1.92*, n = 3<br>lacks 2: 480 epochs" in table[2]
    assert "\x1b" not in "".join(lines)
