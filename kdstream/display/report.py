"""The report of a job: one HTML file with the table, the curves and everything that is needed to repeat it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kdstream.atomic import write_atomic, writing
from kdstream.display.charts import INK, PALETTE, Chart, Line, Look, Plotter, nth_look
from kdstream.display.numbers import best_index, format_column, format_number, format_seconds
from kdstream.display.pages import pages


@dataclass
class RunRecord:
    """What is known of one run.

    Attributes:
        name: shown as it is.
        metrics: rows of ``metrics.jsonl``: ``phase``, ``epoch``, ``lr``, ``loss``, ``loss/<term>``, ``val/top1``
            (percent), ...; a value may be missing or None.
        speed: rows of ``speed.jsonl``: ``images_per_s``, ``wait_share`` (0..1), ``seconds``.
        result: ``top1``, ``top5`` (percent), ``params``, ``images_per_s``, ``seconds``, as far as they are known;
            ``published``: the accuracy as published (percent), where the weights are.
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
    over_seeds: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the report of ``runs`` to ``path``: one HTML file that loads nothing from anywhere.

    Args:
        path: the file; its folder is made when missing, an older report is replaced in one step.
        title: heading of the page.
        runs: the students, in the order in which they are to stand.
        teacher: their teacher, if there is one.
        facts: what else a reader needs to repeat the job: versions, machine, data set, command, seed.
        recipe_text: the recipe as YAML.
        over_seeds: rows of a table of what runs of several seeds reach together; its columns are the keys.

    Returns:
        The path of the written file.

    Raises:
        DiskError: it cannot be written.
    """
    path = Path(path)
    page = _page(title, list(runs), teacher, facts or {}, recipe_text, over_seeds)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, page.encode("utf-8", "replace"))
    return path


def _page(
    title: str,
    runs: list[RunRecord],
    teacher: RunRecord | None,
    facts: Mapping[str, str],
    recipe_text: str,
    over_seeds: Sequence[Mapping[str, Any]],
) -> str:
    runs = [*([teacher] if teacher else []), *runs]
    looks = _looks(runs, teacher)
    draw = Plotter()
    return (
        pages()
        .get_template("report.html")
        .render(
            title=title,
            now=datetime.now().astimezone(),
            colours={"ink": INK, "palette": PALETTE},
            runs=_rows_of_table(runs, teacher, looks),
            columns=_columns(runs, teacher),
            looks=looks,
            over_seeds=_over_seeds(over_seeds),
            curves=_shared_charts(runs, teacher, looks, draw),
            terms=_term_charts(runs, draw),
            terms_unfolded=len(runs) <= 6,
            qualities=_quality_charts(runs, draw),
            answers=_answers(runs),
            facts=list(facts.items()),
            recipe=recipe_text.strip(),
        )
    )


# --- the table


@dataclass
class _TableRow:
    """A run in the table of results; its values stand in the columns."""

    name: str
    role: str
    best: bool
    look: Look


@dataclass
class _Column:
    """A column of the table of results: a cell a run."""

    name: str
    cells: list[str]


def _rows_of_table(runs: Sequence[RunRecord], teacher: RunRecord | None, looks: Sequence[Look]) -> list[_TableRow]:
    mine = {id(run) for run in _students(runs, teacher)}
    best = best_index([_top1(run) if id(run) in mine else None for run in runs]) if len(mine) > 1 else None
    return [
        _TableRow(run.name, "teacher" if run is teacher else run.role, i == best, look)
        for i, (run, look) in enumerate(zip(runs, looks, strict=True))
    ]


def _columns(runs: Sequence[RunRecord], teacher: RunRecord | None) -> list[_Column]:
    """The columns in which at least one run has a value."""
    students = _students(runs, teacher)
    baseline = _baseline(students)
    mine = {id(run) for run in students}
    reference = _top1(baseline) if baseline else None
    differences = [
        top1 - reference
        if reference is not None and top1 is not None and id(run) in mine and run is not baseline
        else None
        for run, top1 in ((run, _top1(run)) for run in runs)
    ]
    columns = [_Column("top-1 %", _decimals([_top1(run) for run in runs], 2))]
    columns.append(_Column("published %", _decimals([_number(run.result.get("published")) for run in runs], 2)))
    if any(d is not None for d in differences):
        signed = ["" if d is None else f"{d:+.2f}" if math.isfinite(d) else "–" for d in differences]
        columns.append(_Column(f"over {baseline.name}" if baseline else "", [s.replace("-", "−") for s in signed]))
    columns += [
        _Column("top-5 %", _decimals([_number(run.result.get("top5")) for run in runs], 2)),
        _Column("parameters", format_column([run.result.get("params") for run in runs])),
        _Column("images/s", [_maybe(_images_per_s(run), format_number) for run in runs]),
        _Column("data wait", [_maybe(_mean(run.speed, "wait_share"), lambda v: f"{100 * v:.0f}%") for run in runs]),
        _Column("time", [_maybe(_seconds(run), format_seconds) for run in runs]),
    ]
    return [column for column in columns if any(cell not in ("–", "") for cell in column.cells)]


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


@dataclass
class _Answers:
    """How flat the answers of a run's teacher are: mean and deviation of what the page names."""

    run: str
    kind: str
    cells: list[str]


def _answers(runs: Sequence[RunRecord]) -> list[_Answers]:
    rows = []
    for run in runs:
        for key in ("teacher", "plain", "coded"):
            answer = run.result.get(key)
            kind = ("coded" if run.result.get("qualities") else "plain") if key == "teacher" else key
            if isinstance(answer, Mapping):
                cells = [_mean_std(answer.get(name)) for name in ("entropy", "gt_probability")]
                rows.append(_Answers(run.name, kind, cells))
    return rows


def _mean_std(pair: Any) -> str:
    values = [_number(v) for v in pair] if isinstance(pair, Sequence) and not isinstance(pair, str) else [_number(pair)]
    return " ± ".join(f"{v:.4f}" for v in values if v is not None) or "–"


def _over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[_Column]:
    names = list(dict.fromkeys(key for row in rows for key in row))
    return [_Column(name, format_column([row.get(name) for row in rows], percent="%" in name)) for name in names]


# --- the curves


def _looks(runs: Sequence[RunRecord], teacher: RunRecord | None) -> list[Look]:
    looks = []
    for run in runs:
        if run is teacher:
            looks.append(Look(run.name, None, "dotted"))
        else:
            looks.append(nth_look(run.name, sum(look.colour is not None for look in looks)))
    return looks


def _shared_charts(
    runs: Sequence[RunRecord], teacher: RunRecord | None, looks: Sequence[Look], draw: Plotter
) -> list[Chart]:
    """The charts that all runs share; epochs of the main phase, counted from 1."""
    students = _students(runs, teacher)
    accuracy = _curves(runs, looks, "val/top1")
    end = _last_third(accuracy)
    note = ""
    known = _top1(teacher) if teacher else None
    if teacher and known is not None and accuracy and not any("val/top1" in row for row in _main_rows(teacher)):
        longest = max(curve.x[-1] for curve in accuracy)
        line = Line([1, longest] if longest > 1 else [0.5, 1.5], [known, known], None, "dotted", dots=False)
        accuracy.append(line)
        note = f"dotted: the teacher, {known:.2f} %"
    losses, rates = _curves(runs, looks, "loss"), _curves(runs, looks, "lr")
    stairs = _in_steps(rates)
    rates = [replace(line, stairs=stairs) for line in rates]
    warning = "different losses do not compare" if len(students) > 1 else ""
    charts = [
        draw.lines("Validation top-1, %", accuracy, note),
        draw.lines("Validation top-1, %", end, "the last third"),
        draw.lines("Training top-1, %", _curves(runs, looks, "train/top1")),
        draw.lines("Validation loss", _curves(runs, looks, "val/loss")),
        draw.lines("Training loss", losses, warning, log=_spread(losses) > 50),
        draw.lines("Learning rate", rates, log=stairs and _spread(rates) >= 20),
    ]
    return [chart for chart in charts if chart]


def _last_third(curves: Sequence[Line]) -> list[Line]:
    """The curves' ends, where the runs part; nothing when they are too short for that to show."""
    start = min((curve.x[-1] for curve in curves), default=0) * 2 / 3
    if start < 6:
        return []
    ends = []
    for curve in curves:
        points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x >= start]
        ends.append(replace(curve, x=[x for x, _ in points], y=[y for _, y in points]))
    return ends


def _curves(runs: Sequence[RunRecord], looks: Sequence[Look], key: str) -> list[Line]:
    lines = []
    for run, look in zip(runs, looks, strict=True):
        x, y = _series(_main_rows(run), key)
        if x:
            lines.append(Line(x, y, look.colour, look.dash))
    return lines


def _term_charts(runs: Sequence[RunRecord], draw: Plotter) -> list[Chart]:
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
            look = nth_look(term.removeprefix("loss/"), names.index(term))
            x, y = _series(rows, term)
            if preparation:  # the phases' curves do not continue each other
                cut = sum(value <= preparation for value in x)
                x, y = [*x[:cut], preparation + 0.5, *x[cut:]], [*y[:cut], math.nan, *y[cut:]]
            lines.append(Line(x, y, look.colour, look.dash))
            looks.append(look)
        phases = dict.fromkeys(str(row.get("phase")) for row in rows[:preparation])
        note = f"shaded: {', '.join(phases)}" if preparation else ""
        chart = draw.lines(run.name, lines, note, log=_spread(lines) > 50, shade=preparation)
        if chart:
            charts.append(replace(chart, looks=looks))
    return charts


def _quality_charts(runs: Sequence[RunRecord], draw: Plotter) -> list[Chart]:
    charts = []
    for run in runs:
        counts = run.result.get("qualities")
        if not isinstance(counts, Mapping) or not sum(counts.values()):
            continue
        # From the coarsest to the finest, which is no JPEG at all.
        ordered = sorted(
            ((int(quality), count) for quality, count in counts.items()), key=lambda one: (one[0] < 0, one[0])
        )
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


def _spread(lines: Iterable[Line]) -> float:
    """Largest over smallest value; 0 where a logarithmic axis cannot be used."""
    values = [y for line in lines for y in line.y if math.isfinite(y)]
    return max(values) / min(values) if values and min(values) > 0 else 0.0


def _in_steps(lines: Iterable[Line]) -> bool:
    return all(len({y for y in line.y if math.isfinite(y)}) <= max(8, len(line.y) // 10) for line in lines)


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
