"""Comparison: the printed table with ours beside it: means and spread over seeds, differences, and what is lacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdstream.analysis.spread import Spread, as_if_spread_alike, welch
from kdstream.display.numbers import format_seconds
from kdstream.display.table_page import MARK, Shown, TablePage
from kdstream.training.job import each_teacher
from kdstream.training.tables.cells import Cell
from kdstream.training.tables.finished import Done, Finished
from kdstream.training.tables.measures import TOLD, WHOLE, of_an_epoch, value_of
from kdstream.training.tables.passes import NotHere, Passes, without_bar
from kdstream.training.tables.table import Table
from kdstream.training.tables.work import Pair, hours, left_to_do, pair_of

LEVEL = 0.05
"""A difference is marked where chance alone makes one as large less often."""


@dataclass(frozen=True)
class Compared:
    """A cell beside ours.

    Attributes:
        cell: of the table.
        done: seed -> its finished training.
        last, best: of the cell's measure; None where nothing is done, or a training does not give it. What is no value
            of every epoch is ``last``: of the exported weights, or of the training as a whole.
        why_not: why there is no value of what is done; empty where there is one.
        difference: ours less the printed value, in its unit; None where one of them is missing.
        probability: how often chance makes such a difference; None where no spread is known.
        seeds_lacking, epochs_lacking: of the trainings that are left.
        seconds_lacking: what they take, as far as finished trainings of the pair tell; None where they do not.
    """

    cell: Cell
    done: Mapping[int, Done]
    last: Spread | None
    best: Spread | None
    why_not: str
    difference: float | None
    probability: float | None
    seeds_lacking: int
    epochs_lacking: int
    seconds_lacking: float | None

    @property
    def marked(self) -> bool:
        """Whether the spread does not explain the difference."""
        return self.probability is not None and self.probability < LEVEL


@dataclass(frozen=True)
class _Values:
    """A cell's values, seed by seed, after the last and the best epoch; and why there are none."""

    last: Mapping[int, float] = field(default_factory=dict)
    best: Mapping[int, float] = field(default_factory=dict)
    why_not: str = ""


def compare(
    cells: Sequence[Cell], seeds: int, overrides: Sequence[str], finished: Finished, passes: Passes | None = None
) -> list[Compared]:
    """Every cell beside what is finished of it.

    Args:
        cells: of one table.
        seeds: how many there should be.
        overrides: with which the cells were expanded.
        finished: says what is done.
        passes: looks at networks; None = only what was kept of earlier looks is told.
    """
    passes = passes or Passes(finished, without_bar, look=False)
    done = {cell.key: finished.of(cell) for cell in cells}
    speeds = _speeds(cells, done)
    values = {(cell.row, cell.column): _values(cell, done[cell.key], passes, cells) for cell in cells}
    by_place = {(cell.row, cell.column): cell for cell in cells}
    for cell in cells:
        if cell.table.made_of(cell.row, cell.column) is not None:
            values[cell.row, cell.column] = _made(by_place, (cell.row, cell.column), values)
    return [
        _compare(cell, done[cell.key], values[cell.row, cell.column], seeds, overrides, finished, speeds)
        for cell in cells
    ]


def _values(cell: Cell, done: Mapping[int, Done], passes: Passes, cells: Sequence[Cell]) -> _Values:
    """What the finished trainings of a cell give."""
    if (key := of_an_epoch(cell)) is not None:
        last, best = (
            {seed: getattr(one, kind)[key] for seed, one in done.items() if key in getattr(one, kind)}
            for kind in ("last", "best")
        )
        return _Values(last, best)
    found: dict[int, float] = {}
    why = ""
    for seed, one in done.items():
        try:
            found[seed] = value_of(cell, one, passes, cells)
        except NotHere as error:
            why = why or str(error)
    return _Values(found, {}, why)


def _made(
    cells: Mapping[tuple[str, str], Cell],
    place: tuple[str, str],
    values: Mapping[tuple[str, str], _Values],
    above: tuple[tuple[str, str], ...] = (),
) -> _Values:
    """What is made of other cells' values, seed by seed, over the seeds that all of them have."""
    if place in above:
        return _Values(why_not="its values are made of themselves")
    if place not in cells:
        return _Values()
    made = cells[place].table.made_of(*place)
    if made is None:
        return values[place]
    how, places = made
    parts = [_made(cells, one, values, (*above, place)) for one in places]
    why = next((part.why_not for part in parts if part.why_not and not part.last), "")
    kinds = []
    for kind in ("last", "best"):
        each: list[Mapping[int, float]] = [getattr(part, kind) for part in parts]
        seeds = set(each[0]).intersection(*each[1:])
        kinds.append({seed: _combined(how, [one[seed] for one in each]) for seed in sorted(seeds)})
    last, best = kinds
    return _Values(last, best, "" if last else why)


def _combined(how: str, values: Sequence[float]) -> float:
    return values[0] - values[1] if how == "less" else sum(values) / len(values)


def against(table: Table) -> str:
    """Which of ours stands beside the printed value: where the paper does not say, the best epoch, as most print."""
    return "last" if table.printed == "last" else "best"


def _speeds(cells: Sequence[Cell], done: Mapping[str, Mapping[int, Done]]) -> dict[Pair, float]:
    """Seconds of an epoch, of the pairs of which something is finished."""
    found: dict[Pair, list[float]] = {}
    for cell in cells:
        recipe = cell.teaching() if cell.of_teacher else cell.recipe
        for one in done[cell.key].values() if recipe is not None else ():
            if one.epochs and recipe is not None:
                found.setdefault(pair_of(recipe), []).append(one.seconds / one.epochs)
    return {pair: sum(values) / len(values) for pair, values in found.items()}


def _compare(
    cell: Cell,
    done: Mapping[int, Done],
    values: _Values,
    seeds: int,
    overrides: Sequence[str],
    finished: Finished,
    speeds: Mapping[Pair, float],
) -> Compared:
    last, best = (Spread.of(list(kind.values())) if kind else None for kind in (values.last, values.best))
    ours = last if against(cell.table) == "last" or best is None else best
    difference, probability = None, None
    if ours is not None and cell.printed is not None and cell.printed.value is not None:
        difference = ours.mean - cell.printed.value
        probability = _probability(ours, cell)
    tasks = left_to_do([cell], seeds, overrides, finished)
    seconds, unknown = hours(tasks, speeds)
    own = [task for task in tasks if task.gives is None]
    return Compared(
        cell=cell,
        done=done,
        last=last,
        best=best,
        why_not=values.why_not,
        difference=difference,
        probability=probability,
        seeds_lacking=len(own) or len(tasks),
        epochs_lacking=sum(task.epochs for task in tasks),
        seconds_lacking=None if unknown or not tasks else seconds * 3600,
    )


def _probability(ours: Spread, cell: Cell) -> float | None:
    """Welch's where the paper prints a spread and the number of its runs; else the paper's mean varies as ours do."""
    printed, runs = cell.printed, cell.table.runs_averaged
    assert printed is not None
    assert printed.value is not None
    if printed.std is not None and runs is not None and runs > 1:
        return welch(ours, Spread(runs, printed.value, printed.std))
    return as_if_spread_alike(ours, printed.value, runs or 1)


# --- for people, for programs


def page(table: Table, compared: Sequence[Compared], command: str, overrides: Sequence[str] = ()) -> TablePage:
    """The comparison as it is shown; ``overrides`` are what ours were trained with in place of the paper's settings."""
    by_place = {(one.cell.row, one.cell.column): one for one in compared}
    rows = [key for key in table.rows if any((key, column) in by_place for column in table.columns)]
    columns = [key for key in table.columns if any((row, key) in by_place for row in table.rows)]
    lines = [(table.rows[row].label, [_shown(by_place.get((row, column))) for column in columns]) for row in rows]
    facts = [
        ("cell", "the printed value; ours after the last and the best epoch, mean ± standard deviation over seeds"),
        *_about_measures([one for one in compared if one.last is not None or one.why_not]),
        ("compared", f"ours of the {against(table)} epoch less printed; the paper's are: {table.printed}"),
        (
            f"marked {MARK}",
            f"chance alone makes such a difference less often than {LEVEL:.0%}: Welch's test where spread and number "
            "of runs are printed, else as if the paper's runs spread as ours",
        ),
        ("seeds", f"the paper's: {table.runs_averaged or 'unsaid'}"),
        ("measure", " ".join(filter(None, [table.measure, table.unit and f"({table.unit})"]))),
        *_about_teachers(compared),
        *([("ours", f"not with the paper's settings: {', '.join(overrides)}")] if overrides else []),
        ("command", command),
    ]
    notes = [*table.notes]
    for head in (*(table.rows[row] for row in rows), *(table.columns[column] for column in columns)):
        said = ", ".join(filter(None, ["quoted, not run" if head.quoted else "", head.note]))
        notes += [f"{head.label}: {said}"] if said else []
    for one in table.suspect:
        where = ":".join(filter(None, [one.column, one.row])) or "all"
        notes.append(f"doubtful, {where}: {one.says}")
    title = f"{table.name}: {table.title}" if table.title else table.name
    names = [table.columns[key].label for key in columns]
    return TablePage(title, f"{table.paper}, {table.place}", names, lines, facts, notes)


def _shown(one: Compared | None) -> Shown:
    if one is None:
        return Shown()
    cell = one.cell
    missing = ""
    if cell.recipe is None:
        made = one.last is not None
        missing = "" if made or cell.why_not in ("not in the paper", "no value in the paper") else cell.why_not
        missing = f"{missing}: {one.why_not}" if missing and one.why_not else missing
    elif one.seeds_lacking:
        cost = f"{one.epochs_lacking:,} epoch{'' if one.epochs_lacking == 1 else 's'}"
        if one.seconds_lacking is not None:
            cost += f", {format_seconds(one.seconds_lacking)}"
        missing = f"lacks {one.seeds_lacking}: {cost}" if one.epochs_lacking else "lacks an evaluation"
    if cell.recipe is not None and one.why_not:
        missing = ", ".join(filter(None, [missing, f"{cell.measure.partition(':')[0]}: {one.why_not}"]))
    return Shown(
        printed="" if cell.printed is None else cell.printed.text,
        last="" if one.last is None else _text(one.last, cell),
        best="" if one.best is None else _text(one.best, cell),
        seeds=0 if one.last is None else one.last.count,
        difference="" if one.difference is None else f"{one.difference:+,.{_decimals(cell, one.difference)}f}",
        marked=one.marked,
        missing=missing,
        doubts=tuple(cell.table.doubts(cell.row, cell.column)),
    )


def _about_teachers(compared: Sequence[Compared]) -> list[tuple[str, str]]:
    """Which teachers are the best of several, and which network counts where there are several."""
    found: dict[str, str] = {}
    best: list[str] = []
    for one in compared:
        cell, recipe = one.cell, one.cell.recipe
        if recipe is None:
            continue
        if recipe.export_network == "best":
            best.append(cell.table.rows[cell.row].label)
        teaching = None if cell.given else cell.teaching()
        if teaching is not None and (count := len(each_teacher(teaching))) > 1:
            name = str(teaching.student.model)
            seed = next((f", seed {done.seed}," for done in one.done.values()), "") if cell.of_teacher else ""
            found[name] = max(found.get(name, ""), f"{name}: the best of {count} seeds{seed} teaches", key=len)
    told = [("teachers", "; ".join(found.values()))] if found else []
    if best:
        names = ", ".join(dict.fromkeys(best))
        told.append(("best network", f"{names}: of all that learn together the best counts, run by run"))
    return told


def _decimals(cell: Cell, value: float) -> int:
    """How many a value of a cell is shown with: as the printed one, two at least; else by its size."""
    if cell.measure.endswith("parameters"):
        return 0
    if cell.printed is not None and cell.printed.value is not None:
        number = cell.printed.text.partition("±")[0].partition("e")[0]
        return min(max(len(number.partition(".")[2]), 2), 4)
    if of_an_epoch(cell) is not None:
        return 2
    return 0 if abs(value) >= 1000 else 2 if abs(value) >= 10 else 4


def _text(spread: Spread, cell: Cell) -> str:
    decimals = _decimals(cell, spread.mean)
    std = "" if spread.std is None else f" ± {spread.std:,.{decimals}f}"
    return f"{spread.mean:,.{decimals}f}{std}"


def _about_measures(compared: Sequence[Compared]) -> list[tuple[str, str]]:
    """What the measures that are no accuracy are here."""
    told: dict[str, str] = {}
    for one in compared:
        name = one.cell.measure.partition(":")[0]
        if name in TOLD:
            told[name] = TOLD[name]
        if name in TOLD and one.last is not None and one.best is None and one.cell.measure not in WHOLE:
            images = one.cell.table.images
            told[name] += (
                f"; ours: of the exported weights, over the {'training' if images == 'train' else 'validation'} split"
            )
    return list(told.items())


def as_json(table: Table, compared: Sequence[Compared]) -> dict[str, Any]:
    """The comparison in plain values."""
    return {
        "table": table.name,
        "title": table.title,
        "paper": table.paper,
        "place": table.place,
        "measure": table.measure,
        "unit": table.unit,
        "printed": table.printed,
        "runs_averaged": table.runs_averaged,
        "compared_with": against(table),
        "cells": [_cell_as_json(one) for one in compared],
        "suspect": [{"row": one.row, "column": one.column, "says": one.says} for one in table.suspect],
        "notes": table.notes,
    }


def _cell_as_json(one: Compared) -> dict[str, Any]:
    cell, printed = one.cell, one.cell.printed

    def spread(found: Spread | None) -> dict[str, Any] | None:
        return None if found is None else {"mean": found.mean, "std": found.std, "seeds": found.count}

    return {
        "row": cell.row,
        "column": cell.column,
        "measure": cell.measure,
        "printed": None if printed is None else {"text": printed.text, "value": printed.value, "std": printed.std},
        "not_run": cell.why_not or None,
        "not_measured": one.why_not or None,
        "last": spread(one.last),
        "best": spread(one.best),
        "seeds": sorted(one.done),
        "folders": [str(one.done[seed].folder) for seed in sorted(one.done)],
        "difference": one.difference,
        "probability": one.probability,
        "marked": one.marked,
        "lacking": {"trainings": one.seeds_lacking, "epochs": one.epochs_lacking, "seconds": one.seconds_lacking},
    }
