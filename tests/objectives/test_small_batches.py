"""Every objective with few classes and few samples: a gradient that teaches, or one line that says what it lacks."""

from __future__ import annotations

import pytest
import torch
from distillers import SIZE, stages

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Task, parse_loss


def largest_gradients(name: str, classes: int, count: int, size: int = SIZE, **settings: object) -> list[float]:
    """The largest gradient of the student's parameters in every stage that trains it; see :func:`distillers.stages`."""
    found = []
    for stage, distiller, small in stages(name, classes, count, size, **settings):
        loss, _, _ = distiller(small)
        if stage.trains != "student":
            continue
        loss.backward()
        gradients = [p.grad for p in distiller.student.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        found.append(max(float(gradient.abs().max()) for gradient in gradients))
    return found


REFUSING = ("cc", "cmkd", "dist", "itrd", "pearson", "pkt", "rkd", "sp", "spearman")
"""Those that compare what is more than two classes, or more than one sample."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_few_classes_and_samples(name):
    taught = {}
    for classes, count in ((1, 2), (2, 1), (2, 2), (3, 1), (3, 2)):
        try:
            taught[classes, count] = min(largest_gradients(name, classes, count))
        except UserError:
            taught[classes, count] = None
    for (classes, _), gradient in taught.items():
        refused = gradient is None and (classes == 1 or name in REFUSING)
        assert refused or gradient > 1e-4, taught


@pytest.mark.parametrize("name", ["pearson", "spearman", "cmkd"])
def test_a_correlation_over_two_classes_is_refused(name):
    with pytest.raises(
        UserError, match=f"^{name}: a correlation over classes needs at least 3, the student has 2: choose"
    ):
        largest_gradients(name, 2, 8)
    assert min(largest_gradients(name, 3, 8)) > 1e-3


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("rkd", {}, 3),
        ("rkd", {"w_a": 0}, 3),
        ("rkd", {"w_d": 0}, 3),
        ("dist", {}, 3),
        ("dist", {"beta": 0}, 3),
        ("dist", {"gamma": 0}, 1),
        ("itrd", {}, 3),
        ("itrd", {"beta_mi": 0}, 3),
        ("itrd", {"beta_corr": 0}, 2),
        ("sp", {}, 2),
        ("pkt", {}, 2),
        ("cc", {}, 2),
        ("crd", {}, 1),
        ("tald", {}, 1),
        ("kd", {}, 1),
    ],
)
def test_how_many_samples_a_batch_needs(name, settings, least):
    if least > 1:
        message = f"^{name}: .* takes at least {least} samples, the smallest batch has {least - 1}: raise batch_size"
        with pytest.raises(UserError, match=message):
            largest_gradients(name, 4, least - 1, **settings)
    assert min(largest_gradients(name, 4, least, **settings)) > 1e-4


def test_slices_that_are_too_small_for_local_relations():
    message = (
        "^rkd: .* takes at least 3 samples in each process, .* gives one 2: raise batch_size, use fewer processes or"
    )
    with pytest.raises(UserError, match=message):
        largest_gradients("rkd", 4, 4, world=2, relations="local")
    assert min(largest_gradients("rkd", 4, 4, world=2)) > 1e-4


def test_what_is_left_of_a_loss_with_two_classes():
    assert min(largest_gradients("dist", 2, 8)) > 1e-1  # the part over samples
    with pytest.raises(UserError, match=r"^dist: the correlation over classes \(beta\) needs at least 3"):
        largest_gradients("dist", 2, 8, gamma=0)
    assert min(largest_gradients("dkd", 2, 8)) > 1e-3  # the label's share
    with pytest.raises(UserError, match=r"^dkd: the divergence among the other classes \(beta\) needs at least 3"):
        largest_gradients("dkd", 2, 8, alpha=0)


@pytest.mark.parametrize(
    ("name", "settings"), [("at", {"taps": ["block3"]}), ("at", {}), ("nst", {}), ("ft", {"form": "repdistiller"})]
)
def test_a_map_of_one_position_is_refused(name, settings):
    with pytest.raises(UserError, match=rf"^{name}: .*'block3' \(1x1\).* share one position only: choose earlier taps"):
        largest_gradients(name, 3, 8, size=4, **settings)


def test_maps_of_one_position_teach_where_they_are_not_normalised_over_positions():
    for name, settings in (("at", {"taps": ["block2"]}), ("ft", {"form": "paper"}), ("kdsvd", {}), ("vid", {})):
        assert min(largest_gradients(name, 3, 8, size=4, **settings)) > 1e-4


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"dist": {"beta": 0, "gamma": 0}}, "^dist: beta and gamma are both 0, which leaves nothing to learn"),
        ({"dkd": {"alpha": 0, "beta": 0}}, "^dkd: alpha and beta are both 0"),
        ({"cmkd": {"beta": 0, "gamma": 0}}, "^cmkd: beta and gamma are both 0"),
        ({"crd": {"feat_dim": 1}}, "^crd: feat_dim must be a whole number >= 2, got 1$"),
    ],
)
def test_settings_that_leave_nothing_to_learn(loss, message):
    with pytest.raises(UserError, match=message):
        parse_loss(loss)


@pytest.mark.parametrize(
    ("name", "feature", "message"),
    [
        ("pkt", {"penultimate": torch.rand(2, 1)}, "is one number, which has no angle; choose another tap"),
        ("itrd", {"penultimate": torch.rand(2, 1)}, "is one number, which has no angle: set beta_mi: 0"),
        ("kdsvd", {f"block{i}": torch.rand(2, 1, 4, 4) for i in (1, 2, 3)}, "have one channel, whose singular vector"),
    ],
)
def test_features_of_one_channel(name, feature, message):
    ((_, _, term),) = parse_loss(name)
    outputs = Outputs(torch.rand(2, 3), feature)
    with pytest.raises(UserError, match=message):
        term.setup(Task(3, 10, 1, outputs, outputs))


def test_more_processes_than_samples_in_a_batch():
    with pytest.raises(UserError, match="has fewer samples than there are processes: raise batch_size"):
        largest_gradients("kd", 3, 2, world=3)
