"""Distillation objectives: one file a method, what several share in ``common``; read by :func:`parse_loss`."""

from kdstream.objectives.loss import OBJECTIVES, Loss, WeightedTerm, parse_loss
from kdstream.objectives.term import Phase, Task, Term

__all__ = ["OBJECTIVES", "Loss", "Phase", "Task", "Term", "WeightedTerm", "parse_loss"]
