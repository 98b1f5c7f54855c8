"""Findings: what a comparison has found so far, as values for programs and as a page for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdstream.analysis.accuracy import BINS
from kdstream.analysis.spread import Spread
from kdstream.display.compare_page import ComparePage, Line
from kdstream.training.comparing.methods import KD, LABELS, Method
from kdstream.training.comparing.tuning import Trial
from kdstream.training.comparing.verdicts import LEVEL, POWER, against, bonferroni, conclusions, ranked

COSTS = ("seconds", "images_per_s", "process", "device")
"""Of a training: its time, how many images it takes a second, and the most memory of process and GPU (bytes)."""


@dataclass(frozen=True)
class Found:
    """What is found of a method.

    Attributes:
        method: the method.
        trial: the tuned settings that it was trained with; empty where nothing was tuned.
        trials: what each trial reached on what was held out: trial -> ``top1``, ``loss``.
        by_seed: seed -> what :func:`kdstream.training.comparing.contest.evaluated` gives.
    """

    method: Method
    trial: Trial
    trials: Mapping[Trial, Mapping[str, Any]]
    by_seed: Mapping[int, Mapping[str, Any]]

    def values(self, key: str) -> dict[int, float]:
        """Seed -> a measure (``top1``, ``loss``, ``calibration_error``) or one of :data:`COSTS`, where it is known."""
        return {seed: float(value) for seed, one in self.by_seed.items() if (value := _value(one, key)) is not None}

    def spread(self, key: str) -> Spread | None:
        """Mean and deviation of it over seeds; None where nothing is known."""
        values = list(self.values(key).values())
        return Spread.of(values) if values else None


def _value(one: Mapping[str, Any], key: str) -> Any:
    result = one["result"]
    if key in ("process", "device"):
        return result.get("memory", {}).get(key)
    return result.get(key) if key in COSTS else one.get(key)


def tops(found: Sequence[Found]) -> dict[str, dict[int, float]]:
    """Method -> seed -> top-1, of those of which anything is finished."""
    return {one.method.name: values for one in found if (values := one.values("top1"))}


def as_json(found: Sequence[Found], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in plain values, the highest mean first."""
    by_method = tops(found)
    order = ranked(by_method)
    differences = {first: against(by_method, first) for first in (LABELS, KD)}

    def row(one: Found) -> dict[str, Any]:
        name = one.method.name
        measures = ("top1", "calibration_error", "loss", *COSTS)
        return {
            "method": name,
            "loss": one.method.loss,
            "coded": one.method.coded,
            "settings_from": one.method.source,
            "tuned": list(one.trial),
            "trials": [
                {"settings": list(trial), "top1": reached["top1"], "loss": reached["loss"]}
                for trial, reached in one.trials.items()
            ],
            "seeds": list(one.by_seed),
            **{key: None if (s := one.spread(key)) is None else {"mean": s.mean, "std": s.std} for key in measures},
            "by_seed": {
                str(seed): {key: _value(value, key) for key in measures} for seed, value in one.by_seed.items()
            },
            **{
                f"over {first}": asdict(difference)
                for first, of in differences.items()
                if (difference := of.get(name)) is not None
            },
        }

    rows = sorted(found, key=lambda one: order.index(one.method.name) if one.method.name in order else len(order))
    return {
        **about,
        "level": LEVEL,
        "level_of_each_interval": {first: bonferroni(len(of)) for first, of in differences.items() if of},
        "correction": "Bonferroni",
        "methods": [row(one) for one in rows],
        "conclusions": conclusions(by_method),
    }


def page(
    found: Sequence[Found], title: str, about: str, facts: Sequence[tuple[str, str]], notes: Sequence[str]
) -> ComparePage:
    """The findings as they are shown.

    Args:
        found: of each method.
        title, about: what was compared, and on what.
        facts: further ones: name, text.
        notes: what a user should know of the setting.
    """
    by_method = tops(found)
    named = {one.method.name: one for one in found}
    over = {first: against(by_method, first) for first in (LABELS, KD)}
    lines = []
    for name in ranked(by_method):
        one = named[name]
        memory = one.spread("device") or one.spread("process")
        lines.append(
            Line(
                name=name,
                setting=", ".join(filter(None, [_loss(one.method), " ".join(one.trial)])),
                source=one.method.source + (f"; best of {len(one.trials)} trials" if one.trials else ""),
                tops=by_method[name],
                top1=Spread.of(list(by_method[name].values())),
                over_labels=over[LABELS].get(name),
                over_kd=over[KD].get(name),
                error=one.spread("calibration_error"),
                loss=one.spread("loss"),
                seconds=_mean(one, "seconds"),
                images_per_s=_mean(one, "images_per_s"),
                memory=None if memory is None else memory.mean,
            )
        )
    seeds = sorted({seed for values in by_method.values() for seed in values})
    samples = next((int(one["samples"]) for each in found for one in each.by_seed.values()), 0)
    return ComparePage(
        title, about, conclusions(by_method), lines, [*_how_to_read(by_method, seeds, samples), *facts], list(notes)
    )


def _how_to_read(
    by_method: Mapping[str, Mapping[int, float]], seeds: Sequence[int], samples: int
) -> list[tuple[str, str]]:
    best = max((Spread.of(list(values.values())).mean for values in by_method.values()), default=0.0) / 100
    error = 100 * math.sqrt(best * (1 - best) / samples) if samples else 0.0
    others = len(by_method) - 1
    return [
        ("top-1", f"of the exported student after the last epoch: mean ± standard deviation over seeds {_few(seeds)}"),
        (
            "differences",
            f"seed by seed, in percentage points, with intervals by Student's t. All to labels only together hold in "
            f"{LEVEL:.0%} of cases, and so do all to kd: by Bonferroni, each has {bonferroni(others):.2%} and "
            f"{bonferroni(others - 1):.2%}. For the highest and the others, all pairs are counted",
        ),
        (
            "chance",
            f"they cover the students' seeds: with one teacher, and these {samples:,} images, of which another draw "
            f"would move an accuracy by about ± {error:.2f} (its standard error; differences by less)",
        ),
        ("seeds needed", f"for a difference of the size found, seen with probability {POWER:.0%}"),
        (
            "calibration",
            f"expected calibration error over {BINS} bins of confidence (Guo et al. 2017); the loss is in nats",
        ),
        (
            "cost",
            "of a student: seconds of its training (without the teacher's and without making a coding plan), images a "
            "second, and the most memory that process or GPU took; trainings beside it slow it down",
        ),
    ]


def _few(seeds: Sequence[int]) -> str:
    return (
        f"{seeds[0]} to {seeds[-1]}"
        if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
        else ", ".join(map(str, seeds))
    )


def _mean(one: Found, key: str) -> float | None:
    found = one.spread(key)
    return None if found is None else found.mean


def _loss(method: Method) -> str:
    words = []
    for term, settings in method.loss.items():
        own = settings if isinstance(settings, Mapping) else {"weight": settings}
        rest = ", ".join(f"{key}={value}" for key, value in own.items() if key != "weight")
        words.append(f"{own.get('weight', 1):g} {term}" + (f"({rest})" if rest else ""))
    return " + ".join(words) + (", coded teacher" if method.coded else "")
