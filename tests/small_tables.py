"""A paper's table on handwritten digits, as small as the trainings of a test."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from kdstream.recipe import Recipe

SETTINGS = """
data: {path: PATH}
stream: decode | augment(cifar, pad=1, flip=false)
coded: coded(fixed(50))
epochs: 1
batch_size: 120
optimizer: {lr: 0.05}
schedule: {name: constant}
workers: 0
teacher: {train: {loss: ce}}
"""

TABLE = """
# Digits by a small network that learns from a little larger one.
paper: small
place: table 1, section 2
measure: top1
unit: "%"
printed: best
runs_averaged: 2
base: settings
columns:
  resnet14-resnet8: {teacher: resnet14, student: resnet8, optimizer: {lr: 0.01}}
rows:
  teacher: {label: Teacher, of: teacher}
  student: {label: Student, of: student}
  kd: {label: KD, recipe: {loss: {ce: 0.1, kd: {weight: 0.9, temperature: 4}}}}
  ckd: {label: CKD, recipe: {loss: {ce: 0.1, kd: {weight: 0.9, temperature: 4}}}, coded: true}
  search: {label: Searched, quoted: true, note: from another paper}
values: |
  .        resnet14-resnet8
  teacher  81.5
  student  70.66
  kd       73.08±0.2
  ckd      74.0
  search   n/a
suspect:
  - {cell: "kd:resnet14-resnet8", says: hardly so}
notes: [a table of nobody's]
"""


def write_table(folder: Path, digits: Path, text: str = TABLE, name: str = "small.yaml") -> Path:
    """The table and the settings file that it begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(SETTINGS.replace("PATH", str(digits)).strip())
    path = folder / name
    path.write_text(textwrap.dedent(text).strip() + "\n")
    return path


def finish(recipe: Recipe, tops: Sequence[float], folder: str | Path | None = None, seconds: float = 30.0) -> None:
    """As a finished training of these top-1 accuracies, an epoch each, leaves its folder."""
    folder = Path(folder or recipe.out)
    folder.mkdir(parents=True)
    rows = [{"kind": "epoch", "phase": "main", "epoch": i, "val/top1": top, "val/top5": top + 10}
            for i, top in enumerate(tops, 1)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"name": recipe.name, "fingerprint": f"{recipe.fingerprint()}-data", "top1": tops[-1], "epochs": len(tops)}
    result |= {"best_top1": max(tops), "seconds": seconds, "network": "student"}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
