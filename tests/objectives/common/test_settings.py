"""Settings declared by annotations: what each kind takes, the line that a wrong one gets, and what is left alone."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction as Ratio
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pytest
from pydantic import Field

from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Term, parse_loss
from kdstream.objectives.common import settings
from kdstream.objectives.common.settings import (
    Blocks,
    Count,
    Counts,
    Fraction,
    Kernels,
    Milestones,
    NotNegative,
    OneTap,
    Positive,
    PositiveFraction,
    Probability,
    Switch,
    Tap,
    Taps,
    Weights,
    Whole,
    checked,
    real,
    whole,
)
from kdstream.objectives.kd import KnowledgeDistillation

if TYPE_CHECKING:
    from nowhere import ForTypeCheckers


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        (Positive, 2, 2.0),
        (Positive, np.float32(0.5), 0.5),
        (Positive, Ratio(1, 4), 0.25),
        (NotNegative, 0, 0.0),
        (Fraction, 1, 1.0),
        (PositiveFraction, 1, 1.0),
        (Probability, 0, 0.0),
        (Count, 3.0, 3),
        (Count, np.int64(3), 3),
        (Whole, 0, 0),
        (Annotated[int, whole(2)], 2, 2),
        (Positive | None, None, None),
        (Positive | None, 2, 2.0),
        (Switch, False, False),
        (Literal["a", "b"], "b", "b"),
        (Kernels, "1x1-3x3-1x1", "1x1-3x3-1x1"),
        (Weights, [1, 0], (1.0, 0.0)),
        (Counts, (4, 2.0), (4, 2)),
        (Milestones, [], ()),
        (Milestones, [60, 80.0], (60, 80)),
        (Tap, "map", "map"),
        (OneTap, "map", "map"),
        (OneTap, ["map"], "map"),
        (Taps, "block1", ("block1",)),
        (Taps, ["block1", "block1.pre"], ("block1", "block1.pre")),
        (Blocks, ["block1", "block2.pre"], ("block1", "block2.pre")),
    ],
)
def test_what_is_right_comes_as_its_type(kind, given, wanted):
    found = checked("kd", "t", given, kind)
    assert found == wanted
    assert type(found) is type(wanted)
    if isinstance(wanted, tuple):
        assert [type(value) for value in found] == [type(value) for value in wanted]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Positive, "x", "t must be a finite number > 0, got 'x'"),
        (
            Positive,
            "1e-3",
            "t must be a finite number > 0, got the text '1e-3' "
            "(remove the quotes; YAML reads 1e-3 as text, write 0.001)",
        ),
        (Positive, 0, "t must be a finite number > 0, got 0"),
        (Positive, True, "t must be a finite number > 0, got True"),
        (Positive, math.inf, "t must be a finite number > 0, got inf"),
        (Positive, 10**400, "t must be a finite number > 0, got a number of more than 64 bits"),
        (Positive, None, "t must be a finite number > 0, got None"),
        (Positive | None, "2", "t must be a finite number > 0, got the text '2' (remove the quotes; "),
        (NotNegative, math.nan, "t must be a finite number >= 0, got nan"),
        (Fraction, 1.5, "t must be a finite number >= 0 and at most 1, got 1.5"),
        (PositiveFraction, 0, "t must be a finite number > 0 and at most 1, got 0"),
        (Probability, 1, "t must be a finite number >= 0 and below 1, got 1"),
        (Annotated[float, real()], None, "t must be a finite number, got None"),
        (Annotated[float, real(at_least=0.02)], 0.01, "t must be a finite number >= 0.02, got 0.01"),
        (Count, 0, "t must be a whole number >= 1, got 0"),
        (Count, 1.5, "t must be a whole number >= 1, got 1.5"),
        (Count, True, "t must be a whole number >= 1, got True"),
        (Count, 10**400, "t must be a whole number >= 1, got a number of more than 64 bits"),
        (Annotated[int, whole(1, at_most=2)], 3, "t must be a whole number from 1 to 2, got 3"),
        (Switch, 1, "t must be true or false, got 1"),
        (Literal["a", "b"], "c", "t must be a or b, got 'c'"),
        (Literal["a", "b", "c"], ["a"], "t must be a, b or c, got ['a']"),
        (Literal["a"] | None, 3, "t must be a, got 3"),
        (Kernels, "2x2", "t must be 1x1, 1x1-1x1, 1x1-3x3-1x1 or another odd chain, got '2x2'"),
        (Kernels, None, "t must be 1x1, 1x1-1x1, 1x1-3x3-1x1 or another odd chain, got None"),
        (Weights, 1, "t must be a list, got 1"),
        (Weights, {1, 2}, "t must be a list, got {1, 2}"),
        (Weights, [1, -1], "t must be a finite number >= 0, got -1"),
        (Weights | None, [1, "x"], "t must be a finite number >= 0, got 'x'"),
        (Weights, [0, 0], "t are all 0, which leaves nothing to learn; set one > 0"),
        (Counts, "123", "t must be a list, got the text '123'"),
        (Milestones, [80, 60], "t must increase, got [80, 60]"),
        (Milestones, [60, 60], "t must increase, got [60, 60]"),
        (Tap, ["map"], "t must be the name of one tap such as block3, got ['map']"),
        (OneTap, ["a", "b"], "t must be one tap, got a, b"),
        (Taps, [], "t must be a list of tap names such as [block1, block2], got []"),
        (Taps, ["a", ""], "t must be a list of tap names such as [block1, block2], got ['a', '']"),
        (Taps, ["a", "a"], "t names a tap twice: a, a"),
        (Taps | None, 3, "t must be a list, got 3"),
        (Blocks, ["block1", "block1.pre"], "t holds one block twice: block1, block1.pre; keep one of the two"),
    ],
)
def test_what_is_wrong_gets_one_line(kind, given, message):
    with pytest.raises(UserError) as caught:
        checked("kd", "t", given, kind)
    assert str(caught.value).startswith(f"kd: {message}")


def test_a_term_is_checked_wherever_it_is_made():
    said = set()
    makers = (
        lambda: parse_loss({"kd": {"temperature": "x"}}),
        lambda: KnowledgeDistillation("x"),
        lambda: KnowledgeDistillation(temperature="x"),
    )
    for make in makers:
        with pytest.raises(UserError) as caught:
            make()
        said.add(str(caught.value))
    assert said == {"kd: temperature must be a finite number > 0, got 'x'"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_setting_is_declared_and_its_default_is_of_its_kind(name):
    term = OBJECTIVES.find(name)
    if "__init__" not in vars(term):
        return
    undeclared = {"dml": {"peers"}}.get(name, set())  # a number, a name or a list of several things
    parameters = inspect.signature(term).parameters
    kinds = settings._kinds(inspect.unwrap(term.__init__))
    assert parameters.keys() - kinds.keys() == undeclared
    for setting, kind in kinds.items():
        default = parameters[setting].default
        assert kind.validate_python(default) == default


class Own(Term):
    """A user's term, with settings of every sort."""

    def __init__(
        self, p: Positive, q: float = 1, *, r: Annotated[int, Field(le=3)] = 1, s: ForTypeCheckers = 2, t=None
    ):
        super().__init__()
        self.given = p, q, r, s, t


class Deeper(Own):
    """A subclass with an ``__init__`` of its own."""

    def __init__(self, mode: Literal["a", "b"] = "a", **others: Positive):
        super().__init__(2, "text", **others)
        self.mode = mode


class Same(Own):
    """A subclass without one."""


def test_a_users_own_term_may_declare_settings_or_not():
    assert Own(1, "text", t=[1]).given == (1.0, "text", 1, 2, [1])
    assert Deeper("b", t="x").given[4] == "x"
    assert list(inspect.signature(Own).parameters) == ["p", "q", "r", "s", "t"]
    assert inspect.signature(Same) == inspect.signature(Own)
    with pytest.raises(UserError, match=r"^Own: p must be a finite number > 0, got -1$"):
        Same(-1)
    with pytest.raises(UserError, match=r"^Deeper: mode must be a or b, got 'c'$"):
        Deeper("c")
    with pytest.raises(UserError, match=r"^Own: r: Input should be less than or equal to 3, got 4$"):
        Own(1, r=4)


def test_a_wrong_call_is_pythons_own_error():
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'z'"):
        Own(1, z=3)
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required positional argument: 'p'"):
        Own()
