"""Names of what decides a result: one for one meaning, in every process; another for every other."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import webdataset

import kdstream as kd
from kdstream.hashing import Unnamed, digest, is_own, name_of, network_name, weights_hash
from kdstream.models import build
from kdstream.stream.language import Call

FACTOR = 1
TABLE = {"names": {"x", "yy", "zzz"}, "numbers": np.arange(3)}


def helper(value):
    """Doubles."""
    return 2 * value


def rule(logits, label):
    """A selector that uses what stands around it."""
    return torch.full_like(label, helper(FACTOR) + len(TABLE["names"]))


def at(which):
    def chosen(logits, label):
        return torch.full_like(label, which)

    return chosen


class Selector:
    def __init__(self, which):
        self.which = which

    def __call__(self, logits, label):
        return torch.full_like(label, self.which)


@kd.stage
def shrink(samples, side=16, *rest, how=None, **more):
    yield from samples


def different():
    """Things of which no two mean the same."""
    first, second = (lambda logits, label: 1), (lambda logits, label: 5)
    plain = [None, 1, 1.0, True, "1", b"1", [1], (1,), {"a": 1}, {"a": 2}, {"b": 1}, {"1"}, [[1]], [1, 1]]
    arrays = [torch.ones(2), torch.ones(3), torch.zeros(2), torch.ones(2).double(), torch.ones(2, 1), np.ones(2)]
    arrays += [np.ones(2, np.float32), np.array(["a"], dtype=object), torch.ones(2, dtype=torch.bfloat16)]
    calls = [Call("f", (1,)), Call("f", (2,)), Call("g", (1,)), Call("f", (), {"a": 1})]
    stages = [shrink, shrink(4), shrink(8), shrink(4, 1), shrink(how={"by": 1.0}), shrink(how={"by": 0.2})]
    stages += [
        shrink(x=1),
        shrink(how=torch.ones(1)),
        shrink(how=at(1)),
        shrink(how=at(2)),
        shrink | kd.decode(),
        kd.decode(),
    ]
    selectors = [
        rule,
        helper,
        at,
        at(1),
        at(5),
        Selector(1),
        Selector(2),
        Selector(1).__call__,
        Selector,
        first,
        second,
    ]
    selectors += [
        functools.partial(rule, 1),
        functools.partial(rule, 2),
        torch.relu,
        kd.hkl,
        kd.fixed(1),
        kd.fixed(2),
    ]
    filters = [webdataset.filters.map(first), webdataset.filters.map(second), webdataset.filters.select(first)]
    return [*plain, *arrays, *calls, *stages, *selectors, *filters]


def test_what_differs_has_another_name():
    names = [digest(thing) for thing in different()]
    assert len(set(names)) == len(names)


def test_one_meaning_has_one_name():
    assert digest(shrink(4)) == digest(shrink(side=4))
    assert digest(shrink()) == digest(shrink(16)) == digest(shrink(how=None))
    assert digest(shrink(a=1, b=2)) == digest(shrink(b=2, a=1))
    assert str(shrink(4)) == str(shrink(side=4))
    assert digest(at(5)) == digest(at(5))
    assert digest(Selector(1)) == digest(Selector(1))
    assert digest({1, "a", None}) == digest({None, "a", 1})
    assert digest(torch.compile(rule)) == digest(torch.compile(rule))


def test_the_name_is_the_same_in_every_process():
    program = "import test_hashing as t; print([t.digest(thing) for thing in t.different()])"
    paths = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, check=True, timeout=300, capture_output=True, text=True
    )
    assert done.stdout == f"{[digest(thing) for thing in different()]}\n"


def test_running_does_not_change_a_name_but_what_it_uses_does(monkeypatch):
    before = digest(rule)
    for _ in range(2000):  # the interpreter rewrites code that runs often
        helper(1)
    rule(torch.ones(1, 2), torch.ones(1))
    assert digest(rule) == before
    module = sys.modules[__name__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "FACTOR", 2)
        assert digest(rule) != before
    with monkeypatch.context() as patch:
        patch.setattr(helper, "__code__", (lambda value: 3 * value).__code__)
        assert digest(rule) != before
    with monkeypatch.context() as patch:
        patch.setitem(TABLE, "numbers", np.arange(4))
        assert digest(rule) != before
    assert digest(rule) == before


def test_comments_and_documentation_do_not_count_and_code_does():
    def made(text, name):
        space = {"__name__": "elsewhere"}
        exec(text, space)
        return digest(space[name])

    function = made("def f(x):\n    return x + 1", "f")
    assert made("# note\ndef f(x):\n    'doc'\n\n    return x + 1  # more", "f") == function
    assert made("def f(x):\n    return x + 2", "f") != function
    assert made("def f(x):\n    return x - 1", "f") != function
    cls = made("class C:\n    def __call__(self, x):\n        return x", "C")
    assert made("class C:\n    'doc'\n    def __call__(self, x):\n        return x", "C") == cls
    assert made("class C:\n    def __call__(self, x):\n        return -x", "C") != cls
    assert made("class C:\n    k = 1\n    def __call__(self, x):\n        return x", "C") != cls


def test_modules_that_a_function_uses_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "used_by_me.py").write_text("K = 1\ndef f(x):\n    return x\ndef unused(x):\n    return x\n")
    (tmp_path / "mine_too.py").write_text(
        "import used_by_me\n"
        "def outside(x):\n    return used_by_me.f(x)\n"
        "def inside(x):\n    from used_by_me import K as k\n    return x + k\n"
    )
    import mine_too
    import used_by_me

    assert is_own(mine_too.outside)
    assert not is_own(kd.hkl)
    assert not is_own(torch.relu)
    outside, inside = digest(mine_too.outside), digest(mine_too.inside)
    used_by_me.unused = None
    assert digest(mine_too.outside) == outside
    used_by_me.f = helper
    assert digest(mine_too.outside) != outside
    assert digest(mine_too.inside) == inside
    used_by_me.K = 2
    assert digest(mine_too.inside) != inside
    for name in ("mine_too", "used_by_me"):
        del sys.modules[name]


def test_what_has_no_name_is_refused_with_its_place(tmp_path):
    with (tmp_path / "f").open("w") as file:
        for thing, place in [
            (at(file), r"variable which of .*at\.<locals>\.chosen is a TextIOWrapper"),
            (Selector(file), "item 'which' of the state of .*Selector is a TextIOWrapper"),
            (shrink(how={"a": [file]}), "item 'a' of item 'how' is a TextIOWrapper"),
            ((number for number in ()), "it is a generator"),
            (torch.ones(2).to_sparse(), "it is a Tensor"),
        ]:
            with pytest.raises(Unnamed, match=place):
                digest(thing)
            assert digest(thing, strict=False) == digest(thing, strict=False)


def test_an_object_may_say_what_it_is_named_by():
    class Open:
        def __init__(self, path):
            self.path, self.numbers = path, (number for number in ())

        def named_by(self):
            return self.path

    assert digest(Open("a")) == digest(Open("a")) != digest(Open("b"))
    assert name_of(Open("a")).startswith("test_hashing:test_an_object")


def test_a_network_is_its_weights_and_what_they_do_not_say():
    network = build("resnet8", 10)
    assert network_name(network) == weights_hash(network)  # as plans and runs have had it
    own, other = torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Sequential(torch.nn.Linear(2, 2))
    other.load_state_dict(own.state_dict())
    assert network_name(own) == network_name(other)
    strided, plain = torch.nn.Conv2d(1, 1, 1, stride=2), torch.nn.Conv2d(1, 1, 1)
    plain.load_state_dict(strided.state_dict())
    assert weights_hash(strided) == weights_hash(plain)
    assert network_name(strided) != network_name(plain)
