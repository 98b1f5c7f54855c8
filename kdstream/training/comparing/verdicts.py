"""Verdicts: what the seeds say of the differences between methods, all of them together, and what they cannot say."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence

from kdstream.analysis.spread import Difference, Spread, paired, t_quantile
from kdstream.training.comparing.methods import KD, LABELS

LEVEL = 0.95
"""With which all intervals of a family hold together."""
POWER = 0.8
"""How often as many seeds as are said to be needed would show such a difference."""
_MOST = 1000
Tops = Mapping[str, Mapping[int, float]]
"""Method -> seed -> top-1 accuracy, percent."""


def bonferroni(comparisons: int) -> float:
    """The level of each of so many intervals that makes :data:`LEVEL` of all of them together (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def against(tops: Tops, first: str) -> dict[str, Difference]:
    """How much each other method is above ``first``, seed by seed, with intervals that hold together; labels only are
    among the others of none, since what beats them is said of them.

    Returns:
        Method -> difference; empty where ``first`` is not among them. Methods without a seed in common are left out.
    """
    others = [name for name in tops if name not in (first, LABELS)] if first in tops else []
    level = bonferroni(len(others))
    found = {name: paired(tops[name], tops[first], level) for name in others}
    return {name: difference for name, difference in found.items() if difference is not None}


def seeds_needed(values: Mapping[int, float], first: Mapping[int, float], level: float) -> int | None:
    """How many seeds show a difference of this size: the interval of ``level`` then leaves 0 out with probability
    :data:`POWER`, if mean and spread are as they were found.

    Returns:
        None where no spread is known; :data:`_MOST` + 1 where it would be more than that.
    """
    common = sorted(set(values) & set(first))
    found = Spread.of([values[seed] - first[seed] for seed in common]) if common else None
    if found is None or not found.std or found.std < 1e-9:
        return None
    spread = found.std

    def shown(count: int) -> bool:
        # A two-sided quantile of 2 POWER - 1 is a one-sided one of POWER.
        quantiles = t_quantile(level, count - 1) + t_quantile(2 * POWER - 1, count - 1)
        return quantiles * spread <= abs(found.mean) * math.sqrt(count)

    return bisect.bisect_left(range(_MOST + 1), True, lo=2, key=shown)


def ranked(tops: Tops) -> list[str]:
    """The methods, the highest mean first."""
    return sorted(tops, key=lambda name: -Spread.of(list(tops[name].values())).mean)


def conclusions(tops: Tops) -> list[str]:
    """What can be concluded, and what cannot, a sentence each."""
    order = ranked(tops)
    if len(order) < 2:
        return ["There is nothing to compare yet."]
    seeds = min(len(values) for values in tops.values())
    if seeds < 2:
        return [
            f"With one seed nothing can be concluded: {order[0]} is highest here, and another seed may well give "
            "another order. --seeds 5 says how much of a difference is chance."
        ]
    found = []
    for first in (LABELS, KD):
        differences = against(tops, first)
        if differences:
            found.append(_of_reference(tops, first, differences))
    found.append(_of_best(tops, order))
    return found


def _of_reference(tops: Tops, first: str, differences: Mapping[str, Difference]) -> str:
    others = [name for name in ranked(tops) if name in differences]
    better = [name for name in others if (low := differences[name].low) is not None and low > 0]
    worse = [name for name in others if (high := differences[name].high) is not None and high < 0]
    rest = [name for name in others if name not in (*better, *worse)]
    parts = []
    if better:
        parts.append(f"{_listed(better, differences)} {'beats' if len(better) == 1 else 'beat'} {first}")
    if worse:
        parts.append(f"{_listed(worse, differences)} {'is' if len(worse) == 1 else 'are'} worse than {first}")
    if rest:
        seeds = min(differences[name].pairs for name in rest)
        largest = max(rest, key=lambda name: abs(differences[name].mean))
        needed = _needed(tops, largest, first, len(differences))
        parts.append(f"with {seeds} seeds nothing separates {_joined(rest)} from {first}{needed}")
    said = "; ".join(parts)
    return f"{said[:1].upper() if said.startswith('with ') else said[:1]}{said[1:]}."


def _of_best(tops: Tops, order: Sequence[str]) -> str:
    best, others = order[0], order[1:]
    pairs = len(order) * len(others) // 2  # the best was not known before: any two may be the ones that are compared
    found = {name: paired(tops[best], tops[name], bonferroni(pairs)) for name in others}
    close = [name for name, one in found.items() if one is None or one.low is None or one.low <= 0]
    if not close:
        return f"{best} is best: it is separated from every other method."
    seeds = min(one.pairs for one in found.values() if one is not None)
    needed = _needed(tops, best, close[0], pairs)
    return f"{best} is highest, and with {seeds} seeds nothing separates it from {_joined(close)}{needed}."


def _needed(tops: Tops, name: str, first: str, comparisons: int) -> str:
    difference = paired(tops[name], tops[first])
    count = seeds_needed(tops[name], tops[first], bonferroni(comparisons))
    if difference is None or count is None:
        return ""
    many = f"more than {_MOST:,}" if count > _MOST else f"about {count:,}"
    return f": {many} seeds would be needed for a difference as that of {name} to {first} ({difference.mean:+.2f})"


def _listed(names: Sequence[str], differences: Mapping[str, Difference]) -> str:
    return _joined([f"{name} ({interval(differences[name])})" for name in names])


def interval(one: Difference) -> str:
    """A difference and its interval in words."""
    return f"{one.mean:+.2f}" + ("" if one.low is None else f", {one.low:+.2f} to {one.high:+.2f}")


def _joined(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
