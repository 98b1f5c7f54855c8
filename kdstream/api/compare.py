"""compare: which method serves images best, over seeds; ``kdstream compare`` from Python."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.cli.compare import run
from kdstream.errors import UserError
from kdstream.recipe_file import parse_override


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        folder: with compare.html, compare.md and compare.json.
        found: the content of compare.json.
    """

    folder: Path
    found: dict[str, Any]

    def _repr_html_(self) -> str:
        page = html.escape((self.folder / "compare.html").read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 640px; border: 0" title="comparison"></iframe>'

    def __str__(self) -> str:
        return (self.folder / "compare.md").read_text(encoding="utf-8")


def compare(
    data: str | os.PathLike[str],
    *,
    teacher: str | os.PathLike[str] | None = None,
    student: str | None = None,
    methods: str | Sequence[str] | None = None,
    seeds: int = 5,
    delta: int = 5,
    tune: Sequence[str] = (),
    trials: int | None = None,
    jobs: int = 1,
    out: str | os.PathLike[str] | None = None,
    cpu: bool = False,
    **settings: Any,
) -> Comparison:
    """Train students by several methods, each with several seeds, and say which differences are real.

    Every training is a process of its own, so that networks are names or weights here; one of your own has a dotted
    path. What is trained is kept: the same call goes on.

    Args:
        data: a folder of shards, or a recipe.
        teacher, student: names; the teacher may be weights, or a result of :func:`kdstream.distill`.
        methods: objectives and published losses, as ``["kd", "ckd", "dkd"]``; None = those of ``kdstream compare``.
        seeds: students of each method.
        delta: between the qualities of the coded teacher.
        tune: values to try, as ``["loss.kd.temperature=1,4,12"]``.
        trials: of each method, at most.
        jobs: trainings at a time.
        out: folder; default ``runs/compare-DATA-TEACHER-STUDENT``.
        cpu: use no GPU.
        settings: a recipe's, for all: ``epochs=40``, ``optimizer={"lr": 0.05}``.

    Raises:
        UserError: something in the input is wrong, or a training failed.
    """
    for role, network in (("teacher", teacher), ("student", student)):
        if network is not None and not isinstance(network, str | os.PathLike):
            raise UserError(
                f"compare trains in processes of their own, so {role} is a name or weights: name your network by "
                "dotted path, my_pkg.nets:Net"
            )
    named = [Path(os.fspath(one)).stem for one in (data, teacher, student) if one is not None]
    folder = Path(out or Path("runs") / re.sub(r"[^\w.+-]+", "_", "-".join(["compare", *named])))
    words = [os.fspath(data), *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
    for word in words[1:]:
        parse_override(word)
    words += [] if teacher is None else ["--teacher", os.fspath(teacher)]
    words += [] if student is None else ["--student", student]
    if methods is not None:
        words += ["--methods", methods if isinstance(methods, str) else ",".join(methods)]
    words += ["--seeds", str(seeds), "--delta", str(delta), "--jobs", str(jobs), "--out", str(folder)]
    words += [] if trials is None else ["--trials", str(trials)]
    words += ["--tune", *tune] if tune else []
    run([*words, *(["--cpu"] if cpu else [])])
    return Comparison(folder, json.loads((folder / "compare.json").read_text(encoding="utf-8")))
