"""Charts for a page: curves and bars as SVG by matplotlib, in the page's own colours and letters."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from kdstream.terminal import visible

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that white paper swallows;
# second of each pair: the same hue for a dark page.
PALETTE = [
    ("#0072b2", "#4aa8e8"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2cc79b"),
    ("#b0508a", "#e08fc0"),
    ("#b97f00", "#e9ab25"),
    ("#2a9bd6", "#8ed1f5"),
]
INK, GRID, SHADE = "#1b1b1f", "#c9c9d1", "#e9e9ef"
DASHES: dict[str, tuple[float, ...]] = {"solid": (), "dashed": (6, 3), "dotted": (2, 2.5), "dashdot": (8, 3, 2, 3)}


@dataclass(frozen=True)
class Look:
    """How a run is drawn: a colour of the palette (None = ink) and a dash pattern."""

    name: str
    colour: int | None
    dash: str

    @property
    def stroke(self) -> str:
        """The colour, for CSS."""
        return "var(--ink)" if self.colour is None else f"var(--c{self.colour})"

    @property
    def pattern(self) -> str:
        """``stroke-dasharray`` of an SVG; empty for a solid line."""
        return " ".join(map(str, DASHES[self.dash]))


def nth_look(name: str, n: int) -> Look:
    """First all colours with solid lines, then all of them dashed, and so on."""
    return Look(name, n % len(PALETTE), list(DASHES)[n // len(PALETTE) % len(DASHES)])


@dataclass
class Line:
    """One curve: NaN is a gap."""

    x: list[float]
    y: list[float]
    colour: int | None
    dash: str = "solid"
    dots: bool = True
    stairs: bool = False


@dataclass
class Chart:
    """A drawn chart: SVG that takes its colours from the page, and what stands above it."""

    title: str
    note: str
    svg: Markup
    looks: Sequence[Look] = ()


class Plotter:
    """Draws charts as inline SVG that takes its colours from the page.

    matplotlib's objects are used without pyplot, so nothing outlives a chart.
    """

    def __init__(self) -> None:
        self._count = 0

    def lines(
        self,
        title: str,
        curves: Sequence[Line],
        note: str = "",
        log: bool = False,
        shade: float = 0,
        over: str = "epoch",
    ) -> Chart | None:
        """A chart of curves over epochs, or over what else is named; epochs up to ``shade`` are marked as preparation.
        None without any value."""
        curves = [curve for curve in curves if any(map(math.isfinite, curve.y))]
        if not curves:
            return None
        short = max(len(curve.y) for curve in curves) <= 12

        def draw(axes: Any) -> None:
            from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

            if shade:
                axes.axvspan(0.5, shade + 0.5, color=SHADE, linewidth=0, zorder=0)
            for curve in curves:
                axes.plot(
                    curve.x,
                    curve.y,
                    color=_colour(curve.colour),
                    linestyle=(0, DASHES[curve.dash]) if curve.dash != "solid" else "solid",
                    linewidth=1.4,
                    marker="o",
                    markersize=3.2,
                    markevery=_marked(curve.y, everywhere=short) if curve.dots else [],
                    drawstyle="steps-post" if curve.stairs else "default",
                    solid_joinstyle="round",
                )
            if log:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # no mathtext: it is slow
                axes.yaxis.set_minor_formatter(NullFormatter())
            xs = [x for curve in curves for x in curve.x]
            margin = max((max(xs) - min(xs)) * 0.02, 0.5 if max(xs) == min(xs) else 0.0)
            axes.set_xlim(min(xs) - margin, max(xs) + margin)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=over == "epoch", min_n_ticks=1))
            axes.set_xlabel(over)

        return self._figure(title, note, draw)

    def bars(self, title: str, labels: Sequence[str], heights: Sequence[float], note: str = "") -> Chart:
        """A bar chart of JPEG qualities, in the order given; one called "original" stands apart at the end."""

        def draw(axes: Any) -> None:
            colours = [INK if label == "original" else _colour(0) for label in labels]
            axes.bar(range(len(labels)), heights, width=0.8, color=colours)
            step = math.ceil(len(labels) / 11)
            shown = [i for i in range(len(labels)) if labels[i] == "original" or i % step == 0]
            if len(shown) > 1 and labels[shown[-1]] == "original" and shown[-1] - shown[-2] < step:
                del shown[-2]  # their names would touch
            axes.set_xticks(shown, [labels[i].replace("original", "orig.") for i in shown])
            axes.set_ylabel("% of images")
            axes.set_xlabel("JPEG quality of the version that the teacher saw")

        return self._figure(title, note, draw)

    def dots(self, title: str, rows: Sequence[tuple[str, Sequence[float]]], label: str, note: str = "") -> Chart:
        """Rows of values, from above: a dot for each, and a stroke at their mean.

        Args:
            title, note: what stands above it.
            rows: name and values, at least one.
            label: of the axis of values.
        """

        def draw(axes: Any) -> None:
            for i, (_, values) in enumerate(rows):
                mean = math.fsum(values) / len(values)
                axes.plot([mean, mean], [i - 0.3, i + 0.3], color=INK, linewidth=1.6, solid_capstyle="butt")
                # Equal values stand beside one another.
                seen: dict[float, int] = {}
                for value in values:
                    seen[value] = seen.get(value, 0) + 1
                    shift = (seen[value] // 2) * 0.12 * (1 if seen[value] % 2 else -1)
                    axes.plot([value], [i + shift], color=_colour(0), marker="o", markersize=4.2, alpha=0.8)
            _rows(axes, [name for name, _ in rows], label)

        return self._figure(title, note, draw, max(0.8 + 0.27 * len(rows), 1.6))

    def intervals(
        self,
        title: str,
        rows: Sequence[tuple[str, float, float | None, float | None]],
        label: str,
        note: str = "",
    ) -> Chart:
        """Rows of differences, from above, each with its interval; those that leave 0 out are drawn in colour.

        Args:
            title, note: what stands above it.
            rows: name, difference, and the ends of its interval (None = unknown).
            label: of the axis of differences.
        """

        def draw(axes: Any) -> None:
            axes.axvline(0, color=INK, linewidth=0.9)
            for i, (_, mean, low, high) in enumerate(rows):
                apart = low is not None and high is not None and (low > 0 or high < 0)
                colour = INK if not apart else _colour(2 if mean > 0 else 1)
                if low is not None:
                    axes.plot([low, high], [i, i], color=colour, linewidth=1.8, solid_capstyle="butt")
                axes.plot([mean], [i], color=colour, marker="o", markersize=5)
            _rows(axes, [name for name, *_ in rows], label)

        return self._figure(title, note, draw, max(0.8 + 0.27 * len(rows), 1.6))

    def scatter(
        self, title: str, points: Sequence[tuple[str, float, float, float | None]], across: str, up: str, note: str = ""
    ) -> Chart:
        """Points with their names at the right side.

        Args:
            title, note: what stands above it.
            points: name, x, y, and the deviation of y (None = unknown).
            across, up: names of the axes.
        """

        height = max(2.9, 0.8 + 0.27 * len(points))

        def draw(axes: Any) -> None:
            for i, (_, x, y, deviation) in enumerate(points):
                look = nth_look("", i)
                if deviation is not None:
                    axes.plot([x, x], [y - deviation, y + deviation], color=_colour(look.colour), linewidth=1)
                axes.plot([x], [y], color=_colour(look.colour), marker="o", markersize=5.5)
            axes.margins(0.12, 0.08)
            low, high = axes.get_ylim()
            order = sorted(range(len(points)), key=lambda i: points[i][2])
            places = _apart(
                [(points[i][2] - low) / (high - low) for i in order], 0.17 / (height - 0.7)
            )  # a line of text
            for i, place in zip(order, places, strict=True):
                name, x, y, _ = points[i]
                axes.annotate(
                    visible(name),
                    (x, y),
                    (1.04, place),
                    textcoords="axes fraction",
                    va="center",
                    annotation_clip=False,
                    parse_math=False,
                    arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
                )
            axes.set_xlabel(across)
            axes.set_ylabel(up)

        return self._figure(title, note, draw, height)

    def matrix(
        self,
        title: str,
        values: Sequence[Sequence[float]],
        names: Sequence[str],
        columns: Sequence[str] | None = None,
        note: str = "",
        across: str = "",
        down: str = "",
        top: float | None = None,
    ) -> Chart:
        """Numbers as shades: the larger the darker, those below 0 in another colour; written into the cells where they
        are few. NaN is an empty cell.

        Args:
            title, note: what stands above it.
            values: [R][C].
            names: of the rows; shown where they are few.
            columns: names of the columns (None = those of the rows).
            across, down: names of the axes.
            top: what is darkest (None = the largest magnitude).
        """
        columns = names if columns is None else columns
        known = [abs(value) for row in values for value in row if math.isfinite(value)]
        highest = top or max(known, default=0.0) or 1.0

        def draw(axes: Any) -> None:
            # Colour over nothing, more or less of it, so that dark pages are served as well.
            shades = [[_shade(value, highest) for value in row] for row in values]
            axes.imshow(shades, aspect="equal", interpolation="nearest")
            axes.grid(False)
            axes.spines[:].set_visible(False)
            for labels, place in ((columns, axes.set_xticks), (names, axes.set_yticks)):
                few = len(labels) <= 24
                upright = {"rotation": 90} if place == axes.set_xticks and max(map(len, labels), default=0) > 3 else {}
                place(range(len(labels)) if few else [], labels=[visible(n) for n in labels] if few else [], **upright)
            axes.tick_params(length=0)
            if len(values) <= 12 and len(columns) <= 12:
                small = 9 if len(columns) <= 8 else 7
                for i, row in enumerate(values):
                    for j, value in enumerate(row):
                        if math.isfinite(value):
                            text = f"{value:.0f}" if highest >= 20 else "0" if abs(value) < 5e-4 else f"{value:.2g}"
                            axes.text(j, i, text, ha="center", va="center", fontsize=small, color=INK)
            axes.set_xlabel(across)
            axes.set_ylabel(down)

        return self._figure(title, note, draw, 4.4)

    def clouds(self, title: str, groups: Sequence[tuple[str, Sequence[tuple[float, float]]]], note: str = "") -> Chart:
        """Points of groups by place, without axes; a group's name stands at its middle where groups are few.

        Args:
            title, note: what stands above it.
            groups: names, and points (x, y).
        """

        def draw(axes: Any) -> None:
            from statistics import median

            for i, (_, points) in enumerate(groups):
                mark = "os^D"[i // len(PALETTE) % 4]
                style = {"linestyle": "none", "marker": mark, "markersize": 2.4, "markeredgewidth": 0, "alpha": 0.75}
                axes.plot([x for x, _ in points], [y for _, y in points], color=_colour(i % len(PALETTE)), **style)
            for name, points in groups if len(groups) <= 20 else ():
                if points:
                    middle = median(x for x, _ in points), median(y for _, y in points)
                    axes.text(*middle, visible(name), ha="center", va="center", fontsize=9, weight="bold", color=INK)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.grid(False)

        return self._figure(title, note, draw, 4.0)

    def _figure(self, title: str, note: str, draw: Callable[[Any], None], height: float = 2.9) -> Chart:
        # Imported here: whoever only trains should not wait for matplotlib.
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._count += 1
        style: dict[Any, Any] = {
            "svg.fonttype": "none",  # text stays text: small, sharp, in the page's own font
            "svg.hashsalt": f"figure{self._count}",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.linewidth": 0.7,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.5,
            "axes.formatter.use_mathtext": False,
            "text.usetex": False,
            "path.simplify": True,
            "path.simplify_threshold": 0.3,
        }
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(4.6, height), layout="constrained")
            FigureCanvasSVG(figure)
            figure.patch.set_visible(False)
            axes = figure.add_subplot()
            axes.patch.set_visible(False)
            draw(axes)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        return Chart(title, note, Markup(_page_svg(buffer.getvalue(), f"f{self._count}", title)))


def _page_svg(svg: str, prefix: str, title: str) -> str:
    """matplotlib's SVG made fit for a page: colours as CSS variables, ids unique in the page, no dead weight."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(?<= d=")[^"]+', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", " ".join(m[0].split())), svg)
    svg = re.sub(r"font: [^;\"]*", "font-size: 10px", svg)
    colours = {INK: "--ink", GRID: "--grid", SHADE: "--shade"}
    colours |= {light: f"--c{i}" for i, (light, _) in enumerate(PALETTE)}
    svg = re.sub(r"#[0-9a-f]{6}", lambda m: f"var({colours[m[0]]})" if m[0] in colours else m[0], svg)
    svg = re.sub(r">\s+<", "><", svg)
    name = escape(visible(title, keep="\n"))
    return svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _rows(axes: Any, names: Sequence[str], label: str) -> None:
    """Name the rows of a chart, the first one at its top."""
    axes.set_yticks(range(len(names)), [visible(name) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_xlabel(label)


def _apart(places: Sequence[float], least: float) -> list[float]:
    """Rising places, moved so that each is at least so far from the next, none above 1."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + least) if found else place)
    for i in reversed(range(len(found))):
        found[i] = min(found[i], found[i + 1] - least if i + 1 < len(found) else 1.0)
    return found


def _marked(values: Sequence[float], everywhere: bool) -> list[int]:
    """Where a dot is drawn: at every value, or only at those that no line reaches."""
    seen = [False, *map(math.isfinite, values), False]
    return [i for i in range(len(values)) if seen[i + 1] and (everywhere or not (seen[i] or seen[i + 2]))]


def _shade(value: float, highest: float) -> tuple[float, float, float, float]:
    """Red, green, blue and how much of them, 0..1."""
    if not math.isfinite(value):
        return (0.0, 0.0, 0.0, 0.0)
    colour = PALETTE[0 if value >= 0 else 1][0]
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (red, green, blue, 0.75 * min(abs(value) / highest, 1.0))


def _colour(number: int | None) -> str:
    return INK if number is None else PALETTE[number][0]
