"""What an analysis found: its tables on the terminal and on a page that loads nothing."""

from __future__ import annotations

import io

from rich.console import Console

from kdstream.display.charts import Plotter
from kdstream.display.figures_page import Cells, FiguresPage, grids, to_html


def test_tables_and_charts_stand_on_the_page_and_names_do_not_act():
    draw = Plotter()
    nan = float("nan")
    charts = [
        draw.matrix("shades", [[1.0, -2.0], [nan, 30.0]], ["<a>", "b"], across="source"),
        draw.clouds("cloud", [("birds", [(0.0, 1.0), (1.0, 0.0)]), ("none", [])]),
    ]
    table = Cells("numbers", "network", ["top-1"], [("<b>", ["61.50"]), ("c", ["9"])], frozenset({(0, 0)}))
    page = FiguresPage("Title", "of 3 images", [table], charts, [("top-1", "percent")], ["a note"])
    html = to_html(page)
    for text in ("&lt;b&gt;", "<b>61.50</b>", "<td>9</td>", "&lt;a&gt;", "source", "birds", "a note", "of 3 images"):
        assert text in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert ">30<" in charts[0].svg
    assert ">nan<" not in charts[0].svg
    console = Console(width=80, record=True, file=io.StringIO())
    ((heading, grid),) = grids(page)
    console.print(grid)
    assert heading == "numbers"
    assert "<b>" in console.export_text()
