"""What a distillation gives: its numbers, its files, the student, the report."""

from __future__ import annotations

import copy
import html
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from kdstream.api.students import load_student
from kdstream.training.metrics import read_metrics

FILES = ("student.json", "student.safetensors", "report.html", "metrics.jsonl", "result.json", "recipe.yaml")


@dataclass(frozen=True)
class Report:
    """The page of a distillation; a notebook shows it.

    Attributes:
        path: of the HTML file, which holds all that it shows.
    """

    path: Path

    def _repr_html_(self) -> str:
        # In a frame: the page's styles are its own.
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 640px; border: 0" title="report"></iframe>'

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Result:
    """A finished distillation.

    Attributes:
        name: of the run.
        folder: where everything lies; wherever kdstream takes weights, the result or this folder serves.
        metrics: what ``result.json`` says: ``top1`` and ``top5`` of the exported student, ``best_top1``,
            ``best_epoch``, ``params``, ``seconds``, ... (percent, on the validation split).
    """

    name: str
    folder: Path
    metrics: dict[str, Any]
    _module: nn.Module | None = field(default=None, repr=False)

    @property
    def top1(self) -> float:
        """Percent of the validation split."""
        return float(self.metrics["top1"])

    @property
    def paths(self) -> dict[str, Path]:
        """Name -> file, of those that there are."""
        return {name: self.folder / name for name in FILES if (self.folder / name).exists()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row an epoch."""
        return read_metrics(self.folder)

    @cached_property
    def student(self) -> nn.Module:
        """The exported student, with ``predict``; see :func:`kdstream.load_student`."""
        module = None if self._module is None else copy.deepcopy(self._module)
        # The code that it may name is the caller's own: it was named in this call.
        return load_student(self.folder, trust_code=True, module=module)

    def report(self) -> Report:
        """The page with curves, table and recipe."""
        return Report(self.folder / "report.html")

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return f"{self.name}: top-1 {self.top1:.2f} % ({self.folder})"

    def _repr_html_(self) -> str:
        shown = {"run": self.name, "top-1": f"{self.top1:.2f} %", "folder": str(self.folder)}
        seconds, model = self.metrics.get("seconds"), self.metrics.get("model")
        shown |= {} if model is None else {"model": f"{model} ({self.metrics.get('params', 0):,} parameters)"}
        shown |= {} if seconds is None else {"seconds": f"{seconds:.1f}"}
        rows = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in shown.items()
        )
        return f"<table>{rows}</table>"
