"""Pages: how the HTML templates beside this file are filled in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdstream.terminal import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def pages() -> Environment:
    """The templates. What they show is escaped and does not act on a terminal; a name that is missing is an error."""
    # Imported here: whoever only trains should not wait for it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def readable(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(value, keep="\n")  # charts are markup already

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
