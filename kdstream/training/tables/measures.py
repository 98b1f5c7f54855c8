"""Measures: what a table's values may be beside accuracy, and how each is had of a finished training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdstream.training.metrics import read_metrics
from kdstream.training.tables.cells import Cell
from kdstream.training.tables.finished import Done
from kdstream.training.tables.passes import NotHere, Passes, coded_call
from kdstream.training.tables.table import TRAINED

Measure = Callable[["Subject"], float]


@dataclass(frozen=True)
class Subject:
    """A finished training of a cell whose value is asked for.

    Attributes:
        cell: of the table.
        done: its training.
        passes: looks at networks.
        argument: what stands after a colon in the measure's name, as ``cat`` in ``class_top1:cat``.
        cells: of the same table, one of which another network may come from.
    """

    cell: Cell
    done: Done
    passes: Passes
    argument: str = ""
    cells: Sequence[Cell] = ()

    def answers(self) -> Mapping[str, Any]:
        """What a pass tells; of a teacher whose stream is coded, of its coded answers.

        Raises:
            NotHere: why it does not.
        """
        recipe = self.cell.recipe
        if self.cell.of_teacher and recipe is not None and coded_call(recipe) is not None:
            return self.passes.coded(self.cell, self.done)
        return self.passes.answers(self.cell, self.done)


def _seen(key: str, scale: float = 1.0) -> Measure:
    """A value of a pass."""

    def measure(subject: Subject) -> float:
        found = subject.answers()
        if key not in found:
            raise NotHere(f"{key}: a pass over these answers does not tell")
        return float(found[key]) * scale

    return measure


def _class_top1(subject: Subject) -> float:
    """Percent right of the images of one class."""
    shares = subject.passes.answers(subject.cell, subject.done)["per_class"]
    names = subject.passes.classes(subject.cell)
    if subject.argument not in names:
        raise NotHere(f"the data has no class {subject.argument!r}")
    share = shares[names.index(subject.argument)]
    if share is None:
        raise NotHere(f"no image of the class {subject.argument!r}")
    return float(share)


def _lowest_class(subject: Subject) -> float:
    """Percent right of the images of the class that is recognised least."""
    return min(share for share in subject.passes.answers(subject.cell, subject.done)["per_class"] if share is not None)


def _robustness(subject: Subject) -> float:
    """Percent right under a corruption."""
    if not subject.argument:
        raise NotHere("of which corruption is not said: the table's measure is robustness:fog, or another one")
    return subject.passes.robustness(subject.cell, subject.done, subject.argument)


def _transferability(subject: Subject) -> float:
    """Percent that an attack on another network fools."""
    source = subject.argument or "teacher"
    return subject.passes.transferability(subject.cell, subject.done, source, subject.cells)


def _divergence(subject: Subject) -> float:
    """The loss's only term, after the last epoch."""
    rows = [row for row in read_metrics(subject.done.folder) if row.get("phase") == "main"]
    terms = divergence_terms(rows)
    if not terms or rows[-1].get(terms[0]) is None:
        raise NotHere(f"no log of a term ttm or wttm in {subject.done.folder}")
    return float(rows[-1][terms[0]])


def divergence_terms(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The terms in a log that are a divergence from the transformed teacher."""
    return [key for key in ("loss/ttm", "loss/wttm") if rows and key in rows[-1]]


def _of_teacher(key: str) -> Measure:
    """What the training noted of its teacher's answers, in the last epoch."""

    def measure(subject: Subject) -> float:
        found = (subject.done.result.get("teacher") or {}).get(key)
        if not found:
            raise NotHere("no teacher answered in its training")
        return float(found[0])

    return measure


def _seconds(subject: Subject) -> float:
    """How long the training took."""
    if not subject.done.epochs:
        raise NotHere("nothing was trained here")
    return subject.done.seconds


def _parameters(subject: Subject) -> float:
    """Of what was exported."""
    if "params" not in subject.done.result:
        raise NotHere(f"{subject.done.folder} does not tell its parameters")
    return float(subject.done.result["params"])


def _additional_parameters(subject: Subject) -> float:
    """What a training has beside its student's."""
    return float(subject.passes.additional_parameters(subject.cell, subject.done))


MEASURES: dict[str, Measure] = {
    "entropy": _seen("entropy"),
    "probability": _seen("probability"),
    "covariance": _seen("covariance", 1e5),
    "loss": _seen("loss"),
    "ece": _seen("calibration_error"),
    "teacher_entropy": _of_teacher("entropy"),
    "truth_probability": _of_teacher("gt_probability"),
    "class_top1": _class_top1,
    "lowest_class_top1": _lowest_class,
    "robustness": _robustness,
    "transferability": _transferability,
    "pearson": _seen("pearson"),
    "spearman": _seen("spearman"),
    "logit_difference": _seen("logit_difference"),
    "entropy_curve": _seen("entropy"),
    "divergence_curve": _divergence,
    "entropy_histogram": _seen("entropy"),
    "logit_histogram": _seen("entropy"),
    "seconds": _seconds,
    "parameters": _parameters,
    "additional_parameters": _additional_parameters,
}
"""Name -> how the value is had of one finished training. To add a measure: a function and its line here. Those of
:data:`kdstream.training.tables.table.TRAINED` stand in every row of metrics and need none."""

TOLD = {
    "entropy": "mean over images of the entropy of the answer, nats",
    "probability": "mean over images of the right class's probability",
    "covariance": "mean absolute entry of the answers' covariance matrix, times 100,000",
    "ece": "expected calibration error over 15 bins of confidence, percent",
    "teacher_entropy": "of the teacher's answers to the views of the last epoch, mean, nats",
    "truth_probability": "that the teacher's answers to those views give the label, mean",
    "class_top1": "percent right of one class's images",
    "lowest_class_top1": "percent right of the class that is recognised least",
    "robustness": "percent right of images under a corruption, mean over its severities 1 to 5",
    "transferability": (
        "PGD (0.031, steps of 0.003, 20) on the column's network; percent of the images that it and the row's both get "
        "right, of which the row's gets the attacked ones wrong"
    ),
    "pearson": "mean over images of Pearson's coefficient of the student's and the teacher's logits",
    "spearman": "mean over images of the rank correlation of the student's and the teacher's logits",
    "logit_difference": "mean over images and classes of |student's logit - teacher's|",
    "entropy_curve": "mean entropy of the answers when the training is over; its course is not in the log",
    "entropy_histogram": "drawn on the HTML page; in the cell its mean, nats",
    "logit_histogram": "of logits standardised over an image's classes, on the HTML page; in the cell the mean entropy",
    "top1_curve": "drawn on the HTML page; in the cell the validation accuracy",
    "divergence_curve": "the term of the loss, as logged, is drawn on the HTML page; in the cell its last value",
    "seconds": "of the whole training, on whatever machine it ran",
    "parameters": "of the exported network",
    "additional_parameters": "of what is trained or kept beside the student",
}
"""What a report says of a measure."""

WHOLE = ("seconds", "parameters", "additional_parameters", "divergence_curve", "teacher_entropy", "truth_probability")
"""Measures of a training as a whole, for which no images are looked at."""

ELSEWHERE = {
    "embedding": "a picture of features, which nothing here draws yet",
    "hyperparameter": "a setting: the recipes have it",
    "quality": "of single images: kdstream peakiness shows which versions are chosen",
}
"""Measures that there is no function for -> what to know of them."""


def value_of(cell: Cell, done: Done, passes: Passes, cells: Sequence[Cell] = (), measure: str | None = None) -> float:
    """A cell's value by one finished training.

    Args:
        cell: of a table.
        done: its training.
        passes: looks at networks.
        cells: those of its table.
        measure: None = the cell's own.

    Raises:
        NotHere: why there is none.
    """
    name, _, argument = (measure or cell.measure).partition(":")
    if name not in MEASURES:
        raise NotHere(ELSEWHERE.get(name, "nothing here measures that"))
    return MEASURES[name](Subject(cell, done, passes, argument, cells))


def of_an_epoch(cell: Cell) -> str | None:
    """Which value of an epoch's row is a cell's: accuracy; None where it is another measure."""
    measure = "top1" if cell.measure == "top1_curve" else cell.measure
    return measure if measure in TRAINED else None
