"""The claims' page on the terminal, in HTML and in Markdown: all of it, and nothing of it acts."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from kdstream.display.claims_page import ClaimsPage, ShownClaim, ShownLine, grid, to_html, to_markdown

VALUES = {"KD": "70.00, 71.00 (mean 70.50; seeds 0, 1)"}
LINES = [
    ShownLine(
        order="CKD > KD",
        setting="T = 1",
        measure="top-1, points",
        printed="+2|3",
        ours="-1.50 (-2.00 to -1.00)",
        seeds=5,
        verdict="reversed",
        interval=(-2, -1.5, -1),
        values=VALUES,
    ),
    ShownLine("CKD > labels", "", "entropy, nat", "", "", 0, "not decided yet", "4 trainings left"),
]
PAGE = ClaimsPage(
    [
        ShownClaim("ckd", "Coded <script> is better.", "ckd, table 7", "reversed", LINES, ["<i>note</i>"]),
        ShownClaim("at", "Another.", "ckd, table 5", "holds", [], []),
    ],
    [("machine", "a\x1b[31m small one")],
)


def test_what_is_shown_is_the_same_everywhere():
    file = io.StringIO()
    Console(file=file, width=200).print(grid(PAGE))
    texts = (file.getvalue(), to_markdown(PAGE), to_html(PAGE))
    for text in texts:
        for said in ("-1.50 (-2.00 to -1.00)", "reversed", "not decided yet"):
            assert said in text
        assert "\x1b" not in text
    for text in texts[1:]:
        assert "1 reversed, 1 holds" in text or "1 holds, 1 reversed" in text
        assert "note" in text
    assert "+2\\|3" in texts[1]
    assert "<script>" not in texts[2]
    assert "70.00, 71.00 (mean 70.50; seeds 0, 1)" in texts[2]
    assert "4 trainings left" in texts[2]


def test_a_bar_has_zero_in_its_middle():
    claim = PAGE.claims[0]
    assert claim.bar(LINES[0]) == {"low": -95.0, "mean": -71.25, "high": -47.5}
    assert claim.bar(LINES[1]) is None
    wider = replace(LINES[0], interval=(0.0, 2.0, 4.0))
    assert replace(claim, lines=[LINES[0], wider]).bar(LINES[0]) == {"low": -47.5, "mean": -35.62, "high": -23.75}
    html = to_html(PAGE)
    assert html.count("<svg") == 1
    assert 'x1="-95.0" x2="-47.5"' in html
