"""What a page shows is text of which nothing acts; markup of ours stays; nothing is left out in silence."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from kdstream.display.pages import pages


def test_values_are_text():
    template = pages().from_string("{{ said }} {{ chart }}")
    shown = template.render(said="<b>a\x1b[2Jb</b>\nc", chart=Markup("<svg/>"))
    assert shown.startswith("&lt;b&gt;a")
    assert shown.endswith("b&lt;/b&gt;\nc <svg/>")
    assert "\x1b" not in shown
    with pytest.raises(UndefinedError):
        template.render(said="x")


def test_all_templates_compile():
    assert {name for name in pages().list_templates(["html"]) if pages().get_template(name)} == {
        "charts.html",
        "claims_page.html",
        "compare_page.html",
        "figures_page.html",
        "report.html",
        "table_page.html",
    }
