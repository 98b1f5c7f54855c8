"""Tuning: settings to be tried for each method, as many trials for one as for another, and which of them was best."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.recipe_file import parse_override
from kdstream.registry import nearest
from kdstream.safe_yaml import parse_yaml
from kdstream.terminal import quoted
from kdstream.training.comparing.methods import Method
from kdstream.training.comparing.setting import Setting

SHARE = 0.1
"""Of every class of the training split, held out to choose by."""
_TUNED = ("loss", "optimizer", "schedule", "epochs", "batch_size", "ema")
"""What may be tuned: the rest is the comparison's."""

Trial = tuple[str, ...]
"""``key=value`` of each tuned setting."""


def split_fixed(items: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """What ``--tune`` says: setting -> values to be tried; and the ordinary overrides that stand after it: what has a
    single value, and the stream, whose commas part no values.

    Args:
        items: ``key=value,value,...``; a value is written as in YAML.

    Raises:
        UserError: what is no list of values, stands there twice, or cannot be tuned.
    """
    found: dict[str, list[Any]] = {}
    fixed = []
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--tune {quoted(item)}: write a setting and its values, as loss.kd.temperature=1,4,12")
        if key == "stream":
            fixed.append(item)
            continue
        values = parse_yaml(f"[{text}]", f"--tune {quoted(item)}: the values are")
        if not isinstance(values, list) or not values:
            raise UserError(f"--tune {quoted(item)}: there are no values to try")
        if len(values) == 1:
            fixed.append(item)
            continue
        keys, _ = parse_override(f"{key}=0")
        if keys[0] not in _TUNED or (keys[0] == "loss") != (len(keys) == 3 and keys[0] == "loss"):
            raise UserError(
                f"--tune {quoted(key)}: tune loss.TERM.SETTING, {', '.join(_TUNED[1:])} or settings of theirs; what is "
                "the same for all trials stands before --tune"
            )
        if key in found:
            raise UserError(f"--tune {quoted(key)} stands there twice: name all values once")
        if len({json.dumps(value) for value in values}) < len(values):
            raise UserError(f"--tune {quoted(item)}: a value stands there twice")
        found[key] = values
    return found, fixed


def trials_of(
    methods: Sequence[Method], setting: Setting, tuned: Mapping[str, Sequence[Any]], most: int | None = None
) -> dict[str, list[Trial]]:
    """The trials of each method that has any of the tuned settings: equally many for all of them.

    A method's grid are all combinations of the tuned settings that it has. As many trials as the smallest grid has (or
    ``most``) are taken of each: the whole grid where it is as small, else the first ones of an order that depends on
    the method's name and the settings alone.

    Args:
        methods: those that are compared.
        setting: theirs.
        tuned: setting -> values.
        most: trials of a method at most.

    Returns:
        Name of the method -> its trials; without those that have nothing to tune.

    Raises:
        UserError: a setting that no method has; a value that one of them cannot take.
    """
    terms = sorted({term for method in methods for term in method.loss})
    if setting.settings["data"].get("hold_out"):
        raise UserError("--tune holds out a part of the training split itself: leave data.hold_out out")
    for key in tuned:
        keys, _ = parse_override(f"{key}=0")
        if keys[0] == "loss" and keys[1] not in terms:
            raise UserError(f"--tune {key}: no method has {keys[1]}: {nearest(keys[1], terms)}")
    grids: dict[str, list[Trial]] = {}
    for method in methods:
        own = {key: values for key, values in tuned.items() if _has(method, key)}
        if own:
            pairs = [[f"{key}={json.dumps(value)}" for value in values] for key, values in own.items()]
            grids[method.name] = list(itertools.product(*pairs))
    for method in methods:
        for trial in grids.get(method.name, ()):
            try:
                parse_loss(setting.recipe(method, trial).loss)
            except UserError as error:
                raise UserError(f"--tune {' '.join(trial)}: {error}") from None
    budget = min([*map(len, grids.values()), *([most] if most else [])], default=0)
    return {name: _first(grid, budget, name) for name, grid in grids.items()}


def _has(method: Method, key: str) -> bool:
    keys, _ = parse_override(f"{key}=0")
    return keys[0] != "loss" or keys[1] in method.loss


def _first(grid: list[Trial], budget: int, name: str) -> list[Trial]:
    if budget >= len(grid):
        return grid
    key = hashlib.sha256(json.dumps([name, grid]).encode()).digest()
    return random.Random(key).sample(grid, budget)


def best_trial(found: Mapping[Trial, Mapping[str, float]]) -> Trial:
    """The trial of the highest top-1 on what was held out; of equals, the one of the lower loss, then the first.

    Args:
        found: trial -> its ``top1`` and ``loss``.
    """
    return max(found, key=lambda trial: (found[trial]["top1"], -found[trial]["loss"]))
