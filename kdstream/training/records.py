"""What the folders of finished trainings tell a report and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdstream.display.report import RunRecord
from kdstream.training.metrics import read_metrics, read_speed


def read_record(folder: Path, role: str = "student") -> RunRecord:
    """What the folder of a finished training tells about it."""
    result = dict(json.loads((folder / "result.json").read_text()))
    return RunRecord(str(result["name"]), read_metrics(folder), read_speed(folder), result, role)


def cohort(record: RunRecord) -> list[RunRecord]:
    """The record, and one for every other network that learnt in the same run; each with its own validation.

    The record shows what was exported; where that is not the student that was asked for, its name says so.
    """
    networks = record.result.get("networks", {})
    exported = record.result.get("network", "student")
    others = [
        RunRecord(f"{record.name}: {name}", _validation(record.metrics, name), [], about, "peer")
        for name, about in networks.items()
        if name != exported
    ]
    if exported == "student":
        return [record, *others]
    rows = [
        {**{key: row[key] for key in row if not key.startswith(("val/", "train/"))}, **own}
        for row, own in zip(record.metrics, _validation(record.metrics, exported), strict=True)
    ]
    return [replace(record, name=f"{record.name}: {exported}", metrics=rows), *others]


def _validation(rows: Sequence[Mapping[str, Any]], network: str) -> list[dict[str, Any]]:
    """What the rows tell of one network, under the names that the student's values have."""
    prefix = "val/" if network == "student" else f"val/{network}/"
    names = {f"{prefix}{key}": f"val/{key}" for key in ("loss", "top1", "top5")}
    names |= {key: key for key in ("kind", "phase", "epoch", *(["train/top1"] if network == "student" else []))}
    return [{name: row[key] for key, name in names.items() if key in row} for row in rows]


def table_row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    teacher = result.get("teacher", {})
    return {
        "run": name,
        "model": result["model"],
        "params": result["params"],
        "top-1 %": result["top1"],
        **({} if result.get("published") is None else {"published %": result["published"]}),
        "entropy": teacher["entropy"][0] if teacher else None,
        "images/s": result.get("images_per_s"),
        "seconds": result.get("seconds"),
    }
