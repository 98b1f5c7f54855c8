"""kdpp: norm and direction, class means summed over batches, unequal widths."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from builders import batch, penultimate
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Batch, Outputs
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives.kdpp import NormAndDirection, norm_and_direction
from kdstream.objectives.term import Task
from kdstream.recipe import make_recipe
from kdstream.stream.stream import Stream
from kdstream.training.chains import training_chain
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.loop import Trainer
from kdstream.training.metrics import read_metrics
from kdstream.training.networks import Teacher
from kdstream.training.stop import StopFlag

CLASSES, WIDTH = 3, 4


def values(seed: int, n: int = 6, d: int = WIDTH, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labelled(count: int = 6) -> Batch:
    return batch(label=torch.arange(count) % CLASSES)


def made(student_width: int = WIDTH) -> NormAndDirection:
    term = NormAndDirection()
    ours, theirs = values(0, 2, student_width).float(), values(1, 2).float()
    term.setup(Task(CLASSES, 6, 1, penultimate(ours), penultimate(theirs)))
    return term


@given(st.integers(0, 2**31 - 1), st.floats(0.01, 100))
@settings(max_examples=30)
def test_bounds_and_what_lengths_do(seed, length):
    ours, theirs, centre = values(seed), values(seed + 1), values(seed + 2)
    value = norm_and_direction(ours, theirs, centre)
    assert ((value >= 0) & (value <= 2)).all()
    torch.testing.assert_close(norm_and_direction(ours, theirs, length * centre), value)
    longest = 1000 * centre
    torch.testing.assert_close(norm_and_direction(longest, theirs, centre), torch.zeros(6).double(), rtol=0, atol=1e-9)


def test_a_short_feature_grows_and_a_long_one_only_turns():
    centre, theirs = values(0), values(1)
    short = (0.1 * values(2)).requires_grad_()
    norm_and_direction(short, theirs, centre).sum().backward()
    expected = -centre / centre.norm(dim=1, keepdim=True) / theirs.norm(dim=1, keepdim=True)
    torch.testing.assert_close(short.grad, expected)
    long = (100 * values(2)).requires_grad_()
    norm_and_direction(long, theirs, centre).sum().backward()
    torch.testing.assert_close((long.grad * long).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-12)


def test_class_means_are_sums_over_the_phase():
    term = made()
    (phase,) = term.phases()
    assert (phase.trains, phase.epochs) == ("nothing", 1)
    features = values(3, 12, dtype=torch.float32)
    for part in features.split(6):
        assert getattr(term, phase.loss)(penultimate(part), penultimate(part), labelled()).item() == 0
    expected = torch.stack([features[c::CLASSES].sum(0) for c in range(CLASSES)])
    torch.testing.assert_close(term.class_sums, expected)
    value = term(penultimate(values(4).float()), penultimate(values(5).float()), labelled())
    centres = (expected / 4)[labelled().label]
    torch.testing.assert_close(value, norm_and_direction(values(4).float(), values(5).float(), centres).mean())


@pytest.mark.parametrize("count", [1, 2, 6])
def test_unequal_widths_are_joined_by_an_embedding_that_trains(count):
    term = made(student_width=9).train()
    term.class_sums.copy_(values(1, CLASSES).float())
    ours = values(2, count, 9).float().requires_grad_()
    value = term(penultimate(ours), penultimate(values(3, count).float()), labelled(count))
    value.backward()
    assert value.isfinite()
    assert ours.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in term.parameters())
    assert len(list(term.parameters())) == 4
    assert not list(made().parameters())


def test_half_precision_and_dead_features_stay_finite():
    term = made()
    term.class_sums.copy_(values(1, CLASSES).float())
    ours = torch.full((6, WIDTH), 3e4, dtype=torch.float16)
    ours[0] = 0
    ours.requires_grad_()
    theirs = torch.zeros(6, WIDTH, dtype=torch.float16)
    value = term(penultimate(ours), penultimate(theirs), labelled())
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert ours.grad.isfinite().all()


def test_what_kdpp_refuses():
    maps = Outputs(torch.zeros(2, CLASSES), {"penultimate": torch.zeros(2, 4, 8, 8)})
    vectors = penultimate(torch.zeros(2, WIDTH))
    with pytest.raises(UserError, match=r"kdpp: the teacher's 'penultimate' has shape \[2, 4, 8, 8\]"):
        NormAndDirection().setup(Task(CLASSES, 6, 1, vectors, maps))
    with pytest.raises(UserError, match="kdpp: needs a teacher"):
        NormAndDirection().setup(Task(CLASSES, 6, 1, vectors))


def test_a_training_measures_the_class_means_first(digits, tmp_path):
    torch.manual_seed(0)
    network = build("resnet8", 10).eval()
    recipe = make_recipe(
        {
            "data": {"path": str(digits)},
            "teacher": {"model": "resnet8"},
            "student": "resnet8",
            "loss": {"ce": 1, "kdpp": 2},
            "stream": "decode",
            "epochs": 1,
            "batch_size": 48,
            "workers": 0,
            "optimizer": {"lr": 0.05},
        },
        "test",
    )
    train, val = open_shards(digits / "train"), open_shards(digits / "val")
    teacher = Teacher(network, recipe.teacher, None, None, "0" * 64)
    accelerator, display = Accelerator(cpu=True), Display(enabled=False)
    Trainer(recipe, tmp_path, train, val, teacher, accelerator, display, StopFlag()).fit()
    assert [row["phase"] for row in read_metrics(tmp_path)] == ["kdpp.class_means", "main"]
    found = load_checkpoint(tmp_path / "last.pt")["distiller"]["terms.1.class_sums"]
    expected = torch.zeros(10, 64)
    tapped = Tapped(network, ["penultimate"])
    with torch.no_grad():
        for part in Stream(train, 48, recipe.seed, workers=0) | training_chain(recipe, False):
            expected.index_add_(0, part.label, tapped(part.image).features["penultimate"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
