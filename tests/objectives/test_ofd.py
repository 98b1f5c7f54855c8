"""ofd: margins and partial L2 against their definitions, the BatchNorm before a tap, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from builders import batch, maps, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.models import MODELS, build
from kdstream.models.taps import Tapped
from kdstream.objectives.ofd import OverhaulOfFeatureDistillation as OFD
from kdstream.objectives.ofd import margin, norm_before, partial_l2
from kdstream.objectives.term import Task

TAPS = ("block1.pre", "block2.pre", "block3.pre")


def norm_of(weight: list[float], bias: list[float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(weight)).double()
    norm.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)}, strict=False)
    return norm


def pair(student: str = "resnet8", teacher: str = "resnet8x4", taps=TAPS) -> tuple[Task, Tapped, Tapped]:
    torch.manual_seed(0)
    ours, theirs = Tapped(build(student, 10), taps), Tapped(build(teacher, 10), taps).eval()
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 1)
        images = maps(2, 3, 16, 16)
        return Task(10, 100, 1, ours(images), theirs(images), ours, theirs), ours, theirs


# ---------------------------------------------------------------------------------------------- the margins


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_margin_is_the_mean_of_the_negative_part(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.rand(4, generator=generator) * 2 + 0.1, torch.randn(4, generator=generator)
    norm = norm_of((-weight).tolist(), bias.tolist())  # the weight's sign does not matter
    found = margin(norm, 0.001)
    draws = bias + weight * torch.randn(400_000, 4, generator=generator)
    for c in range(4):
        below = draws[:, c][draws[:, c] < 0]
        if len(below) > 20_000:
            assert found[c].item() == pytest.approx(below.mean().item(), abs=0.02)
        assert found[c] < 0


def test_margin_of_channels_that_are_hardly_ever_negative_or_constant():
    # Phi(-3.09) = 0.00100, Phi(-3.2) = 0.00069
    found = margin(norm_of([1.0, 2.0, 0.0, 0.0, 0.0, 1.0], [3.2, 6.4, -0.5, 0.0, 0.5, -40.0]), 0.001)
    torch.testing.assert_close(found, torch.tensor([-3.0, -6.0, -0.5, 0.0, 0.0, -40.0]).double(), atol=1e-9, rtol=0)
    x = torch.linspace(-9, 0, 100_001, dtype=torch.float64)  # the formula itself, by quadrature
    density = torch.exp(-0.5 * (x - 3.2).square())
    expected = (torch.trapezoid(x * density, x) / torch.trapezoid(density, x)).item()
    assert margin(norm_of([1.0], [3.2]), 0.0).item() == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------------- the partial L2


def by_cases(s: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Section 3.3 case by case, element by element."""
    total = 0.0
    for n in range(s.shape[0]):
        for c in range(s.shape[1]):
            for ours, theirs in zip(s[n, c].flatten().tolist(), t[n, c].flatten().tolist(), strict=True):
                target = theirs if theirs > 0 else max(theirs, m[c].item())
                total += 0.0 if target <= 0 and ours <= target else (ours - target) ** 2
    return total / s.shape[0]


@given(seeds, st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_partial_l2_equals_its_definition(seed, count):
    student, teacher = maps(count, 3, 2, 4, seed=seed).double(), maps(count, 3, 2, 4, seed=seed + 1).double()
    margins = -maps(3, seed=seed + 2).abs().double()
    assert partial_l2(student, teacher, margins).item() == pytest.approx(by_cases(student, teacher, margins))


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_partial_l2_does_not_see_how_negative_a_student_is_where_the_teacher_is(seed):
    student, teacher = maps(2, 3, 4, 4, seed=seed), maps(2, 3, 4, 4, seed=seed + 1)
    margins = torch.tensor([-0.5, -0.1, -1.0])
    target = torch.maximum(teacher, margins.view(-1, 1, 1))
    lower = torch.where(target > 0, target, target - student.abs())
    assert partial_l2(lower, teacher, margins).item() == 0
    assert partial_l2(target + 1, teacher, margins).item() == pytest.approx(3 * 4 * 4)


def test_teacher_maps_of_another_size_are_pooled_and_half_precision_stays_finite():
    student, teacher, margins = maps(2, 3, 4, 2), maps(2, 3, 8, 6, seed=1), -torch.ones(3)
    pooled = nn.functional.adaptive_avg_pool2d(teacher, (4, 2))
    torch.testing.assert_close(partial_l2(student, teacher, margins), partial_l2(student, pooled, margins))
    value = partial_l2(400 * student.half(), 400 * teacher.half(), margins)
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


# ---------------------------------------------------------------------------------- the BatchNorm before a tap


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet8", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),
        ("resnet20", ["layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"]),
        ("wrn_16_1", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("wrn_16_2", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("resnet18", ["layer1.1.bn2", "layer2.1.bn2", "layer3.1.bn2"]),
    ],
)
def test_the_last_norm_of_the_branch_is_found(name, found):
    task, _, theirs = pair("resnet8", name)
    paths = {path for path, module in theirs.module.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert set(found) <= paths
    for tap, path in zip(TAPS, found, strict=True):
        channels = task.teacher_outputs.features[tap].shape[1]
        assert norm_before(theirs.module, theirs.paths[tap], channels) is theirs.module.get_submodule(path)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_of_the_zoo_with_pre_activation_taps_has_norms_before_them(name):
    network = build(name, 10).eval()
    taps = [tap for tap in network.taps if tap.endswith(".pre")]
    if not taps:  # linear bottlenecks: their blocks end in a BatchNorm
        taps = [tap for tap in network.taps if tap.startswith("block")]
    tapped = Tapped(network, taps)
    norms = {}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, args, output: norms.__setitem__(module, output))
    with torch.inference_mode():
        features = tapped(maps(2, 3, 32, 32)).features
    for tap in taps:
        norm = norm_before(network, tapped.paths[tap], features[tap].shape[1])
        if name == "ShuffleV2":  # half of each map passes through no BatchNorm
            assert norm is None
            continue
        assert norm is not None, tap
        assert norms[norm].shape == features[tap].shape, tap


def test_foreign_networks_by_path():
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    )
    assert norm_before(plain, "2:input", 8) is plain[1]
    assert norm_before(plain, "5:input", 4) is plain[4]
    assert norm_before(plain, "4", 4) is plain[4]
    assert norm_before(plain, "5:input", 8) is plain[1]
    assert norm_before(plain, "2:input", 4) is None
    assert norm_before(nn.Sequential(plain, nn.ReLU()), "1:input", 4) is plain[4]
    assert norm_before(nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.ReLU()), "1:input", 8) is None


# ------------------------------------------------------------------------------------------------ the term


def test_margins_are_those_of_the_teacher_and_everything_trained_has_a_gradient():
    task, ours, theirs = pair()
    term = OFD()
    term.setup(task)
    for tap, path in zip(TAPS, ("layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"), strict=True):
        torch.testing.assert_close(term.margins(tap), margin(theirs.module.get_submodule(path), 0.001))
    assert not any("teacher" in name or "layer" in name for name, _ in term.named_parameters())
    for count in (2, 1):
        images = maps(count, 3, 16, 16, seed=1)
        value = term(ours(images), theirs(images).detach(), batch(count))
        value.backward()
        assert torch.isfinite(value)
        assert all(parameter.grad is not None for parameter in term.parameters())


def test_layer_weights_double_and_weight_0_leaves_a_tap_out():
    task, ours, theirs = pair()
    images = maps(3, 3, 16, 16)
    student, teacher = ours(images), theirs(images).detach()
    term = OFD()
    term.setup(task)
    parts = [term.distance(tap, student.features[tap], teacher.features[tap]).item() for tap in TAPS]
    expected = parts[0] / 4 + parts[1] / 2 + parts[2]
    assert term(student, teacher, batch(3)).item() == pytest.approx(expected, rel=1e-5)
    one = OFD(layer_weights=[0, 0, 2])
    one.setup(task)
    one.load_state_dict(term.state_dict())
    assert one(student, teacher, batch(3)).item() == pytest.approx(2 * parts[2], rel=1e-5)
    assert {name.split(".")[1] for name, p in one.named_parameters() if p.requires_grad} == {"block3"}


def test_norms_can_be_named_and_other_taps_paired():
    taps = {"a": "layer1", "b": "layer2"}
    torch.manual_seed(0)
    ours, theirs = Tapped(build("resnet8", 10), taps), Tapped(build("resnet8x4", 10), taps).eval()
    images = maps(2, 3, 16, 16)
    task = Task(10, 100, 1, ours(images).detach(), theirs(images).detach(), ours, theirs)
    term = OFD(taps=["a", "b"], teacher_norms=["layer1.0.bn1", "layer2.0.downsample.1"])
    term.setup(task)
    assert torch.equal(term.margins("b"), margin(theirs.module.layer2[0].downsample[1], 0.001))
    for norms, path in ((["layer1.0.bn1", "layer2"], "'layer2'"), (["nowhere", "layer2.0.bn1"], "'nowhere'")):
        with pytest.raises(UserError, match=f"teacher_norms: the teacher has no BatchNorm2d of .* at {path}"):
            OFD(taps=["a", "b"], teacher_norms=norms).setup(task)


def test_no_norm_before_a_tap_is_said():
    torch.manual_seed(0)
    ours = Tapped(build("resnet8", 10), ["block1.pre"])
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    theirs = Tapped(network, {"block1.pre": "1:input"}).eval()
    images = maps(2, 3, 16, 16)
    task = Task(10, 100, 1, ours(images).detach(), theirs(images).detach(), ours, theirs)
    with pytest.raises(UserError, match=r"ofd: no BatchNorm of 8 channels found before the teacher's tap 'block1.pre'"):
        OFD(taps=["block1.pre"]).setup(task)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"taps": ["block1", "block1.pre"]}, "ofd: taps holds one block twice: block1, block1.pre"),
        ({"taps": ["a", "b"], "teacher_taps": ["a"]}, "ofd: taps and teacher_taps must pair up, got 2 and 1"),
        ({"taps": TAPS, "layer_weights": [1, 2]}, "ofd: layer_weights must be one a tap, got 2 for 3 taps"),
        ({"layer_weights": [0, 0, 0]}, "ofd: layer_weights are all 0"),
        ({"layer_weights": [1, -1, 1]}, "ofd: layer_weights must be a finite number >= 0, got -1"),
        ({"cdf_threshold": 1}, "ofd: cdf_threshold must be a finite number >= 0 and below 1, got 1"),
        ({"cdf_threshold": math.nan}, "ofd: cdf_threshold must be a finite number >= 0 and below 1, got nan"),
        ({"taps": TAPS, "teacher_norms": ["bn1"]}, "ofd: teacher_norms must be one a tap, got 1 for 3 taps"),
    ],
)
def test_bad_settings(settings_, message):
    with pytest.raises(UserError) as caught:
        OFD(**settings_)
    assert str(caught.value).startswith(message)


def test_taps_that_are_no_maps_and_a_missing_teacher_are_refused():
    flat = Outputs(torch.zeros(2, 10), {"penultimate": torch.zeros(2, 64)})
    with pytest.raises(UserError, match=r"tap 'penultimate' of the student has shape \[2, 64\], not that of a feature"):
        OFD(taps="penultimate").setup(Task(10, 100, 1, flat, flat))
    with pytest.raises(UserError, match="ofd: needs a teacher, but the job has none"):
        OFD().setup(Task(10, 100, 1, flat))
