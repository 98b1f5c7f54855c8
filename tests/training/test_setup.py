"""What comes before the first step: what terms are told of the training, and whose batch BatchNorm sees."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from distillers import stages
from jobs import recipe_of, run
from torch import nn

import kdstream as kd
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.recipe import make_recipe
from kdstream.stream import parse_chain
from kdstream.stream.plan import Plan
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.networks import Teacher
from kdstream.training.rehearsal import rehearse
from kdstream.training.setup import set_up, uncoded


@pytest.mark.parametrize("size", [1, 2, 9, 10, 11, 240])
@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (2, 1), (2, 2), (4, 2), (5, 2), (7, 3), (10, 4), (300, 3)])
def test_the_smallest_slice_of_all(size, batch_size, world):
    plan = Plan(size, batch_size)
    slices = [len(plan.batch(0, step, rank, world)) for step in range(plan.steps) for rank in range(world)]
    assert plan.smallest_slice(world) == min(slices)


class Asks(kd.Term):
    """Notes what it is told."""

    uses_teacher = False
    told: int | None = None

    def setup(self, task):
        Asks.told = task.smallest_batch

    def forward(self, student, teacher, batch):
        return student.logits.square().mean()


def test_terms_are_told(digits, monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    import test_setup  # the recipe's, whichever name pytest has for this file

    for batch_size, smallest in ((100, 70), (48, 48), (239, 120), (300, 240)):
        recipe = recipe_of(digits, "nowhere", loss="test_setup:Asks", batch_size=batch_size)
        rehearse(recipe, open_shards(digits / "train"), None, Accelerator(cpu=True))
        assert test_setup.Asks.told == smallest


def test_batch_norm_is_synchronised_in_student_and_terms_and_taps_still_see_it():
    """``ofd`` taps what goes into the ReLU, which is what a BatchNorm gives, and trains connectors with BatchNorms."""
    (_, plain, batch), (_, distiller, _) = (
        next(stages("ofd", 3, 4, world=2, sync_batchnorm=wanted)) for wanted in (False, True)
    )
    assert distiller.state_dict().keys() == plain.state_dict().keys()
    kinds = {name: type(part) for name, part in distiller.named_modules() if "BatchNorm" in type(part).__name__}
    assert {name.split(".")[0] for name in kinds} == {"student", "terms"}
    assert set(kinds.values()) == {nn.SyncBatchNorm}
    torch.testing.assert_close(distiller.eval()(batch)[0], plain.eval()(batch)[0])


@pytest.mark.parametrize(
    ("device", "loss", "message"),
    [
        ("cpu", "ce", r"sync_batchnorm is for GPUs: .* leave it out, use one process, or a network without BatchNorm$"),
        ("cuda", {"ce": 1, "bss": 1}, r"sync_batchnorm does not go with bss, which asks the student again on some"),
    ],
)
def test_what_sync_batchnorm_does_not_go_with(digits, device, loss, message):
    train, teacher = open_shards(digits / "train"), SimpleNamespace()
    two = SimpleNamespace(device=torch.device(device), num_processes=2)
    with pytest.raises(UserError, match=message):
        set_up(recipe_of(digits, "nowhere", loss=loss, sync_batchnorm=True), train, train, teacher, two)


@kd.batch_stage
def coded(batches):
    """Called as ours is, and none of ours."""
    yield from batches


def test_a_stage_of_ones_own_called_coded_stays_where_ours_is_left_out(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    own = parse_chain("decode | test_setup:coded | teacher | normalize")
    assert uncoded(own) == own
    both = uncoded(parse_chain("decode | test_setup:coded | coded(hkl) | teacher | normalize"))
    assert [step.name for step in both.stages] == ["decode", "coded", "_offer_originals", "teacher", "normalize"]
    assert both.roles == [None, None, None, "teacher", "normalize"]


@pytest.mark.parametrize(
    "settings",
    [
        {"student": "alexnet"},
        {"student": "resnet8", "loss": "kd", "teacher": {"model": "alexnet"}},
    ],
)
def test_a_network_for_larger_images_is_one_line(digits, tmp_path, settings):
    train = open_shards(digits / "train")
    teacher = None
    if "teacher" in settings:
        network = build("alexnet", 10).eval()
        teacher = Teacher(network, make_recipe({"data": "x", **settings}, "x").teacher, None, None, hash="x")
    role = "student" if teacher is None else "teacher"
    message = rf"^recipe job: {role} alexnet does not take images of 16x16 \(.*too small\): "
    with pytest.raises(UserError, match=message):
        rehearse(recipe_of(digits, tmp_path, **settings), train, teacher, Accelerator(cpu=True))


def test_a_compiled_training_learns_the_same_and_its_keys_are_plain(digits, tmp_path, monkeypatch):
    compiled, module_compile = [], nn.Module.compile

    def noted(self):
        compiled.append(self)
        module_compile(self, backend="eager")  # the compiler's own code takes a minute

    monkeypatch.setattr(nn.Module, "compile", noted)
    settings = {"epochs": 1, "ema": 0.9}
    for wanted in (False, True):
        run(recipe_of(digits, tmp_path / str(wanted), **settings, compile=wanted))
    assert [type(one) for one in compiled] == [Tapped]
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(tmp_path / str(wanted) / name) for wanted in (False, True))
        assert one.keys() == two.keys()
        for part in {"distiller", "ema", "state"} & one.keys():
            assert one[part].keys() == two[part].keys()
            torch.testing.assert_close(one[part], two[part])
    torch.compiler.reset()


def test_a_compiler_that_fails_is_one_line(digits, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise OSError("no g++ here\nand a page of its own")

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=broken))
    with pytest.raises(UserError, match=r"torch\.compile fails here \(.*no g\+\+ here .*: set compile=false"):
        run(recipe_of(digits, tmp_path, epochs=1, student="jobs:Plain", compile=True))
    torch.compiler.reset()
