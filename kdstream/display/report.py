"""The report of a job: one HTML file with the table, the curves and everything that is needed to repeat it."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from kdstream.atomic import write_atomic, writing
from kdstream.display.numbers import best_index, format_column, format_number, format_seconds
from kdstream.terminal import visible


@dataclass
class RunRecord:
    """What is known of one run.

    Attributes:
        name: shown as it is.
        metrics: rows of ``metrics.jsonl``: ``phase``, ``epoch``, ``lr``, ``loss``, ``loss/<term>``, ``val/top1``
            (percent), ...; a value may be missing or None.
        speed: rows of ``speed.jsonl``: ``images_per_s``, ``wait_share`` (0..1), ``seconds``.
        result: ``top1``, ``top5`` (percent), ``params``, ``images_per_s``, ``seconds``, as far as they are known.
            ``baseline`` True marks the run that others are compared with; without a mark it is the first whose only
            loss term is ``ce``. ``qualities``: {JPEG quality: how often it was chosen}, -1 = the original.
            ``teacher``: {"entropy": [mean, std], "gt_probability": [mean, std]} of the teacher's answers to the images
            of this run (the coded teacher's where there are ``qualities``); ``plain`` and ``coded``: the same of the
            two teachers measured side by side.
        role: "student"; "assistant" for one that only hands on to the students what it learns; "peer" for one that
            learnt in the same run as a student that is better.
    """

    name: str
    metrics: list[dict[str, Any]] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    role: str = "student"


def write_report(
    path: str | os.PathLike[str],
    title: str,
    runs: Sequence[RunRecord],
    teacher: RunRecord | None = None,
    facts: Mapping[str, str] | None = None,
    recipe_text: str = "",
) -> Path:
    """Write the report of ``runs`` to ``path``: one HTML file that loads nothing from anywhere.

    Args:
        path: the file; its folder is made when missing, an older report is replaced in one step.
        title: heading of the page.
        runs: the students, in the order in which they are to stand.
        teacher: their teacher, if there is one.
        facts: what else a reader needs to repeat the job: versions, machine, data set, command, seed.
        recipe_text: the recipe as YAML.

    Returns:
        The path of the written file.

    Raises:
        DiskError: it cannot be written.
    """
    path = Path(path)
    page = _page(title, list(runs), teacher, facts or {}, recipe_text)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page.encode("utf-8", "replace"))
    return path


def _page(
    title: str, runs: list[RunRecord], teacher: RunRecord | None, facts: Mapping[str, str], recipe_text: str
) -> str:
    now = datetime.now().astimezone()
    runs = [*([teacher] if teacher else []), *runs]
    looks = _looks(runs, teacher)
    draw = _Plotter()
    sections = [
        _summary(runs, teacher, looks),
        _section("Curves", _legend(looks), _grid(_shared_charts(runs, teacher, looks, draw))),
        _section("Loss by term", _grid(_term_charts(runs, draw)), open_=len(runs) <= 6),
        _section("JPEG qualities that the coded teacher chose", _grid(_quality_charts(runs, draw))),
        _coded_table(runs),
        _section("Facts", _definitions(facts)),
        _section("Recipe", f"<pre>{_html(recipe_text.strip())}</pre>" if recipe_text.strip() else ""),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{_html(title)}</title>
<style>{_STYLE}{_palette_style()}</style>
</head>
<body>
<header>
<h1>{_html(title)}</h1>
<p class="quiet"><time datetime="{now.isoformat(timespec="seconds")}">{now:%d %B %Y, %H:%M}</time></p>
</header>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


# --- the table


def _summary(runs: Sequence[RunRecord], teacher: RunRecord | None, looks: Sequence[_Look]) -> str:
    if not runs:
        return _section("Results", "<p>No run has finished yet.</p>")
    students = _students(runs, teacher)
    baseline = _baseline(students)
    mine = {id(run) for run in students}
    best = best_index([_top1(run) if id(run) in mine else None for run in runs]) if len(students) > 1 else None
    reference = _top1(baseline) if baseline else None
    differences = [
        None
        if reference is None or id(run) not in mine or run is baseline or _top1(run) is None
        else _top1(run) - reference
        for run in runs
    ]
    columns: list[tuple[str, list[str]]] = [("top-1 %", _decimals([_top1(run) for run in runs], 2))]
    if any(d is not None for d in differences):
        signed = ["" if d is None else f"{d:+.2f}" if math.isfinite(d) else "–" for d in differences]
        columns.append((f"over {baseline.name}" if baseline else "", [s.replace("-", "−") for s in signed]))
    columns += [
        ("top-5 %", _decimals([_number(run.result.get("top5")) for run in runs], 2)),
        ("parameters", format_column([run.result.get("params") for run in runs])),
        ("images/s", [_maybe(_images_per_s(run), format_number) for run in runs]),
        ("data wait", [_maybe(_mean(run.speed, "wait_share"), lambda v: f"{100 * v:.0f}%") for run in runs]),
        ("time", [_maybe(_seconds(run), format_seconds) for run in runs]),
    ]
    columns = [(name, cells) for name, cells in columns if any(cell not in ("–", "") for cell in cells)]
    head = "".join(f"<th scope='col'>{_html(name)}</th>" for name in ["", *(name for name, _ in columns)])
    body = []
    for i, (run, look) in enumerate(zip(runs, looks, strict=True)):
        role = "teacher" if run is teacher else run.role
        tags = f"<span class='tag'>{_html(role)}</span>" if role != "student" else ""
        tags += "<span class='tag best'>best</span>" if i == best else ""
        cells = "".join(f"<td>{_html(cells[i])}</td>" for _, cells in columns)
        mark = " class='best'" if i == best else ""
        body.append(
            f"<tr{mark}><th scope='row'><div>{look.swatch()}<span>{_html(run.name)}{tags}</span></div></th>{cells}</tr>"
        )
    table = f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    return _section("Results", table)


def _students(runs: Sequence[RunRecord], teacher: RunRecord | None) -> list[RunRecord]:
    return [run for run in runs if run is not teacher and run.role == "student"]


def _baseline(students: Iterable[RunRecord]) -> RunRecord | None:
    """The run that learnt from labels only."""
    students = list(students)
    for run in students:
        if run.result.get("baseline") is True:
            return run
    return next((run for run in students if _terms(_main_rows(run)) == ["loss/ce"]), None)


def _top1(run: RunRecord) -> float | None:
    """The run's result; the best epoch's value where no result was handed over."""
    value = _number(run.result.get("top1"))
    if value is not None:
        return value
    values = [row.get("val/top1") for row in _main_rows(run)]
    best = best_index(values)
    return None if best is None else values[best]


def _images_per_s(run: RunRecord) -> float | None:
    value = _number(run.result.get("images_per_s"))
    return _mean(run.speed, "images_per_s") if value is None else value


def _seconds(run: RunRecord) -> float | None:
    value = _number(run.result.get("seconds"))
    known = [row["seconds"] for row in run.speed if _finite(row.get("seconds"))]
    return value if value is not None else sum(known) if known else None


def _coded_table(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        for key in ("teacher", "plain", "coded"):
            answer = run.result.get(key)
            kind = ("coded" if run.result.get("qualities") else "plain") if key == "teacher" else key
            if isinstance(answer, Mapping):
                cells = "".join(f"<td>{_mean_std(answer.get(name))}</td>" for name in ("entropy", "gt_probability"))
                rows.append(f"<tr><th scope='row'>{_html(run.name)}: {kind} teacher</th>{cells}</tr>")
    if not rows:
        return ""
    return _section(
        "How flat the teacher's answers are",
        "<div class='scroll'><table><thead><tr><th></th><th scope='col'>entropy</th>"
        "<th scope='col'>probability of the true class</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div><p class='quiet'>Mean ± standard deviation over images.</p>",
    )


def _mean_std(pair: Any) -> str:
    values = [_number(v) for v in pair] if isinstance(pair, Sequence) and not isinstance(pair, str) else [_number(pair)]
    return " ± ".join(f"{v:.4f}" for v in values if v is not None) or "–"


# --- the curves


@dataclass(frozen=True)
class _Look:
    """How a run is drawn: a colour of the palette (None = ink) and a dash pattern."""

    name: str
    colour: int | None
    dash: str

    def swatch(self) -> str:
        stroke = "var(--ink)" if self.colour is None else f"var(--c{self.colour})"
        dash = _DASHES[self.dash]
        pattern = f" stroke-dasharray='{' '.join(map(str, dash))}'" if dash else ""
        return (
            "<svg class='swatch' viewBox='0 0 28 8' aria-hidden='true'><line x1='1' y1='4' x2='27' y2='4' "
            f"stroke-width='3' style='stroke:{stroke}'{pattern}/></svg>"
        )


# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that white paper swallows;
# second of each pair: the same hue for a dark page.
_PALETTE = [
    ("#0072b2", "#4aa8e8"),
    ("#d55e00", "#f0803c"),
    ("#009e73", "#2cc79b"),
    ("#b0508a", "#e08fc0"),
    ("#b97f00", "#e9ab25"),
    ("#2a9bd6", "#8ed1f5"),
]
_INK, _GRID, _SHADE = "#1b1b1f", "#c9c9d1", "#e9e9ef"
_DASHES: dict[str, tuple[float, ...]] = {"solid": (), "dashed": (6, 3), "dotted": (2, 2.5), "dashdot": (8, 3, 2, 3)}


def _looks(runs: Sequence[RunRecord], teacher: RunRecord | None) -> list[_Look]:
    looks = []
    for run in runs:
        if run is teacher:
            looks.append(_Look(run.name, None, "dotted"))
        else:
            looks.append(_nth_look(run.name, sum(look.colour is not None for look in looks)))
    return looks


def _nth_look(name: str, n: int) -> _Look:
    """First all colours with solid lines, then all of them dashed, and so on."""
    return _Look(name, n % len(_PALETTE), list(_DASHES)[n // len(_PALETTE) % len(_DASHES)])


@dataclass
class _Line:
    """One curve: NaN is a gap."""

    x: list[float]
    y: list[float]
    colour: int | None
    dash: str = "solid"
    dots: bool = True
    stairs: bool = False


class _Plotter:
    """Draws charts as inline SVG that takes its colours from the page.

    matplotlib's objects are used without pyplot, so nothing outlives a chart.
    """

    def __init__(self) -> None:
        self._count = 0

    def lines(self, title: str, curves: Sequence[_Line], note: str = "", log: bool = False, shade: float = 0) -> str:
        """A chart of curves over epochs; epochs up to ``shade`` are marked as preparation."""
        curves = [curve for curve in curves if any(map(math.isfinite, curve.y))]
        if not curves:
            return ""
        short = max(len(curve.y) for curve in curves) <= 12

        def draw(axes: Any) -> None:
            from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

            if shade:
                axes.axvspan(0.5, shade + 0.5, color=_SHADE, linewidth=0, zorder=0)
            for curve in curves:
                axes.plot(
                    curve.x,
                    curve.y,
                    color=_colour(curve.colour),
                    linestyle=(0, _DASHES[curve.dash]) if curve.dash != "solid" else "solid",
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
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
            axes.set_xlabel("epoch")

        return self._figure(title, note, draw)

    def bars(self, title: str, labels: Sequence[str], heights: Sequence[float], note: str = "") -> str:
        """A bar chart; the first bar stands for the original where it is called so."""

        def draw(axes: Any) -> None:
            colours = [_INK if label == "original" else _colour(0) for label in labels]
            axes.bar(range(len(labels)), heights, width=0.8, color=colours)
            step = math.ceil(len(labels) / 11)
            shown = [i for i in range(len(labels)) if labels[i] == "original" or (i - 1) % step == 0]
            axes.set_xticks(shown, [labels[i].replace("original", "orig.") for i in shown])
            axes.set_ylabel("% of images")
            axes.set_xlabel("JPEG quality")

        return self._figure(title, note, draw)

    def _figure(self, title: str, note: str, draw: Callable[[Any], None]) -> str:
        # Imported here: whoever only trains should not wait for matplotlib.
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._count += 1
        style = {
            "svg.fonttype": "none",  # text stays text: small, sharp, in the page's own font
            "svg.hashsalt": f"figure{self._count}",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "axes.linewidth": 0.7,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "grid.color": _GRID,
            "grid.linewidth": 0.5,
            "axes.formatter.use_mathtext": False,
            "text.usetex": False,
            "path.simplify": True,
            "path.simplify_threshold": 0.3,
        }
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(4.6, 2.9), layout="constrained")
            FigureCanvasSVG(figure)
            figure.patch.set_visible(False)
            axes = figure.add_subplot()
            axes.patch.set_visible(False)
            draw(axes)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        svg = _page_svg(buffer.getvalue(), f"f{self._count}", title)
        caption = _html(title) + (f"<span class='quiet'> {_html(note)}</span>" if note else "")
        return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _page_svg(svg: str, prefix: str, title: str) -> str:
    """matplotlib's SVG made fit for a page: colours as CSS variables, ids unique in the page, no dead weight."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(?<= d=")[^"]+', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", " ".join(m[0].split())), svg)
    svg = re.sub(r"font: [^;\"]*", "font-size: 10px", svg)
    colours = {_INK: "--ink", _GRID: "--grid", _SHADE: "--shade"}
    colours |= {light: f"--c{i}" for i, (light, _) in enumerate(_PALETTE)}
    svg = re.sub(r"#[0-9a-f]{6}", lambda m: f"var({colours[m[0]]})" if m[0] in colours else m[0], svg)
    svg = re.sub(r">\s+<", "><", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_html(title)}" ', 1)


def _shared_charts(
    runs: Sequence[RunRecord], teacher: RunRecord | None, looks: Sequence[_Look], draw: _Plotter
) -> list[str]:
    """The charts that all runs share; epochs of the main phase, counted from 1."""
    students = _students(runs, teacher)
    accuracy = _curves(runs, looks, "val/top1")
    end = _last_third(accuracy)
    note = ""
    known = _top1(teacher) if teacher else None
    if teacher and known is not None and accuracy and not any("val/top1" in row for row in _main_rows(teacher)):
        longest = max(curve.x[-1] for curve in accuracy)
        line = _Line([1, longest] if longest > 1 else [0.5, 1.5], [known, known], None, "dotted", dots=False)
        accuracy.append(line)
        note = f"dotted: the teacher, {known:.2f} %"
    losses, rates = _curves(runs, looks, "loss"), _curves(runs, looks, "lr")
    stairs = _in_steps(rates)
    rates = [replace(line, stairs=stairs) for line in rates]
    warning = "different losses do not compare" if len(students) > 1 else ""
    return [
        draw.lines("Validation top-1, %", accuracy, note),
        draw.lines("Validation top-1, %", end, "the last third"),
        draw.lines("Training top-1, %", _curves(runs, looks, "train/top1")),
        draw.lines("Validation loss", _curves(runs, looks, "val/loss")),
        draw.lines("Training loss", losses, warning, log=_spread(losses) > 50),
        draw.lines("Learning rate", rates, log=stairs and _spread(rates) >= 20),
    ]


def _last_third(curves: Sequence[_Line]) -> list[_Line]:
    """The curves' ends, where the runs part; nothing when they are too short for that to show."""
    start = min((curve.x[-1] for curve in curves), default=0) * 2 / 3
    if start < 6:
        return []
    ends = []
    for curve in curves:
        points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x >= start]
        ends.append(replace(curve, x=[x for x, _ in points], y=[y for _, y in points]))
    return ends


def _curves(runs: Sequence[RunRecord], looks: Sequence[_Look], key: str) -> list[_Line]:
    lines = []
    for run, look in zip(runs, looks, strict=True):
        x, y = _series(_main_rows(run), key)
        if x:
            lines.append(_Line(x, y, look.colour, look.dash))
    return lines


def _term_charts(runs: Sequence[RunRecord], draw: _Plotter) -> list[str]:
    """One chart a run: all terms of its loss over all of its phases. A term keeps its colour in all charts."""
    names = list(dict.fromkeys(term for run in runs for term in _terms(_rows(run))))
    charts = []
    for run in runs:
        rows = _rows(run)
        terms = _terms(rows)
        if len(terms) < 2:
            continue  # the chart of the whole loss shows it already
        preparation = len(rows) - len(_main_rows(run))
        lines, looks = [], []
        for term in terms:
            look = _nth_look(term.removeprefix("loss/"), names.index(term))
            x, y = _series(rows, term)
            if preparation:  # the phases' curves do not continue each other
                cut = sum(value <= preparation for value in x)
                x, y = [*x[:cut], preparation + 0.5, *x[cut:]], [*y[:cut], math.nan, *y[cut:]]
            lines.append(_Line(x, y, look.colour, look.dash))
            looks.append(look)
        phases = dict.fromkeys(str(row.get("phase")) for row in rows[:preparation])
        note = f"shaded: {', '.join(phases)}" if preparation else ""
        chart = draw.lines(run.name, lines, note, log=_spread(lines) > 50, shade=preparation)
        if chart:
            charts.append(chart.replace("<svg ", f"{_legend(looks)}<svg ", 1))
    return charts


def _quality_charts(runs: Sequence[RunRecord], draw: _Plotter) -> list[str]:
    charts = []
    for run in runs:
        counts = run.result.get("qualities")
        if not isinstance(counts, Mapping) or not sum(counts.values()):
            continue
        ordered = sorted((int(quality), count) for quality, count in counts.items())
        total = sum(count for _, count in ordered)
        labels = ["original" if quality < 0 else str(quality) for quality, _ in ordered]
        heights = [100 * count / total for _, count in ordered]
        charts.append(draw.bars(run.name, labels, heights, f"{total:,} choices"))
    return charts


def _rows(run: RunRecord) -> list[dict[str, Any]]:
    return [row for row in run.metrics if row.get("kind", "epoch") == "epoch"]


def _main_rows(run: RunRecord) -> list[dict[str, Any]]:
    return [row for row in _rows(run) if row.get("phase", "main") == "main"]


def _terms(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row if key.startswith("loss/")))


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs from 1 and values. Epochs in which ``key`` was not measured are left out; a null is a gap."""
    points = [
        (float(i), float(row[key]) if _finite(row[key]) else math.nan) for i, row in enumerate(rows, 1) if key in row
    ]
    return [x for x, _ in points], [y for _, y in points]


def _marked(values: Sequence[float], everywhere: bool) -> list[int]:
    """Where a dot is drawn: at every value, or only at those that no line reaches."""
    seen = [False, *map(math.isfinite, values), False]
    return [i for i in range(len(values)) if seen[i + 1] and (everywhere or not (seen[i] or seen[i + 2]))]


def _spread(lines: Iterable[_Line]) -> float:
    """Largest over smallest value; 0 where a logarithmic axis cannot be used."""
    values = [y for line in lines for y in line.y if math.isfinite(y)]
    return max(values) / min(values) if values and min(values) > 0 else 0.0


def _in_steps(lines: Iterable[_Line]) -> bool:
    return all(len({y for y in line.y if math.isfinite(y)}) <= max(8, len(line.y) // 10) for line in lines)


def _colour(number: int | None) -> str:
    return _INK if number is None else _PALETTE[number][0]


# --- pieces of the page


def _html(text: Any) -> str:
    return escape(visible(text, keep="\n"), quote=True)


def _section(heading: str, *parts: str, open_: bool | None = None) -> str:
    """A section; nothing where its last part is empty. ``open_`` False: folded."""
    if not parts or not parts[-1]:
        return ""
    if open_ is False:
        return f"<section><details><summary><h2>{_html(heading)}</h2></summary>{''.join(parts)}</details></section>\n"
    return f"<section><h2>{_html(heading)}</h2>{''.join(parts)}</section>\n"


def _grid(figures: Iterable[str]) -> str:
    figures = [figure for figure in figures if figure]
    return f"<div class='grid'>{''.join(figures)}</div>" if figures else ""


def _legend(looks: Sequence[_Look]) -> str:
    items = "".join(f"<li>{look.swatch()}<span>{_html(look.name)}</span></li>" for look in looks)
    return f"<ul class='legend'>{items}</ul>"


def _definitions(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    return f"<dl>{''.join(f'<dt>{_html(key)}</dt><dd>{_html(value)}</dd>' for key, value in facts.items())}</dl>"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float | None:
    return value if _finite(value) else None


def _mean(rows: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if _finite(row.get(key))]
    return sum(values) / len(values) if values else None


def _maybe(value: float | None, form: Callable[[float], str]) -> str:
    return "–" if value is None else form(value)


def _decimals(values: Iterable[float | None], decimals: int) -> list[str]:
    return [_maybe(value, lambda v: f"{v:.{decimals}f}") for value in values]


def _palette_style() -> str:
    light = "".join(f"--c{i}:{colour};" for i, (colour, _) in enumerate(_PALETTE))
    dark = "".join(f"--c{i}:{colour};" for i, (_, colour) in enumerate(_PALETTE))
    return (
        f":root{{--ink:{_INK};--grid:#d9d9e0;--shade:#efeff4;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{--ink:#e6e6ea;--grid:#3c3c44;--shade:#2a2a31;{dark}"
        "--page:#16161a;--card:#1e1e24;--quiet:#a0a0ab;--best:#22384a}}"
    )


_STYLE = """
:root{--page:#f6f6f9;--card:#fff;--quiet:#5d5d68;--best:#e4f1fa}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header,main{max-width:1080px;margin:0 auto;padding:0 16px}
header{padding-top:24px}
h1{font-size:1.6rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:0 0 10px;display:inline-block}
header p{margin:4px 0 0}
section{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:16px;margin:16px 0}
.quiet{color:var(--quiet);font-weight:400}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
thead th{font-weight:500;color:var(--quiet);white-space:normal;vertical-align:bottom}
tbody th{text-align:left;font-weight:400;white-space:normal;min-width:9em;overflow-wrap:anywhere}
tbody th>div{display:flex;align-items:baseline}
tbody tr:last-child>*{border-bottom:0}
tr.best>*{background:var(--best);font-weight:600}
.tag{font-size:.75rem;font-weight:500;border:1px solid currentColor;border-radius:99px;padding:0 7px;margin-left:8px;
white-space:nowrap}
.swatch{width:28px;height:8px;margin-right:8px;flex:none}
.legend{list-style:none;margin:0 0 10px;padding:0;display:flex;flex-wrap:wrap;gap:2px 18px}
.legend li{display:flex;align-items:center;min-width:0;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:20px}
figure{margin:0;min-width:0;break-inside:avoid}
figure>svg{width:100%;max-width:470px;height:auto;display:block}
figure text{font-family:inherit!important;fill:var(--ink)!important}
figcaption{font-weight:600;margin-bottom:4px;overflow-wrap:anywhere}
figure .legend{font-size:.85rem;margin-bottom:2px}
dl{display:grid;grid-template-columns:minmax(6em,max-content) 1fr;gap:4px 16px;margin:0}
dt{color:var(--quiet)}
dd{margin:0;overflow-wrap:anywhere}
pre{margin:0;overflow-x:auto;font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
summary{cursor:pointer}
summary h2{margin-bottom:0}
details[open] summary{margin-bottom:10px}
@media (max-width:600px){header{padding:16px 10px 0}main{padding:0 10px}
section{padding:12px}th,td{padding:6px}tbody th{min-width:10em}
.tag{margin-left:4px}}
@media print{body{background:none;font-size:11px}section{border:0;padding:0}pre{white-space:pre-wrap}
.grid{grid-template-columns:1fr 1fr}tr.best>*{background:none}}
"""
