"""Kinds of settings as annotations of a term's ``__init__``, and the one place where what is given is checked by them.

``def __init__(self, temperature: Positive = 4.0)`` is all that a term says of a setting: whoever makes it, a recipe or
Python, gives a finite number > 0 or reads ``kd: temperature must be a finite number > 0, got 'x'``, and ``__init__``
sees a float. Checked are annotations that hold an ``Annotated`` or a ``Literal``, by pydantic; plain types (``float``)
only document. What settings must be together is for ``__init__`` to check.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, PlainValidator, TypeAdapter, ValidationError

from kdstream.errors import UserError
from kdstream.safe_yaml import LARGEST

# ------------------------------------------------------------------------------------------------------------- numbers


def real(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> PlainValidator:
    """Any finite real number within bounds, no bool and no text, as a float."""
    low = f"> {above:g}" if above is not None else f">= {at_least:g}" if at_least is not None else ""
    high = f"below {below:g}" if below is not None else f"at most {at_most:g}" if at_most is not None else ""
    bounds = " and ".join(bound for bound in (low, high) if bound)

    def check(value: Any) -> float:
        if (
            not _is_number(value)
            or (above is not None and value <= above)
            or (at_least is not None and value < at_least)
            or (below is not None and value >= below)
            or (at_most is not None and value > at_most)
        ):
            raise ValueError(f"must be a finite number{' ' * bool(bounds)}{bounds}, got {_shown(value)}")
        return float(value)

    return PlainValidator(check)


def whole(at_least: int, at_most: int | None = None) -> PlainValidator:
    """An int within bounds; a float without fraction (2.0) counts as whole."""
    bounds = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def check(value: Any) -> int:
        is_whole = _is_number(value) and (isinstance(value, Integral) or float(value).is_integer())
        if not is_whole or not at_least <= value < LARGEST or (at_most is not None and value > at_most):
            raise ValueError(f"must be a whole number {bounds}, got {_shown(value)}")
        return int(value)

    return PlainValidator(check)


def _is_number(value: Any) -> bool:
    """Whether it is a finite real number, no bool, and within 64 bits where it is whole."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return abs(int(value)) < LARGEST if isinstance(value, Integral) else math.isfinite(value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return repr(value)
        return f"the text {value!r} (remove the quotes; YAML reads 1e-3 as text, write 0.001)"
    return repr(value) if not isinstance(value, int) or abs(value) < LARGEST else "a number of more than 64 bits"


Positive = Annotated[float, real(above=0)]
NotNegative = Annotated[float, real(at_least=0)]
Fraction = Annotated[float, real(at_least=0, at_most=1)]
PositiveFraction = Annotated[float, real(above=0, at_most=1)]
Probability = Annotated[float, real(at_least=0, below=1)]
"""Of something that is not certain."""
Count = Annotated[int, whole(1)]
Whole = Annotated[int, whole(0)]


# --------------------------------------------------------------------------------------------------- words and switches


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {_shown(value)}")
    return value


def _kernels(value: Any) -> str:
    parts = value.split("-") if isinstance(value, str) else [""]
    if not all(re.fullmatch(r"(\d*[13579])x\1", part) for part in parts):
        raise ValueError(f"must be 1x1, 1x1-1x1, 1x1-3x3-1x1 or another odd chain, got {value!r}")
    return value


Switch = Annotated[bool, PlainValidator(_switch)]
Kernels = Annotated[str, PlainValidator(_kernels)]
"""A chain of square convolutions with odd kernels, "1x1-3x3-1x1"."""


# --------------------------------------------------------------------------------------------------------------- lists


def _list(value: Any) -> tuple[Any, ...]:
    """A tuple of what a real list or tuple holds; text is none."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"must be a list, got {_shown(value)}")
    return tuple(value)


def _not_all_zero(weights: Sequence[float]) -> Sequence[float]:
    if weights and not any(weights):
        raise ValueError("are all 0, which leaves nothing to learn; set one > 0")
    return weights


def _increasing(steps: Sequence[int]) -> Sequence[int]:
    if list(steps) != sorted(set(steps)):
        raise ValueError(f"must increase, got {list(steps)}")
    return steps


Weights = Annotated[Sequence[NotNegative], BeforeValidator(_list), AfterValidator(_not_all_zero)]
Counts = Annotated[Sequence[Count], BeforeValidator(_list)]
Milestones = Annotated[Sequence[Count], BeforeValidator(_list), AfterValidator(_increasing)]
"""Epochs in rising order, possibly none."""


# ---------------------------------------------------------------------------------------------------------------- taps


def module_name(tap: str) -> str:
    """The name under which a tap's connector is kept: ``block2`` for ``block2`` and ``block2.pre``, no other dots."""
    return tap.removesuffix(".pre").replace(".", "_")


def _tap(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be the name of one tap such as block3, got {value!r}")
    return value


def _taps(value: Any) -> tuple[str, ...]:
    taps = (value,) if isinstance(value, str) else _list(value)
    if not taps or not all(isinstance(tap, str) and tap for tap in taps):
        raise ValueError(f"must be a list of tap names such as [block1, block2], got {_shown(value)}")
    if len(set(taps)) < len(taps):
        raise ValueError(f"names a tap twice: {', '.join(taps)}")
    return taps


def _one_tap(value: Any) -> str:
    taps = _taps(value)
    if len(taps) > 1:
        raise ValueError(f"must be one tap, got {', '.join(taps)}")
    return taps[0]


def _blocks(taps: Sequence[str]) -> Sequence[str]:
    if len({module_name(tap) for tap in taps}) < len(taps):
        raise ValueError(f"holds one block twice: {', '.join(taps)}; keep one of the two")
    return taps


Tap = Annotated[str, PlainValidator(_tap)]
OneTap = Annotated[str, PlainValidator(_one_tap)]
"""A tap's name, alone or as a list of one."""
Taps = Annotated[Sequence[str], PlainValidator(_taps)]
"""Names of taps, no name twice; one alone may go without its list."""
Blocks = Annotated[Sequence[str], PlainValidator(_taps), AfterValidator(_blocks)]
"""Taps that have a connector each, by :func:`module_name`: ``block1`` or ``block1.pre``, not both."""


# ------------------------------------------------------------------------------------------------------------ the check


def checked(owner: str, name: str, value: Any, kind: Any) -> Any:
    """``value`` as the kind has it.

    Args:
        owner: whose setting it is, for the message ("kd", "loss.kd").
        name: the setting.
        value: whatever was given.
        kind: an annotation, one of this module's.

    Raises:
        UserError: it is none of the kind.
    """
    return _validated(owner, name, value, _adapter(kind))


def declared(term: type, init: Callable[..., None]) -> Callable[..., None]:
    """A term's ``__init__`` behind the check of its settings; signature and defaults stay to be seen.

    Args:
        term: the class, which gives its name to the messages.
        init: of the class itself. An annotation that does not resolve is left alone, as is a default.
    """
    # An objective of kdstream is called by its file, as in a recipe.
    module = term.__module__
    owner = module.rpartition(".")[2] if module.startswith("kdstream.objectives.") else term.__name__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checking(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError:
            return init(self, *args, **kwargs)  # which says so in Python's own words
        for name, kind in _kinds(init).items():
            if name in given.arguments:
                given.arguments[name] = _validated(owner, name, given.arguments[name], kind)
        return init(*given.args, **given.kwargs)

    return checking


@functools.cache
def _kinds(init: Callable[..., None]) -> Mapping[str, TypeAdapter[Any]]:
    """The parameters whose annotations are to be checked."""
    found: dict[str, TypeAdapter[Any]] = {}
    for name, parameter in inspect.signature(init).parameters.items():
        if parameter.annotation is parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        alone = SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            kind = get_type_hints(alone, getattr(init, "__globals__", {}), include_extras=True)[name]
        except (NameError, AttributeError, TypeError, SyntaxError):  # a name for type checkers only, or local
            continue
        if _says_more(kind):
            found[name] = TypeAdapter(kind)
    return found


def _says_more(annotation: Any) -> bool:
    """Whether it is, or holds, more than a type."""
    return get_origin(annotation) in (Annotated, Literal) or any(map(_says_more, get_args(annotation)))


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def _validated(owner: str, name: str, value: Any, kind: TypeAdapter[Any]) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        failures = error.errors(include_url=False)
    # Where a kind may also be None, pydantic tells of both; what the kind itself says is the better half.
    first = next((failure for failure in failures if failure["type"] in ("value_error", "literal_error")), failures[0])
    if first["type"] == "value_error":
        raise UserError(f"{owner}: {name} {first['ctx']['error']}")
    if first["type"] == "literal_error":
        expected = first["ctx"]["expected"].replace("'", "")
        raise UserError(f"{owner}: {name} must be {expected}, got {_shown(first['input'])}")
    raise UserError(f"{owner}: {name}: {first['msg']}, got {_shown(first['input'])}")
