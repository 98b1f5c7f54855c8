"""The papers' claims with what came of them: on the terminal, as one HTML file, as Markdown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid
from rich.text import Text

from kdstream.display.charts import INK
from kdstream.display.pages import pages
from kdstream.terminal import visible

STYLES = {"holds": "green", "reversed": "bold red", "does not show": "yellow", "not decided yet": "dim"}


@dataclass(frozen=True)
class ShownLine:
    """One comparison, in words.

    Attributes:
        order: what shall hold, by the rows' labels.
        setting: in which; empty where there is one alone.
        measure: of what, with its unit.
        printed: the paper's effect; empty where none is printed.
        ours: mean and interval; empty where there is none yet.
        seeds: pairs that it is over.
        verdict: see :data:`STYLES`.
        lacking: what is left to train; empty where nothing is.
        interval: low, mean and high, of which a bar is drawn; None = no bar.
        values: row -> its values with their mean, in words.
    """

    order: str
    setting: str
    measure: str
    printed: str
    ours: str
    seeds: int
    verdict: str
    lacking: str = ""
    interval: tuple[float, float, float] | None = None
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownClaim:
    """A claim.

    Attributes:
        name: by which commands find it.
        says: it, in words.
        place: paper, table, section.
        verdict: of all lines together.
        lines: its comparisons.
        notes: remarks.
    """

    name: str
    says: str
    place: str
    verdict: str
    lines: list[ShownLine]
    notes: list[str]

    def bar(self, line: ShownLine) -> dict[str, float] | None:
        """A line's interval on an axis from -100 to 100 about 0, of one scale for all lines of its measure."""
        if line.interval is None:
            return None
        alike = [one.interval for one in self.lines if one.interval is not None and one.measure == line.measure]
        most = max(abs(value) for interval in alike for value in interval) or 1.0
        low, mean, high = (round(95 * value / most, 2) for value in line.interval)
        return {"low": low, "mean": mean, "high": high}


@dataclass(frozen=True)
class ClaimsPage:
    """All claims, in the order in which they are shown.

    Attributes:
        claims: them.
        facts: how to read it, where it was made: name, text.
    """

    claims: list[ShownClaim]
    facts: list[tuple[str, str]] = field(default_factory=list)
    title: str = "Do the papers' claims hold?"

    @property
    def summary(self) -> str:
        """How many have which verdict."""
        counts = Counter(claim.verdict for claim in self.claims)
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES if counts[verdict])


def grid(page: ClaimsPage) -> Grid:
    """The claims for a terminal."""
    found = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("claim", "order", "printed"):
        found.add_column(column, overflow="fold")
    found.add_column("ours, 95 % interval", justify="right")
    found.add_column("seeds", justify="right")
    found.add_column("verdict", no_wrap=True)
    for claim in page.claims:
        for i, line in enumerate(claim.lines):
            words = (claim.name if i == 0 else "", _order(line), line.printed, line.ours, str(line.seeds))
            style = STYLES.get(line.verdict, "")
            found.add_row(*(Text(visible(word)) for word in words), Text(line.verdict, style=style))
    return found


def _order(line: ShownLine) -> str:
    of = "" if line.measure.startswith("top-1") else f"{line.measure}: "
    return f"{of}{line.order}" + (f" ({line.setting})" if line.setting else "")


def to_markdown(page: ClaimsPage) -> str:
    """The claims as Markdown."""

    def text(value: str) -> str:
        return visible(value).replace("|", "\\|")

    lines = [f"# {text(page.title)}", "", page.summary, ""]
    lines += ["| claim | order | printed | ours (95 % interval) | seeds | verdict |", "|---|---|---|---|---|---|"]
    for claim in page.claims:
        for i, line in enumerate(claim.lines):
            said = f"{claim.says} ({claim.place})" if i == 0 else ""
            words = (said, _order(line), line.printed, line.ours, str(line.seeds), line.verdict)
            lines.append("| " + " | ".join(map(text, words)) + " |")
    lines += ["", *(f"- {text(name)}: {text(value)}" for name, value in page.facts)]
    notes = [f"- {claim.name}: {note}" for claim in page.claims for note in claim.notes]
    lines += ["", *map(text, notes)] if notes else []
    return "\n".join(lines).rstrip() + "\n"


def to_html(page: ClaimsPage) -> str:
    """The claims as one HTML page that loads nothing from anywhere."""
    return pages().get_template("claims_page.html").render(page=page, ink=INK)
