"""Comparison: the printed table with ours beside it: means and spread over seeds, differences, and what is lacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdstream.analysis.spread import Spread, as_if_spread_alike, welch
from kdstream.display.numbers import format_seconds
from kdstream.display.table_page import MARK, Shown, TablePage
from kdstream.training.tables.cells import Cell
from kdstream.training.tables.finished import Done, Finished
from kdstream.training.tables.table import TRAINED, Table
from kdstream.training.tables.work import Pair, hours, left_to_do, pair_of

LEVEL = 0.05
"""A difference is marked where chance alone makes one as large less often."""


@dataclass(frozen=True)
class Compared:
    """A cell beside ours.

    Attributes:
        cell: of the table.
        done: seed -> its finished training.
        last, best: of the cell's measure; None where nothing is done, or a training does not give it.
        difference: ours less the printed value, in its unit; None where one of them is missing.
        probability: how often chance makes such a difference; None where no spread is known.
        seeds_lacking, epochs_lacking: of the trainings that are left.
        seconds_lacking: what they take, as far as finished trainings of the pair tell; None where they do not.
    """

    cell: Cell
    done: Mapping[int, Done]
    last: Spread | None
    best: Spread | None
    difference: float | None
    probability: float | None
    seeds_lacking: int
    epochs_lacking: int
    seconds_lacking: float | None

    @property
    def marked(self) -> bool:
        """Whether the spread does not explain the difference."""
        return self.probability is not None and self.probability < LEVEL


def compare(cells: Sequence[Cell], seeds: int, overrides: Sequence[str], finished: Finished) -> list[Compared]:
    """Every cell beside what is finished of it.

    Args:
        cells: of one table.
        seeds: how many there should be.
        overrides: with which the cells were expanded.
        finished: says what is done.
    """
    done = {cell.key: finished.of(cell) for cell in cells}
    speeds = _speeds(cells, done)
    return [_compare(cell, done[cell.key], seeds, overrides, finished, speeds) for cell in cells]


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
    seeds: int,
    overrides: Sequence[str],
    finished: Finished,
    speeds: Mapping[Pair, float],
) -> Compared:
    measure = cell.measure
    last, best = (
        Spread.of(values) if (values := [kind[measure] for kind in kinds if measure in kind]) else None
        for kinds in ([one.last for one in done.values()], [one.best for one in done.values()])
    )
    ours = last if against(cell.table) == "last" else best
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
        ("compared", f"ours of the {against(table)} epoch less printed; the paper's are: {table.printed}"),
        (
            f"marked {MARK}",
            f"chance alone makes such a difference less often than {LEVEL:.0%}: Welch's test where spread and number "
            "of runs are printed, else as if the paper's runs spread as ours",
        ),
        ("seeds", f"the paper's: {table.runs_averaged or 'unsaid'}"),
        ("measure", " ".join(filter(None, [table.measure, table.unit and f"({table.unit})"]))),
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
        missing = "" if cell.why_not in ("not in the paper", "no value in the paper") else cell.why_not
    elif one.seeds_lacking:
        cost = f"{one.epochs_lacking:,} epoch{'' if one.epochs_lacking == 1 else 's'}"
        if one.seconds_lacking is not None:
            cost += f", {format_seconds(one.seconds_lacking)}"
        missing = f"lacks {one.seeds_lacking}: {cost}" if one.epochs_lacking else "lacks an evaluation"
    elif cell.measure not in TRAINED:
        missing = f"{cell.measure}: not measured here"
    return Shown(
        printed="" if cell.printed is None else cell.printed.text,
        last="" if one.last is None else str(one.last),
        best="" if one.best is None else str(one.best),
        seeds=0 if one.last is None else one.last.count,
        difference="" if one.difference is None else f"{one.difference:+.2f}",
        marked=one.marked,
        missing=missing,
        doubts=tuple(cell.table.doubts(cell.row, cell.column)),
    )


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
        "last": spread(one.last),
        "best": spread(one.best),
        "seeds": sorted(one.done),
        "folders": [str(one.done[seed].folder) for seed in sorted(one.done)],
        "difference": one.difference,
        "probability": one.probability,
        "marked": one.marked,
        "lacking": {"trainings": one.seeds_lacking, "epochs": one.epochs_lacking, "seconds": one.seconds_lacking},
    }
