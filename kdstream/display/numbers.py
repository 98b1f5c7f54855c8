"""How numbers are written for people: in lines of progress, in tables, in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard


def is_top1(name: str) -> bool:
    """Whether a column of this name holds top-1 accuracies."""
    return any(word in name.lower() for word in ("top1", "top-1", "top 1"))


def best_index(values: Sequence[Any]) -> int | None:
    """Where the largest finite number stands; None without one."""
    numbers = {i: value for i, value in enumerate(values) if is_number(value) and math.isfinite(value)}
    return max(numbers, key=numbers.__getitem__) if numbers else None


def format_number(value: float) -> str:
    """One number for reading: 12,345 or 97.2 or 0.00312."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 or size == 0 else f"{value:.3g}"


def format_column(values: Sequence[Any], percent: bool = False) -> list[str]:
    """A table's column: its floats share a number of decimals that fits the largest (percentages: two); None is an
    en dash."""
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v)]
    largest = max(sizes, default=0.0)
    decimals = 2 if percent else 0 if largest >= 1000 else 1 if largest > 100 else 2 if largest >= 1 else 4
    texts = []
    for value in values:
        if value is None:
            texts.append("–")
        elif isinstance(value, float):
            texts.append(f"{value:,.{decimals}f}" if math.isfinite(value) else str(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            texts.append(f"{value:,}")
        else:
            texts.append(str(value))
    return texts


def format_seconds(seconds: float) -> str:
    """A duration: 8.1 s, 42 s, 3:20, 1:02:03, 2 d 03:00."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number, perhaps infinite or NaN, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_loss(value: float) -> str:
    """A loss: 1.234, 1.0e-05."""
    return f"{value:.3f}" if not math.isfinite(value) or value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.1e}"


def format_percent(value: float) -> str:
    """A percentage, 0..100: 91.25%."""
    return f"{value:.2f}%"
