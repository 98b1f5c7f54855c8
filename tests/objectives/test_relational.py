"""What sp, cc, vid, rkd, pkt, nst and kdsvd share: what relational terms do not see, hard inputs, their teacher."""

from __future__ import annotations

import pytest
import torch
from builders import activations, batch, maps, ready, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Task, parse_loss

NAMES = ["cc", "kdsvd", "nst", "pkt", "rkd", "sp", "vid"]


RELATIONS = {"pkt": "penultimate", "rkd": "block3", "sp": "block3"}


def trained(student: Outputs) -> Outputs:
    return student.map(lambda value: value.clone().requires_grad_())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradients_are_finite_for_any_number_of_samples(name, count):
    term, student = ready(name), trained(activations(count, 1))
    value = term(student, activations(count, 9), batch(count))
    assert value.shape == ()
    assert torch.isfinite(value)
    (value + 0 * sum(feature.sum() for feature in student.features.values())).backward()
    assert all(torch.isfinite(student.features[tap].grad).all() for tap in term.student_taps)
    if count >= 2:
        assert all(parameter.grad is not None for parameter in term.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_dead_features_have_a_finite_gradient(name):
    term, student = ready(name), trained(activations(4, 1).map(lambda value: 0 * value))
    value = term(student, activations(4, 9), batch(4))
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(student.features[tap].grad).all() for tap in term.student_taps)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_number_gives_a_loss_that_is_not_finite_and_no_crash(name):
    student = activations(4, 1).map(lambda value: value * torch.nan)
    assert not torch.isfinite(ready(name)(student, activations(4, 9), batch(4)))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_features_are_compared_in_float32(name):
    term, student, teacher = ready(name), activations(4, 1), activations(4, 9)
    value = term(student, teacher, batch(4))
    half = term(student.map(torch.Tensor.half), teacher.map(torch.Tensor.half), batch(4))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(value.item(), rel=2e-2, abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = term(student, teacher, batch(4))
    assert autocast.dtype == torch.float32
    # The helpers of cc and vid may round; terms that only take products of features may not.
    bound = 5e-2 if name in ("cc", "vid") else 1e-6
    assert autocast.item() == pytest.approx(value.item(), rel=bound)


@pytest.mark.parametrize("name", ["nst", "sp", "rkd", "pkt"])
def test_large_half_precision_features_do_not_overflow(name):
    student = activations(4, 1).map(lambda value: (5000 * value).half())
    assert torch.isfinite(ready(name)(student, activations(4, 9), batch(4)))


@given(seeds, st.sampled_from(["kdsvd", "nst", "pkt", "rkd", "sp"]))
@settings(max_examples=25, deadline=None)
def test_value_is_zero_for_equal_features_and_positive_otherwise(seed, name):
    term, student = ready(name), activations(5, seed)
    assert abs(term(student, student, batch(5)).item()) < 1e-6
    assert term(student, activations(5, seed + 9), batch(5)).item() > 1e-8


@given(seeds, st.permutations(range(5)), st.sampled_from(["kdsvd", "nst", "pkt", "rkd", "sp", "vid"]))
@settings(max_examples=25, deadline=None)
def test_order_of_the_samples_does_not_matter(seed, order, name):
    term, student, teacher = ready(name).double(), activations(5, seed), activations(5, seed + 9)
    student, teacher = student.map(torch.Tensor.double), teacher.map(torch.Tensor.double)
    value = term(student, teacher, batch(5)).item()
    moved = term(student.map(lambda v: v[order]), teacher.map(lambda v: v[order]), batch(5)).item()
    assert moved == pytest.approx(value, rel=1e-8)


@given(seeds, st.floats(0.01, 100), st.sampled_from(["kdsvd", "nst", "pkt", "rkd", "sp"]))
@settings(max_examples=25, deadline=None)
def test_scale_of_the_features_does_not_matter(seed, scale, name):
    term, student, teacher = ready(name), activations(5, seed), activations(5, seed + 9)
    student, teacher = student.map(torch.Tensor.double), teacher.map(torch.Tensor.double)
    value = term(student, teacher, batch(5)).item()
    assert term(student.map(lambda v: scale * v), teacher, batch(5)).item() == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_compare_features_of_different_shapes(name):
    term = OBJECTIVES.find(name)(**{"taps" if name == "sp" else "tap": "block1"})
    student, teacher = Outputs(maps(4, 10), {"block1": maps(4, 3, 8, 8)}), Outputs(maps(4, 10), {"block1": maps(4, 7)})
    term.setup(Task(10, 100, 1, student, teacher))
    assert term(student, teacher, batch(4)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_job_without_teacher(name):
    (weighted,) = parse_loss(name)
    with pytest.raises(UserError, match=f"{name}: needs a teacher, but the job has none"):
        weighted.term.setup(Task(10, 100, 1, activations(2, 0)))


@pytest.mark.parametrize("name", ["nst", "vid"])
def test_terms_of_maps_refuse_vectors(name):
    probe = activations(2, 0)
    with pytest.raises(UserError, match=rf"{name}: tap 'penultimate' of the student has shape \[2, 10\], not that of"):
        OBJECTIVES.find(name)(taps="penultimate").setup(Task(10, 100, 1, probe, probe))


@pytest.mark.parametrize(("ours", "theirs"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((8, 4), (4, 8))])
@pytest.mark.parametrize("name", ["nst", "vid"])
def test_the_larger_map_is_pooled(name, ours, theirs):
    student, teacher = maps(3, 5, *ours), maps(3, 6, *theirs, seed=1)
    torch.manual_seed(0)
    term = OBJECTIVES.find(name)(taps="block1")
    probe = [Outputs(maps(3, 10), {"block1": value}) for value in (student, teacher)]
    term.setup(Task(10, 100, 1, *probe))
    pool = torch.nn.AdaptiveAvgPool2d((min(ours[0], theirs[0]), min(ours[1], theirs[1])))
    pooled = [Outputs(maps(3, 10), {"block1": pool(value)}) for value in (student, teacher)]
    torch.testing.assert_close(term(*probe, batch(3)), term(*pooled, batch(3)))
