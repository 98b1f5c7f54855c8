"""Seeds: what the trainings of each run, one a seed, reach together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kdstream.analysis.spread import Difference, Spread, paired

RESULTS = "results.json"
"""What :func:`over_seeds` gives, in the folder of the job."""
MEASURES = ("top1", "best_top1")
"""Of the last epoch, and of the best one."""


def over_seeds(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean, deviation and difference to the first run.

    Args:
        results: run -> seed -> the content of its ``result.json``.

    Returns:
        ``{"first": run, "runs": {run: {"seeds": [...], "top1": {"values", "mean", "std"}, "best_top1": the same,
        "over_first": {"pairs", "mean", "low", "high"}}}}``, all in percent: differences of ``top1``, seed by seed, with
        the ends of their 95 % interval. ``std`` is None for one seed, and the ends too; the first run has no
        ``over_first``. Empty for no run.
    """
    if not results:
        return {}
    first = next(iter(results))
    runs: dict[str, Any] = {}
    for name, by_seed in results.items():
        row: dict[str, Any] = {"seeds": list(by_seed)}
        for measure in MEASURES:
            values = [float(result[measure]) for result in by_seed.values()]
            found = Spread.of(values)
            row[measure] = {"values": values, "mean": found.mean, "std": found.std}
        if name != first and (over := paired(_top1(by_seed), _top1(results[first]))) is not None:
            row["over_first"] = asdict(over)
        runs[name] = row
    return {"first": first, "runs": runs}


def rows_over_seeds(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same as rows of a table for people."""
    rows = []
    for name, run in found.get("runs", {}).items():
        row: dict[str, Any] = {"run": name, "seeds": len(run["seeds"])}
        for title, measure in (("top-1 %", "top1"), ("best epoch, top-1 %", "best_top1")):
            row[title] = str(Spread(len(run["seeds"]), run[measure]["mean"], run[measure]["std"]))
        over = run.get("over_first")
        row[f"over {found['first']}, 95 %"] = None if over is None else str(Difference(**over))
        rows.append(row)
    return rows


def _top1(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {seed: float(result["top1"]) for seed, result in by_seed.items()}
