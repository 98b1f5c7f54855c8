"""ab, ft and fsp: their phases, the forms of paper and public code, connectors, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import batch, maps, outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Phase, Task, Term, WeightedTerm
from kdstream.objectives.ab import ActivationBoundary, boundary_distance
from kdstream.objectives.ce import CrossEntropy
from kdstream.objectives.fsp import FlowOfSolution
from kdstream.objectives.ft import FactorTransfer
from kdstream.training.distiller import Distiller

GOLDEN = Path(__file__).parent.parent / "golden"
seeds = st.integers(0, 2**31 - 1)


def task(student: Outputs, teacher: Outputs | None) -> Task:
    return Task(10, 100, 1, student, teacher)


class Student(nn.Module):
    """Three convolutions and a classifier, with the taps that the three terms read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block1 = nn.Conv2d(4, 6, 3, padding=1)
        self.block2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> Outputs:
        stem = self.stem(image)
        block1 = self.block1(stem.relu())
        block2 = self.block2(block1.relu())
        features = {"stem": stem, "block1": block1, "block2": block2, "block1.pre": block1, "block2.pre": block2}
        return Outputs(self.fc(block2.relu().mean(dim=(2, 3))), features)


TEACHER = {
    "stem": (4, 8, 8),
    "block1": (6, 8, 8),
    "block2": (8, 4, 4),
    "block1.pre": (6, 8, 8),
    "block2.pre": (8, 4, 4),
}
TERMS = {
    "ab": {"taps": ["block1.pre", "block2.pre"]},
    "fsp": {"taps": ["stem", "block1", "block2"], "weights": [1, 1]},
    "ft": {"tap": "block2"},
}


def distiller(name: str) -> tuple[Distiller, Batch]:
    torch.manual_seed(0)
    student, term, given_ = Student(), OBJECTIVES.find(name)(**TERMS[name]), batch(image=maps(4, 3, 8, 8))
    given_.teacher = outputs(5, **TEACHER)
    term.setup(task(student(given_.image).detach(), given_.teacher))
    weighted = [WeightedTerm("ce", 1.0, CrossEntropy()), WeightedTerm(name, 2.0, term)]
    return Distiller(student, weighted), given_


# --------------------------------------------------------------------------------------------------------- phases


@pytest.mark.parametrize(
    ("name", "phase", "in_main"),
    [
        ("ab", Phase("ab.boundary", 30, 0.05, (), 0.1, "forward", "student"), False),
        ("fsp", Phase("fsp.flow", 100, 0.001, (60, 80), 0.1, "forward", "student"), False),
        ("ft", Phase("ft.paraphraser", 30, 0.01, (), 0.1, "reconstruction", "term"), True),
    ],
)
def test_the_phase_has_the_published_schedule_and_takes_another(name, phase, in_main):
    term = OBJECTIVES.find(name)()
    assert (tuple(term.phases()), term.in_main) == ((phase,), in_main)
    (other,) = OBJECTIVES.find(name)(epochs=3, lr=0.5, milestones=[1, 2], gamma=0.2).phases()
    assert other == Phase(phase.name, 3, 0.5, (1, 2), 0.2, phase.loss, phase.trains)


@pytest.mark.parametrize(
    ("name", "first", "main"),
    [
        ("ab", {"student.stem", "student.block1", "student.block2"}, {"student"}),
        ("fsp", {"student.stem", "student.block1", "student.block2"}, {"student"}),
        ("ft", {"terms.1.paraphraser"}, {"student", "terms.1.translator"}),
    ],
)
def test_each_stage_trains_what_it_should(name, first, main):
    whole, given_ = distiller(name)
    for stage, wanted in zip(whole.stages(), (first, main), strict=True):
        optimizer = torch.optim.SGD(whole.begin(stage, given_), 0.1, momentum=0.9, weight_decay=0.1)
        before = {parameter_name: value.detach().clone() for parameter_name, value in whole.named_parameters()}
        whole(given_)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        for parameter_name, parameter in whole.named_parameters():
            moved = not parameter.equal(before[parameter_name])
            assert moved == parameter_name.startswith(tuple(wanted)), (stage.name, parameter_name)


@pytest.mark.parametrize("name", TERMS)
def test_training_through_the_phase_lowers_its_loss(name):
    whole, given_ = distiller(name)
    stage = whole.stages()[0]
    optimizer = torch.optim.Adam(whole.begin(stage, given_), lr=0.01)
    losses = []
    for _ in range(60):
        loss, _, _ = whole(given_)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"lr": 0}, "lr must be a finite number > 0, got 0"),
        ({"milestones": 3}, "milestones must be a list, got 3"),
        ({"milestones": [2, 1]}, "milestones must increase, got [2, 1]"),
        ({"milestones": [0]}, "milestones must be a whole number >= 1, got 0"),
        ({"gamma": 0}, "gamma must be a finite number > 0, got 0"),
    ],
)
def test_refuses_a_schedule(name, settings_, message):
    with pytest.raises(UserError) as caught:
        OBJECTIVES.find(name)(**settings_)
    assert str(caught.value) == f"{name}: {message}"


@pytest.mark.parametrize("name", TERMS)
def test_refuses_a_job_without_teacher_and_taps_that_are_no_maps(name):
    term: Term = OBJECTIVES.find(name)(**TERMS[name])
    student = Student()(maps(2, 3, 8, 8)).detach()
    with pytest.raises(UserError, match=f"{name}: needs a teacher, but the job has none"):
        term.setup(task(student, None))
    with pytest.raises(
        UserError, match=rf"{name}: tap .* of the teacher has shape \[2, 7\], not that of a feature map"
    ):
        term.setup(task(student, Outputs(maps(2, 10), dict.fromkeys(TEACHER, maps(2, 7)))))


# ------------------------------------------------------------------------------------------------------------- ab


@given(seeds, st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_ab_is_zero_beyond_the_margin_and_sees_only_the_teachers_signs(seed, margin):
    student, teacher = maps(3, 4, 2, 2, seed=seed), maps(3, 4, 2, 2, seed=seed + 1)
    value = boundary_distance(student, teacher, margin)
    torch.testing.assert_close(boundary_distance(student, 7 * teacher, margin), value)
    beyond = torch.where(teacher > 0, margin, -margin) * 1.01
    assert boundary_distance(beyond, teacher, margin).item() == 0
    assert boundary_distance(torch.zeros(3, 4, 2, 2), teacher, margin).item() == pytest.approx(16 * margin**2, rel=1e-5)


def test_ab_counts_a_teacher_at_zero_as_inactive():
    student = torch.tensor([-2.0, -0.5, 0.5]).reshape(1, 3, 1, 1)
    assert boundary_distance(student, torch.zeros(1, 3, 1, 1), 1.0).item() == pytest.approx(0.5**2 + 1.5**2)


def test_ab_doubles_its_weights_and_connects_only_where_shapes_differ():
    term = ActivationBoundary()
    assert (term.scale, term.margin) == (0.003, 1.0)
    shapes = {"block1.pre": (4, 8, 8), "block2.pre": (4, 8, 8), "block3.pre": (4, 8, 8)}
    teacher = {"block1.pre": (4, 8, 8), "block2.pre": (5, 8, 8), "block3.pre": (4, 4, 4)}
    student, target = outputs(**shapes), outputs(1, **teacher)
    term.setup(task(student, target))
    assert list(term.weights) == [0.25, 0.5, 1.0]
    assert set(term.connector) == {"block2", "block3"}
    parts = [term.boundary(tap, student.features[tap], target.features[tap]) for tap in term.student_taps]
    expected = 0.003 * (parts[0] / 4 + parts[1] / 2 + parts[2])
    torch.testing.assert_close(term(student, target, batch()), expected)


def test_ab_leaves_out_taps_of_weight_zero():
    student, teacher = outputs(a=(3, 4, 4), b=(3, 4, 4)), outputs(1, a=(5, 4, 4), b=(5, 4, 4))
    term = ActivationBoundary(taps=["a", "b"], weights=[0, 2])
    term.setup(task(student, teacher))
    names = {name for name, parameter in term.named_parameters() if parameter.requires_grad}
    assert names == {f"connector.b.{name}" for name in ("conv.weight", "conv.bias", "bn.weight", "bn.bias")}
    term(student, teacher, batch()).backward()
    assert all((parameter.grad is not None) == (".b." in name) for name, parameter in term.named_parameters())


def test_ab_refuses_sizes_that_no_connector_joins():
    with pytest.raises(UserError) as caught:
        ActivationBoundary(taps="block1.pre").setup(
            task(outputs(**{"block1.pre": (3, 4, 4)}), outputs(**{"block1.pre": (3, 6, 6)}))
        )
    assert "'block1.pre' [3, 4, 4] cannot be brought to the teacher's [3, 6, 6] ([C,H,W])" in str(caught.value)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"margin": 0}, "ab: margin must be a finite number > 0, got 0"),
        ({"scale": -1}, "ab: scale must be a finite number > 0, got -1"),
        ({"taps": ["a", "b"], "weights": [1]}, "ab: weights must be one a tap, got 1 for 2 taps"),
        ({"weights": [0, 0, 0]}, "ab: weights are all 0"),
        ({"taps": ["block1", "block1.pre"]}, "ab: taps holds one block twice: block1, block1.pre"),
    ],
)
def test_ab_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        ActivationBoundary(**settings_)
    assert str(caught.value).startswith(message)


# ------------------------------------------------------------------------------------------------------------- ft


@pytest.mark.parametrize("form", ["repdistiller", "paper"])
def test_ft_forms_differ_in_batch_norm_and_rounding(form):
    term = FactorTransfer(form=form, k=0.55, tap="block2")
    term.setup(task(outputs(block2=(3, 4, 4)), outputs(block2=(5, 4, 4))))
    public = form == "repdistiller"
    factor = 2 if public else 3
    assert term.paraphraser.encoder.conv3.out_channels == term.translator.conv3.out_channels == factor
    assert any(isinstance(module, nn.BatchNorm2d) for module in term.translator.modules()) == public
    assert not any(isinstance(module, nn.BatchNorm2d) for module in term.paraphraser.modules())
    assert not any("bn" in name for name, _ in term.paraphraser.named_parameters())


@given(seeds, st.sampled_from(["repdistiller", "paper"]), st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_ft_normalised_factors_have_unit_length_and_no_scale(seed, form, scale):
    term, factor = FactorTransfer(form=form), maps(3, 4, 3, 3, seed=seed)
    found = term.normalised(factor)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(term.normalised(scale * factor), found, rtol=1e-4, atol=1e-6)
    assert found.shape == (3, 9 if form == "repdistiller" else 36)


@pytest.mark.parametrize("form", ["repdistiller", "paper"])
@pytest.mark.parametrize(("ours", "theirs"), [(8, 4), (4, 8), (4, 4)])
def test_ft_pools_the_larger_factor_and_survives_half_precision(form, ours, theirs):
    student, teacher = outputs(block3=(6, ours, ours)), outputs(1, block3=(10, theirs, theirs))
    torch.manual_seed(0)
    term = FactorTransfer(form=form)
    term.setup(task(student, teacher))
    factors = term.translator(student.features["block3"]), term.paraphraser.encoder(teacher.features["block3"])
    pooled = [term.normalised(nn.functional.adaptive_avg_pool2d(factor, 4)) for factor in factors]
    value = term(student, teacher, batch())
    torch.testing.assert_close(value, (pooled[0] - pooled[1]).abs().mean())
    half = term(student.map(torch.Tensor.half), teacher.map(torch.Tensor.half), batch())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(value.item(), rel=1e-2)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"k": 0}, "ft: k must be a finite number > 0, got 0"),
        ({"p1": 0}, "ft: p1 must be a whole number >= 1, got 0"),
        ({"p2": 0.5}, "ft: p2 must be a whole number >= 1, got 0.5"),
        ({"form": "x"}, "ft: form must be repdistiller or paper, got 'x'"),
        ({"leaky_slope": -1}, "ft: leaky_slope must be a finite number >= 0, got -1"),
        ({"tap": ""}, "ft: tap must be the name of one tap such as block3, got ''"),
    ],
)
def test_ft_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        FactorTransfer(**settings_)
    assert str(caught.value).startswith(message)


def test_ft_refuses_a_factor_without_channels():
    with pytest.raises(
        UserError, match=r"ft: k 0\.1 leaves no channel of the teacher's 'block3', which has 5: raise k"
    ):
        FactorTransfer(k=0.1).setup(task(outputs(block3=(5, 4, 4)), outputs(block3=(5, 4, 4))))


# ------------------------------------------------------------------------------------------------------------ fsp

FSP = {"stem": (4, 8, 8), "block1": (6, 8, 8), "block2": (8, 4, 4)}


def test_fsp_flow_is_the_mean_product_over_positions():
    term, student = FlowOfSolution(taps=list(FSP), weights=[1, 1]), outputs(**FSP)
    first, second = term.flows(tuple(FSP), student.features)
    stem, block1, block2 = (student.features[tap] for tap in FSP)
    torch.testing.assert_close(first, torch.einsum("nahw,nbhw->nab", block1, stem) / 64)
    pooled = nn.functional.avg_pool2d(block1, 2)
    torch.testing.assert_close(second, torch.einsum("nahw,nbhw->nab", block2, pooled) / 16)


@pytest.mark.parametrize("form", ["repdistiller", "paper"])
def test_fsp_is_zero_for_equal_maps_weights_its_parts_and_takes_other_sizes(form):
    term = FlowOfSolution(taps=list(FSP), weights=[2, 0.5], form=form)
    student = outputs(**FSP)
    teacher = outputs(1, stem=(4, 16, 16), block1=(6, 4, 4), block2=(8, 2, 2))
    term.setup(task(student, teacher))
    assert term(student, student, batch()).item() == 0
    parts = term.parts(student, teacher)
    torch.testing.assert_close(term(student, teacher, batch()), 2 * parts[0] + 0.5 * parts[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(term(student, teacher, batch()), 2 * parts[0] + 0.5 * parts[1])
    half = term(student.map(torch.Tensor.half), teacher.map(torch.Tensor.half), batch())
    assert half.dtype == torch.float32


def test_fsp_says_why_unequal_channels_have_no_result():
    with pytest.raises(UserError) as caught:
        FlowOfSolution(taps=list(FSP), weights=[1, 1]).setup(
            task(outputs(**FSP), outputs(**{**FSP, "block1": (12, 8, 8)}))
        )
    message = str(caught.value)
    assert message.startswith("fsp: the student's 'block1' [6, 8, 8] and the teacher's 'block1' [12, 8, 8] ([C,H,W])")
    assert "the paper has no result for such pairs" in message


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"taps": "block1"}, "fsp: a flow matrix needs two taps, got block1 alone"),
        (
            {"taps": ["a", "b"], "weights": [1, 3]},
            "fsp: weights must be one a pair of consecutive taps, got 2 for 1 pairs",
        ),
        ({"weights": [0, 0, 0]}, "fsp: weights are all 0"),
        ({"weights": [1, -3, 1]}, "fsp: weights must be a finite number >= 0, got -3"),
        ({"form": "x"}, "fsp: form must be repdistiller or paper, got 'x'"),
    ],
)
def test_fsp_refuses(settings_, message):
    with pytest.raises(UserError) as caught:
        FlowOfSolution(**settings_)
    assert str(caught.value).startswith(message)


# ------------------------------------------------------------------------------------- the papers' forms, measured


@pytest.mark.parametrize(("name", "case"), [("fsp", "00"), ("fsp", "01"), ("ft", "00")])
def test_the_form_of_the_paper_has_its_measured_value(name, case):
    with np.load(GOLDEN / name / f"{case}.npz", allow_pickle=False) as stored:
        meta = json.loads(str(stored["meta"]))
        arrays = {
            key: torch.from_numpy(stored[key]).double() for key in stored.files if key.startswith(("in/", "param/"))
        }
    sides = []
    for role in ("student", "teacher"):
        prefix = f"in/{role}.features."
        features = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        sides.append(Outputs(torch.zeros(1, 10), features))
    wanted = next(value for form, value in meta["alternatives"].items() if form.startswith("paper form"))
    if name == "fsp":
        found = FlowOfSolution(meta["hyper"]["taps"], weights=meta["hyper"]["W"], form="paper")(*sides, batch())
    else:
        # The measured value is of the paper's normalisation on the public code's factors.
        term = FactorTransfer()
        term.setup(task(*(side.map(torch.Tensor.float) for side in sides)))
        term.double().load_state_dict(
            {key.removeprefix("param/"): value for key, value in arrays.items() if key.startswith("param/")},
            strict=False,
        )
        term.form = "paper"
        found = term(*sides, batch())
    assert found.item() == pytest.approx(wanted, rel=1e-10)
