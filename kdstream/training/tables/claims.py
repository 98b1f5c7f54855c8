"""Claims: what the papers say, decided by trainings: paired differences, their intervals, and a rule fixed before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdstream.analysis.spread import Difference, Spread, paired
from kdstream.errors import UserError
from kdstream.registry import nearest
from kdstream.terminal import quoted
from kdstream.training.tables.cells import Cell, expand
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.measures import value_of
from kdstream.training.tables.order import Order
from kdstream.training.tables.passes import NotHere, Passes
from kdstream.training.tables.table import TRAINED, Table, load_table
from kdstream.training.tables.work import Task

VERDICTS = ("reversed", "does not show", "not decided yet", "holds")
"""What can come of an order; of a claim, the first of these that one of its orders has."""
RULE = (
    "left less right, seed by seed (by one seed both see the same images, batches and views); the mean's 95 % interval "
    "by Student's distribution. holds: the interval is above 0. reversed: it is below 0. does not show: 0 is in it. A "
    "claim holds where all of its lines do, and is reversed where one is. Every line is judged for itself: of twenty "
    "without any effect one would look as if it had one"
)
MEASURED = {
    "top1": ("top-1", "points"),
    "teacher_entropy": ("entropy of the teacher's answers", "nat"),
    "truth_probability": ("the teacher's probability for the label", ""),
    "entropy": ("entropy of the student's answers", "nat"),
    "ece": ("calibration error", "points"),
}
"""What a claim may be of, of :mod:`kdstream.training.tables.measures`: its name for people, and its unit."""
FEWEST = 3
"""Pairs; the interval of two is too wide to decide anything, and says so of differences that are there."""


@dataclass(frozen=True)
class Line:
    """An order, in a setting.

    Attributes:
        order: what shall hold.
        column: in which setting (its key).
        measure, unit: of what.
        values: row -> seed -> value.
        difference: left less right; None where no seed has all rows.
        lacking: trainings that are left, of the seeds that were asked for.
        why_not: why a finished training has no value; empty where all have one.
    """

    order: Order
    column: str
    measure: str
    unit: str
    values: Mapping[str, Mapping[int, float]]
    difference: Difference | None
    lacking: int
    why_not: str = ""

    @property
    def verdict(self) -> str:
        """By the rule."""
        found = self.difference
        if found is None or found.low is None or found.high is None or found.pairs < FEWEST:
            return "not decided yet"
        return "holds" if found.low > 0 else "reversed" if found.high < 0 else "does not show"


@dataclass(frozen=True)
class Claim:
    """A claim and what came of it.

    Attributes:
        table: its trainings.
        lines: its orders, each in every setting.
        cells: of the table, with a recipe.
    """

    table: Table
    lines: Sequence[Line]
    cells: Sequence[Cell]

    @property
    def verdict(self) -> str:
        """Of all lines together."""
        found = {line.verdict for line in self.lines}
        return next(one for one in VERDICTS if one in found)


def load_claim(name: str) -> Table:
    """A claim by the end of its name, as ``ckd``, by its name, as ``claims/ckd``, or by its file.

    Raises:
        UserError: no such file, one that claims nothing, a measure that is unknown.
    """
    short = "/" not in name and not name.endswith((".yaml", ".yml"))
    table = load_table(f"claims/{name}" if short else name)
    if not table.claims:
        raise UserError(f"{quoted(name)} claims nothing: it has no claims: with an order, as 'ckd > kd'")
    for order in table.claims:
        measure = order.measure or table.measure
        if measure not in MEASURED:
            raise UserError(f"claim {table.name}: measure {quoted(measure)} is unknown: {nearest(measure, MEASURED)}")
    return table


def in_rounds(tasks: Sequence[Task]) -> list[Task]:
    """Seed by seed, each teacher just before the first student that needs it: what is interrupted has whole pairs."""
    teachers = {task.gives: task for task in tasks if task.gives is not None}
    found: list[Task] = []
    for task in sorted((task for task in tasks if task.gives is None), key=lambda task: task.recipe.seed):
        if task.needs in teachers:
            found.append(teachers.pop(task.needs))
        found.append(task)
    return [*teachers.values(), *found]


def cells_of(tables: Sequence[Table], overrides: Sequence[str]) -> dict[str, list[Cell]]:
    """Claim -> its cells that are trained."""
    return {table.name: [cell for cell in expand(table, overrides) if cell.recipe is not None] for table in tables}


def judge(table: Table, cells: Sequence[Cell], seeds: int, finished: Finished, passes: Passes) -> Claim:
    """A claim by what is finished.

    Args:
        table: of :func:`load_claim`.
        cells: of it.
        seeds: how many of each there should be.
        finished: says what is done.
        passes: looks at networks.
    """
    done = {(cell.row, cell.column): finished.of(cell) for cell in cells}
    by_place = {(cell.row, cell.column): cell for cell in cells}
    lines = []
    for order in table.claims:
        measure = order.measure or table.measure
        rows = [row for row in table.rows if row in order.weights]
        for column in table.columns:
            values: dict[str, dict[int, float]] = {row: {} for row in rows}
            lacking, why = 0, ""
            for row in rows:
                cell, trained = by_place[row, column], done[row, column]
                assert cell.recipe is not None
                lacking += sum(seed not in trained for seed in range(cell.recipe.seed, cell.recipe.seed + seeds))
                for seed, one in sorted(trained.items()):
                    try:
                        plain = measure in TRAINED
                        values[row][seed] = one.last[measure] if plain else value_of(cell, one, passes, cells, measure)
                    except NotHere as error:
                        why = why or str(error)
            difference = _difference(order, values)
            lines.append(Line(order, column, measure, MEASURED[measure][1], values, difference, lacking, why))
    return Claim(table, lines, cells)


def _difference(order: Order, values: Mapping[str, Mapping[int, float]]) -> Difference | None:
    common = set.intersection(*(set(values[row]) for row in values))
    sums = {seed: sum(order.weights[row] * values[row][seed] for row in values) for seed in common}
    return paired(sums, dict.fromkeys(common, 0.0))


def by_verdict(claims: Sequence[Claim]) -> list[Claim]:
    """Reversed ones first."""
    return sorted(claims, key=lambda claim: VERDICTS.index(claim.verdict))


# --- for programs


def as_json(claim: Claim) -> dict[str, Any]:
    """A claim in plain values, with every seed's."""
    table = claim.table

    def line_of(line: Line) -> dict[str, Any]:
        found = line.difference
        return {
            "order": line.order.text,
            "setting": line.column,
            "measure": line.measure,
            "unit": line.unit,
            "printed": line.order.printed or None,
            "difference": None if found is None else vars(found),
            "verdict": line.verdict,
            "lacking": line.lacking,
            "not_measured": line.why_not or None,
            "values": {row: {str(seed): value for seed, value in own.items()} for row, own in line.values.items()},
            "mean": {row: vars(Spread.of(list(own.values()))) for row, own in line.values.items() if own},
        }

    return {
        "claim": table.name,
        "says": table.title,
        "paper": table.paper,
        "place": table.place,
        "verdict": claim.verdict,
        "lines": [line_of(line) for line in claim.lines],
        "recipes": {cell.key: cell.recipe.shown() for cell in claim.cells if cell.recipe is not None},
        "notes": table.notes,
    }
