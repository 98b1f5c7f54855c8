"""sp, cc, vid, rkd, pkt, nst, kdsvd: what their formulas do not see, plain slow forms of the fast ones, hard inputs."""

from __future__ import annotations

import itertools

import pytest
import torch
from builders import batch, maps, outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Task, Term, parse_loss, rkd
from kdstream.objectives.kdsvd import SingularValueTransfer, right_singular
from kdstream.objectives.nst import selectivity_distance
from kdstream.objectives.pkt import neighbours
from kdstream.objectives.rkd import RelationalKD
from kdstream.objectives.sp import similarities

seeds = st.integers(0, 2**31 - 1)
NAMES = ["cc", "kdsvd", "nst", "pkt", "rkd", "sp", "vid"]
SHAPES = {"block1": (6, 8, 8), "block2": (8, 4, 4), "block3": (10, 2, 2), "penultimate": (10,)}
RELATIONS = {"pkt": "penultimate", "rkd": "block3", "sp": "block3"}


def activations(count: int, seed: int) -> Outputs:
    return outputs(seed, count, **SHAPES).map(torch.relu)


def ready(name: str, **settings_) -> Term:
    """The term, set up for :data:`SHAPES` on both sides."""
    torch.manual_seed(0)
    term = OBJECTIVES.find(name)(**settings_)
    probe = activations(2, 0)
    term.setup(Task(10, 100, 1, probe, probe))
    return term


def trained(student: Outputs) -> Outputs:
    return student.map(lambda value: value.clone().requires_grad_())


# ---------------------------------------------------------------------------------------------------- all of them


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


@pytest.mark.parametrize(
    ("name", "settings_", "message"),
    [
        ("cc", {"feat_dim": 0}, "cc: feat_dim must be a whole number >= 1, got 0"),
        ("cc", {"tap": ["block3"]}, "cc: tap must be the name of one tap such as block3, got ['block3']"),
        ("rkd", {"teacher_tap": 3}, "rkd: teacher_tap must be the name of one tap such as block3, got 3"),
        ("rkd", {"w_d": -1}, "rkd: w_d must be a finite number >= 0, got -1"),
        ("rkd", {"w_d": 0, "w_a": 0}, "rkd: w_d and w_a are both 0"),
        ("rkd", {"eps": 0}, "rkd: eps must be a finite number > 0, got 0"),
        ("pkt", {"eps": 0}, "pkt: eps must be a finite number > 0, got 0"),
        ("sp", {"taps": []}, "sp: taps must be a list of tap names"),
        ("nst", {"taps": ["a", "a"]}, "nst: taps names a tap twice: a, a"),
        ("vid", {"eps": 1, "init_pred_var": 1}, "vid: init_pred_var must be a finite number > 1, got 1"),
        ("vid", {"taps": ["block1", "block1.pre"]}, "vid: taps holds one block twice: block1, block1.pre"),
        ("kdsvd", {"taps": ["block1"]}, "kdsvd: compares consecutive taps, got block1 alone"),
        ("kdsvd", {"k": 0}, "kdsvd: k must be a whole number >= 1, got 0"),
        ("kdsvd", {"gamma": 0}, "kdsvd: gamma must be a finite number > 0, got 0"),
    ],
)
def test_refuses_settings(name, settings_, message):
    with pytest.raises(UserError) as caught:
        OBJECTIVES.find(name)(**settings_)
    assert str(caught.value).startswith(message)


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


# --------------------------------------------------------------------------------------------------------- sp, cc


def test_sp_similarities_are_unit_rows_of_inner_products():
    features = maps(3, 4, 2, 2)
    rows = similarities(features)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    inner = [[(a * b).sum().item() for b in features] for a in features]
    torch.testing.assert_close(rows, F.normalize(torch.tensor(inner), dim=1))


def test_sp_sums_over_taps():
    term, student, teacher = ready("sp", taps=["block1", "block3"]), activations(4, 1), activations(4, 9)
    alone = [ready("sp", taps=tap)(student, teacher, batch(4)) for tap in ("block1", "block3")]
    torch.testing.assert_close(term(student, teacher, batch(4)), sum(alone))


def test_cc_multiplies_the_errors_of_neighbours():
    term, student, teacher = ready("cc", feat_dim=5), activations(4, 1), activations(4, 9)
    errors = [
        (term.embed_s.linear(ours) - term.embed_t.linear(theirs)).abs()
        for ours, theirs in zip(student.features["penultimate"], teacher.features["penultimate"], strict=True)
    ]
    expected = sum(torch.dot(one, two) for one, two in itertools.pairwise(errors)) / 3
    torch.testing.assert_close(term(student, teacher, batch(4)), expected)
    assert term(student.map(lambda v: v[:1]), teacher.map(lambda v: v[:1]), batch(1)).item() == 0


# ------------------------------------------------------------------------------------------------------------ vid


@pytest.mark.parametrize("variance", [2e-5, 5.0, 2000.0])
def test_vid_starts_at_the_variance_that_was_asked_for(variance):
    term = ready("vid", init_pred_var=variance)
    scale = term.vid["block2"].log_scale.double()
    assert torch.log1p(scale.exp()).where(scale < 700, scale)[0].item() + 1e-5 == pytest.approx(variance, rel=1e-3)
    zeros = activations(3, 0).map(torch.zeros_like)
    expected = 3 * 0.5 * torch.tensor(variance, dtype=torch.float64).log().item()
    assert term(zeros, zeros, batch(3)).item() == pytest.approx(expected, rel=1e-3)


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


# ------------------------------------------------------------------------------------------------------------ rkd


def slow_rkd(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance and angle term, pair by pair and triple by triple."""
    count, sides = len(student), [value.flatten(1) for value in (student, teacher)]
    scaled = []
    for side in sides:
        far = torch.stack([(a - b).norm() for a in side for b in side])
        scaled.append(far / far[far > 0].mean())
    angles = []
    for side in sides:
        unit = F.normalize(side[None] - side[:, None], dim=2)
        angles.append(torch.stack([unit[i] @ unit[i].T for i in range(count)]))
    return F.smooth_l1_loss(*scaled), F.smooth_l1_loss(*angles)


@pytest.mark.parametrize("most", [2**22, 100, 1])
def test_rkd_equals_its_definition_whole_and_in_parts(most, monkeypatch):
    monkeypatch.setattr(rkd, "MOST_ANGLES", most)
    student, teacher = maps(7, 4, 2, 2).double().requires_grad_(), maps(7, 5, 3, 3, seed=1).double()
    term = RelationalKD()
    grams = term.grams(Outputs(student, {"block3": student}), Outputs(teacher, {"block3": teacher}))
    for fast, slow in zip((term.distance(*grams), term.angle(*grams)), slow_rkd(student, teacher), strict=True):
        torch.testing.assert_close(fast, slow)
        torch.testing.assert_close(*(torch.autograd.grad(v, student, retain_graph=True)[0] for v in (fast, slow)))


def test_rkd_in_parts_holds_no_larger_tensor(monkeypatch):
    monkeypatch.setattr(rkd, "MOST_ANGLES", 2000)
    student, sizes = maps(20, 100).requires_grad_(), []
    term = RelationalKD(w_d=0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        term(Outputs(student, {"block3": student}), Outputs(student, {"block3": maps(20, 90, seed=1)}), batch(20))
    assert max(sizes) <= 2000


def test_rkd_gives_equal_samples_no_angle():
    student, teacher = maps(6, 300, seed=3), maps(6, 200, seed=4)
    student[4] = student[1]
    student.requires_grad_()
    term = RelationalKD()
    ours, theirs = Outputs(student, {"block3": student}), Outputs(teacher, {"block3": teacher})
    grams = term.grams(ours, theirs)
    cosines = rkd.cosines(grams[0], rkd.inverse_distances(grams[0]), 0, 6)
    assert not cosines[1, 4].any()
    assert not cosines[4, :, 1].any()
    value = term.angle(*grams)
    torch.testing.assert_close(value, slow_rkd(student, teacher)[1], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(term(ours, theirs, batch(6)), student)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1


@given(seeds, st.floats(-100, 100))
@settings(max_examples=20, deadline=None)
def test_rkd_does_not_see_where_the_features_lie(seed, shift):
    student, teacher = maps(5, 8, seed=seed), Outputs(maps(5, 10), {"block3": maps(5, 9, seed=seed + 1)})
    values = [
        RelationalKD()(Outputs(student, {"block3": moved}), teacher, batch(5)).item()
        for moved in (student, student + shift)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_rkd_weights_its_relations_and_leaves_out_those_of_weight_zero():
    student, teacher = activations(5, 1), activations(5, 9)
    both = [RelationalKD(w_d=w_d, w_a=w_a)(student, teacher, batch(5)) for w_d, w_a in ((2, 3), (2, 0), (0, 3))]
    torch.testing.assert_close(both[0], both[1] + both[2])
    grams = RelationalKD().grams(student, teacher)
    torch.testing.assert_close(both[1], 2 * RelationalKD().distance(*grams))
    torch.testing.assert_close(both[2], 3 * RelationalKD().angle(*grams))


# ------------------------------------------------------------------------------------------------------- pkt, nst


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_pkt_neighbours_are_probabilities_of_cosines(seed):
    features = maps(5, 8, seed=seed)
    found = neighbours(features, 1e-7)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5).double())
    kernel = torch.stack([F.cosine_similarity(features[i : i + 1], features) for i in range(5)]).add(1) / 2
    torch.testing.assert_close(found.float(), kernel / kernel.sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_pkt_keeps_its_digits_in_float32_where_student_and_teacher_almost_agree():
    teacher = maps(16, 64)
    student = teacher + 0.01 * maps(16, 64, seed=1)
    term, values, gradients = ready("pkt"), [], []
    for dtype in (torch.float32, torch.float64):
        leaf = student.to(dtype).requires_grad_()
        values.append(term(Outputs(leaf, {"penultimate": leaf}), Outputs(leaf, {"penultimate": teacher}), batch(16)))
        gradients.append(torch.autograd.grad(values[-1], leaf)[0].double())
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


@pytest.mark.parametrize(("ours", "theirs", "size"), [(3, 4, 5), (9, 4, 2), (4, 9, 3), (16, 16, 4)])
def test_nst_equals_the_kernel_of_all_channel_pairs_on_both_ways(ours, theirs, size):
    student = maps(3, ours, size, size).double().requires_grad_()
    teacher = maps(3, theirs, size, size, seed=1).double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(a.flatten(2)[:, :, None], b.flatten(2)[:, None], dim=3).square().mean()

    slow = kernel(student, student) + kernel(teacher, teacher) - 2 * kernel(student, teacher)
    fast = selectivity_distance(student, teacher)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (fast, slow)))


@pytest.mark.parametrize(("channels", "size", "most"), [((8, 64), 3, 9 * 9), ((6, 5), 8, 6 * 6)])
def test_nst_holds_nothing_larger_than_the_maps_and_the_smaller_gram(channels, size, most):
    student, teacher = (maps(3, c, size, size, seed=c).requires_grad_() for c in channels)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        selectivity_distance(student, teacher)
    assert max(sizes) <= 3 * max(most, max(channels) * size**2)


# ---------------------------------------------------------------------------------------------------------- kdsvd


def slow_kdsvd(student: list[torch.Tensor], teacher: list[torch.Tensor], k: int) -> torch.Tensor:
    """By torch's differentiable decomposition, sample by sample."""
    total = 0
    for n in range(len(student[0])):
        last = None
        for ours, theirs in zip(student, teacher, strict=True):
            _, values, target = torch.linalg.svd(theirs[n].flatten(1).T, full_matrices=False)
            target = torch.stack([row if row.sum() >= 0 else -row for row in target[:k]])
            scale = (values[:k] / values[:k].norm())[:, None]
            basis = torch.linalg.svd(ours[n].flatten(1).T, full_matrices=False)[2][: k + 3]
            nearest = [max(basis, key=lambda v: (v @ row).abs().item()) for row in target]
            found = torch.stack([v * (v @ row).sign() for v, row in zip(nearest, target, strict=True)])
            now = found * scale, target * scale
            if last is not None:
                r = [torch.exp(-((high[:, :, None] - low[:, None]).square()) / 8) for high, low in zip(now, last)]  # noqa: B905
                total = total + (r[0] - r[1]).square().sum()
            last = now
    return total / len(student[0])


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("ours", "theirs"), [((5, 6), (5, 6)), ((4, 2), (3, 3))])
def test_kdsvd_equals_the_decomposition_and_its_gradient(k, ours, theirs):
    student = [maps(3, c, s, s, seed=c).double().requires_grad_() for c, s in zip((4, 9), ours, strict=True)]
    teacher = [maps(3, c, s, s, seed=c + 50).double() for c, s in zip((4, 9), theirs, strict=True)]
    term = SingularValueTransfer(taps=["block1", "block2"], k=k)
    sides = [Outputs(maps(3, 10), dict(zip(("block1", "block2"), side, strict=True))) for side in (student, teacher)]
    term.setup(Task(10, 100, 1, *sides))
    fast, slow = term(*sides, batch(3)), slow_kdsvd(student, teacher, k)
    torch.testing.assert_close(fast, slow)
    for one, two in zip(*(torch.autograd.grad(value, student) for value in (fast, slow)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_kdsvd_does_not_see_the_sign_of_the_students_map():
    term, student, teacher = ready("kdsvd"), activations(3, 1), activations(3, 9)
    value = term(student, teacher, batch(3))
    torch.testing.assert_close(term(student.map(torch.neg), teacher, batch(3)), value)
    torch.testing.assert_close(term(student, teacher.map(torch.neg), batch(3)), value)


@pytest.mark.parametrize(("channels", "positions"), [(4, 9), (9, 4)])
def test_kdsvd_vectors_are_those_of_the_decomposition(channels, positions):
    x = maps(3, channels, positions).double()
    vectors, squares, _ = right_singular(x)
    _, values, right = torch.linalg.svd(x.mT, full_matrices=False)
    torch.testing.assert_close(squares, values.square())
    torch.testing.assert_close((vectors.mT @ right.mT).abs(), torch.eye(4).double().expand(3, 4, 4))


def test_kdsvd_refuses_pairs_that_have_no_value():
    def probe(*shapes: tuple[int, ...]) -> Outputs:
        return Outputs(maps(2, 10), {f"block{i}": maps(2, *shape) for i, shape in enumerate(shapes, 1)})

    student = probe((4, 8, 8), (8, 2, 2))
    with pytest.raises(UserError) as caught:
        SingularValueTransfer(taps=["block1", "block2"]).setup(Task(10, 9, 1, student, probe((4, 8, 8), (9, 2, 2))))
    assert "'block2' [8, 2, 2] and the teacher's 'block2' [9, 2, 2] ([C,H,W]) differ in channels" in str(caught.value)
    with pytest.raises(UserError, match="do not have k = 5 singular vectors: lower k"):
        SingularValueTransfer(taps=["block1", "block2"], k=5).setup(Task(10, 9, 1, student, student))
