"""Stages: settings, what the stream fills in, chains and where their parts run."""

from __future__ import annotations

import multiprocessing
import pickle
from operator import attrgetter

import pytest
import webdataset

from kdstream.errors import UserError
from kdstream.hashing import digest
from kdstream.stream.augment import augment
from kdstream.stream.coded import coded
from kdstream.stream.decode import decode
from kdstream.stream.normalize import normalize
from kdstream.stream.stage import Chain, batch_stage, given, stage


@stage
def add(samples, amount=1):
    """Adds."""
    for sample in samples:
        yield sample + amount


@batch_stage
def scale(batches, factor=given, by=given("other")):
    for batch in batches:
        yield batch * factor + by


@stage(random=True)
def shaken(samples, width=1):
    yield from samples


@batch_stage(random=True)
def mixed(batches, width=given):
    yield from batches


def test_a_stage_runs_and_takes_settings():
    assert list(add(iter([1, 2]))) == [2, 3]
    assert list(add(amount=5)(iter([1]))) == [6]
    assert list(add(7)(iter([1]))) == [8]
    assert list((add | add(10))(iter([0]))) == [11]
    assert add.__doc__ == "Adds."
    with pytest.raises(UserError, match="its settings: amount"):
        add(amuont=3)


def test_plain_callables_and_webdataset_filters_are_stages():
    chain = add | (lambda samples: (s * 2 for s in samples)) | webdataset.filters.map(lambda s: s + 1)
    assert list(chain(iter([1, 2]))) == [5, 7]
    with pytest.raises(UserError, match="is not a stage"):
        add | 3


def test_given_parameters_come_from_the_stream():
    assert list(scale.bind({"factor": 3, "other": 1})(iter([2]))) == [7]
    assert list(scale(factor=2).bind({"factor": 3, "other": 0})(iter([2]))) == [4]
    with pytest.raises(UserError, match=r"scale needs 'by'.*scale\(by=...\) or give the stream other"):
        scale.bind({"factor": 3})


def test_split_puts_samples_before_batches():
    host, device = (Chain() | decode | augment("cifar") | normalize).split()
    assert [s.name for s in host.stages] == ["decode"]
    assert [s.name for s in device.stages] == ["crop_flip", "normalize"]
    with pytest.raises(UserError, match="put add before normalize"):
        (Chain() | decode | normalize | add).split()


def test_coded_runs_on_samples_where_a_later_stage_needs_it_there():
    host, device = (Chain() | decode | coded() | augment("inception", 32)).split()
    assert [s.scope for s in host.stages] == ["sample"] * 3
    assert len(device.stages) == 2
    host, device = (Chain() | decode | augment("inception", 32) | coded()).split()
    assert [s.name for s in device.stages] == ["random_flip", "coded"]


def test_stages_can_be_pickled_for_spawned_readers():
    copy = pickle.loads(pickle.dumps(add(amount=3)))
    assert list(copy(iter([1]))) == [4]
    host = (Chain() | decode | coded() | augment("inception", 8)).split()[0]
    assert [s.name for s in pickle.loads(pickle.dumps(host)).stages] == [s.name for s in host.stages]
    stages = [add, shaken(width=2), *host.stages, coded(), normalize]
    told = attrgetter("name", "role", "random", "sample_form", "settings")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(told, stages) == list(map(told, stages))


def test_what_a_stage_is_declared_as_stays_with_it():
    assert [(s.role, s.random) for s in (add, shaken, mixed, decode)] == [(None, r) for r in (False, True, True, False)]
    for made in (shaken(width=3), shaken(3), shaken.bind({}), mixed.bind({"width": 2}), stage()(add.function)(5)):
        assert made.random == (made.name != "add")
        assert made.role is None
    assert (shaken.scope, mixed.scope) == ("sample", "batch")
    assert list((shaken | add)(iter([1]))) == [2]
    chain = augment("inception", 8, jitter=[0.1] * 4) | augment("cifar") | augment("eval", 8) | coded() | normalize
    assert chain.roles == ["box", None, None, None, "box", "coded", "normalize"]
    assert [s.random for s in chain.stages] == [True] * 4 + [False] * 3
    assert chain.bind({"mean": [0.5] * 3, "std": [0.5] * 3}).roles == chain.roles
    with pytest.raises(UserError, match=r"True is no function .*@stage\(random=True\)"):
        stage(True)


def test_settings_by_name_by_position_and_by_default():
    assert [made.setting("amount") for made in (add(7), add(amount=8), add)] == [7, 8, 1]


def test_what_is_declared_random_has_another_name():
    assert digest(stage(random=True)(add.function)) != digest(add) == digest(stage(add.function))


@pytest.mark.parametrize(("found", "said"), [(None, "nothing"), (3, "a int")])
def test_a_function_that_yields_nothing_is_told_so(found, said):
    for decorate in (stage, batch_stage):
        silent = decorate(lambda samples: found)
        with pytest.raises(UserError, match=rf"^stage <lambda> returns {said}, and no iterator: .* yields"):
            list((silent | add)(iter([1])))
