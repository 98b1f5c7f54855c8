"""Methods by name: the published settings that fit, coded forms, and what is no method."""

from __future__ import annotations

import pytest

from kdstream.errors import UserError
from kdstream.objectives.loss import OBJECTIVES
from kdstream.objectives.presets import presets
from kdstream.training.comparing.methods import LABELS, find_method, find_methods

CIFAR = ("resnet56", "resnet20", False)
BIRDS = ("resnet34", "resnet18", True)


def test_labels_and_kd_are_always_there_and_nothing_twice():
    found = find_methods(["ckd", "kd", "labels", "ttm/kd/cifar100", "at"], *CIFAR)
    assert [method.name for method in found] == [LABELS, "kd", "ckd", "at"]
    assert [method.uses_teacher for method in found] == [False, True, True, True]
    assert [method.coded for method in found] == [False, False, True, False]
    assert found[1].loss == found[2].loss == {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4}}


def test_settings_are_those_of_the_pair_then_of_such_images_then_of_others():
    assert find_method("wttm", *CIFAR).source == "ttm/wttm/cifar100/resnet56-resnet20"
    assert find_method("wttm", *BIRDS).source == "ttm/wttm/imagenet/resnet34-resnet18"
    assert find_method("dist", *CIFAR).source == "dist/dist/cifar100"
    assert find_method("dist", *BIRDS).source == "dist/dist/imagenet"
    other = find_method("wttm", "resnet110", "resnet8", False)
    assert other.source == "ttm/wttm/cifar100/wrn_40_2-wrn_16_2, of other networks"
    # The published 1 of SP is for CIFAR alone; of FSP, a network's own before that of all.
    assert find_method("sp", *BIRDS).source.startswith("ckd/sp/cifar100/")
    assert find_method("fsp", "vgg13", "vgg8", False).source == "repdistiller/fsp/cifar100/vgg8"
    nothing = find_method("renyi", *CIFAR)
    assert nothing.loss == {"ce": {"weight": 1.0}, "renyi": {"weight": 1.0}}
    assert "nothing published" in nothing.source
    assert find_method("confidence_penalty", *CIFAR).loss == {"confidence_penalty": {"weight": 1.0}}


def test_sums_that_were_published_and_presets_by_their_name():
    summed = find_method("dkd+cmkd", *CIFAR)
    assert set(summed.loss) == {"ce", "dkd", "cmkd"}
    full = find_method("coded:ttm/wttm/cifar100/vgg13-vgg8", *CIFAR)
    assert (full.coded, full.loss) == (True, presets()["ttm/wttm/cifar100/vgg13-vgg8"].loss)
    own = find_method("test_methods:Mine", *CIFAR)
    assert set(own.loss) == {"ce", "test_methods:Mine"}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_c_before_an_objective_is_its_coded_form_unless_that_is_an_objective_too(name):
    method = find_method(name, *CIFAR)
    assert not method.coded
    if not method.uses_teacher:
        with pytest.raises(UserError, match="looks at no teacher"):
            find_method(f"coded:{name}", *CIFAR)
        return
    long, short = find_method(f"coded:{name}", *CIFAR), find_method(f"c{name}", *CIFAR)
    assert (long.name, long.loss, long.coded) == (f"c{name}", method.loss, True)
    assert short == (find_method(f"c{name}", *CIFAR) if f"c{name}" in OBJECTIVES else long)


@pytest.mark.parametrize(
    ("name", "says"), [("ckdd", "did you mean 'ckd'"), ("dits", "did you mean 'dist'"), ("", "no method ''")]
)
def test_what_is_no_method(name, says):
    with pytest.raises(UserError, match=says):
        find_method(name, *CIFAR)
