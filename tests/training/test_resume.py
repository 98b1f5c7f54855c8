"""Stopped at any step and continued, alone or by several processes, a training ends as one that was never stopped; and
several processes train as one does, also what some batches do not reach and batches of unequal size."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from jobs import recipe_of
from processes import together
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import kdstream as kd
from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student, save_student
from kdstream.recipe import Recipe
from kdstream.recipe_file import load_recipe
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint
from kdstream.training.loop import Trainer
from kdstream.training.metrics import read_metrics
from kdstream.training.networks import make_teacher
from kdstream.training.stop import StopFlag, Stopped

HERE = Path(__file__).stem
CLOCK = ("seconds", "images_per_s", "memory")


# --- what is trained


def plain(num_classes: int) -> nn.Module:
    """Nothing in it makes a batch more than the sum of its samples."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))


def drawing(num_classes: int) -> nn.Module:
    """Draws random numbers at every step, and has running statistics."""
    layers = [nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, num_classes)]
    return nn.Sequential(*layers)


class Skipping(nn.Module):
    """Stochastic depth by batch: each block runs with probability 1/3."""

    def __init__(self, num_classes: int, blocks: int = 8):
        super().__init__()
        self.stem = nn.Linear(3 * 16 * 16, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        x = self.stem(images.flatten(1))
        for block in self.blocks:
            if not self.training or torch.rand(()) < 1 / 3:
                x = x + block(x)
        return self.fc(x)


class Classwise(kd.Term):
    """A layer of its own for each class, which only batches that have the class reach."""

    uses_teacher = False

    def setup(self, task):
        self.layers = nn.ModuleList(nn.Linear(task.num_classes, 1) for _ in range(task.num_classes))
        self.start = [layer.weight.detach().clone() for layer in self.layers]

    def forward(self, student, teacher, batch):
        answers = [self.layers[label](z) for z, label in zip(student.logits, batch.label.tolist(), strict=True)]
        return (torch.cat(answers) - 1).square().mean()


class OfOneClass(kd.Term):
    """Alone in a loss; most batches have nothing for it."""

    uses_teacher = False

    def __init__(self, label: int = 9):
        super().__init__()
        self.label = label

    def forward(self, student, teacher, batch):
        mine = batch.label == self.label
        return F.cross_entropy(student.logits[mine], batch.label[mine]) if mine.any() else torch.zeros(())


class First(kd.Term):
    """A phase, then a part of the main one; draws random numbers."""

    uses_teacher = False

    def setup(self, task):
        self.head = nn.Linear(task.num_classes, task.num_classes)

    def phases(self):
        return (kd.Phase("first", 1, 0.02, milestones=(1,)),)

    def forward(self, student, teacher, batch):
        return F.cross_entropy(F.dropout(self.head(student.logits), 0.5), batch.label)


@kd.stage
def without(samples, label):
    """Drops a class."""
    for sample in samples:
        if sample["label"] != label:
            yield sample


class Stopping(Trainer):
    """Gets a signal at a step of the whole training, counted from 0, or at the first after it that ends a group."""

    def _must_stop(self, step: int) -> bool:
        if self.stop_at is not None and self.global_epoch * self.setup.stream.steps + step >= self.stop_at:
            self.stop.signal = signal.SIGTERM
        return super()._must_stop(step)


def fit(recipe: Recipe, folder: Path, accelerator: Accelerator, stop_at: int | None = None, display=None) -> Trainer:
    data = Path(recipe.data.path)
    train, val = open_shards(data / "train"), open_shards(data / "val")
    teacher = None if recipe.teacher is None else make_teacher(recipe.teacher, train.num_classes)
    display = display or Display(enabled=False)
    trainer = Stopping(recipe, folder, train, val, teacher, accelerator, display, StopFlag())
    trainer.stop_at = stop_at
    trainer.fit()
    return trainer


def fit_in_pieces(recipe: Recipe, folder: Path, accelerator: Accelerator) -> int:
    """Stop at every step of the optimizer, and continue; how often it stopped.

    A piece decodes what it needs, not the whole data set beforehand.
    """
    recipe, stops = recipe.model_copy(update={"cache": "off"}), 0
    while True:
        try:
            fit(recipe, folder, accelerator, stop_at=0)
            return stops
        except Stopped:
            stops += 1


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not isinstance(value, str)}


def are_the_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "student.safetensors").read_bytes() == (other / "student.safetensors").read_bytes()
    ends = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for end in ends:
        for key in CLOCK:
            del end[key]
    assert ends[0] == ends[1]
    states = [load_checkpoint(folder / "last.pt") for folder in (one, other)]
    for a, b in zip(*([state, *state["others"]] for state in states), strict=True):
        assert torch.equal(a["random"]["cpu"], b["random"]["cpu"])
    assert states[0]["images"] == states[1]["images"]


@pytest.fixture(scope="module", autouse=True)
def _importable():
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> Path:
    """Ten samples."""
    folder = tmp_path_factory.mktemp("ten") / "s"
    make_shards("digits", folder, limit=10, processes=1, console=Console(quiet=True))
    return folder


# --- the trainings of two processes, all by one launch


def whole_and_cut(digits: Path, teacher: Path, out: Path) -> Recipe:
    """Phases, a coded teacher, accumulation with a short last group, slices of unequal size, random numbers, an average
    of the weights."""
    return recipe_of(
        digits,
        out,
        student=f"{HERE}:drawing",
        teacher=str(teacher),
        loss={"ce": 1, "kd": 1, f"{HERE}:First": 0.5},
        stream="decode | augment(cifar, pad=1) | coded(random(10, 90))",
        batch_size=49,
        accumulate=2,
        eval_batch_size=240,
        ema=0.8,
        export_network="ema",
    )


def of_ten(ten: Path, out: Path, **settings) -> Recipe:
    base = {"student": f"{HERE}:plain", "stream": "decode", "epochs": 1, "loss": "ce", "schedule": {"name": "constant"}}
    return recipe_of(ten, out, **{**base, "optimizer": {"lr": 0.5, "momentum": 0, "weight_decay": 0}, **settings})


def of_reach(digits: Path, out: Path, **settings) -> Recipe:
    base = {"student": f"{HERE}:plain", "loss": {"ce": 1, f"{HERE}:Classwise": 0.5}, "batch_size": 5, "epochs": 1}
    optimizer = {"lr": 0.002, "weight_decay": 0.01}
    return recipe_of(digits, out, **{**base, "optimizer": optimizer, "eval_batch_size": 240, **settings})


REACH = {"every step": {}, "groups": {"accumulate": 3}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    save_student(folder, build("resnet8", 10))
    return folder


def train_all(folder: Path) -> None:
    """As one of two processes."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    for path in sorted(folder.glob("*.yaml")):
        recipe = load_recipe(str(path))
        if path.stem == "cut":
            assert fit_in_pieces(recipe, recipe.folder(), accelerator) == 9
        elif path.stem == "left":
            with pytest.raises(Stopped):
                fit(recipe, recipe.folder(), accelerator, 2)
        else:
            fit(recipe, recipe.folder(), accelerator)


@pytest.fixture(scope="module")
def of_two(digits, ten, teacher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    recipes = {name: whole_and_cut(digits, teacher, folder / name) for name in ("whole", "cut")}
    recipes["left"] = recipe_of(digits, folder / "left", student=f"{HERE}:plain", eval_batch_size=240)
    recipes["4+3+3"] = of_ten(ten, folder / "4+3+3", batch_size=4, accumulate=3)
    recipes |= {name: of_reach(digits, folder / name, **settings) for name, settings in REACH.items()}
    recipes["skipping"] = of_reach(digits, folder / "skipping", student=f"{HERE}:Skipping", loss="ce", batch_size=24)
    mixing = "decode | augment(cifar, pad=1) | randaugment | erasing | mix"
    recipes["mixed"] = of_reach(digits, folder / "mixed", loss="ce", stream=mixing, batch_size=27)
    recipes["one class"] = of_reach(digits, folder / "one class", loss=f"{HERE}:OfOneClass")
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    together(2, train_all, folder)
    return folder


# --- stopped and continued


def test_one_process_stopped_at_every_step(digits, teacher, tmp_path):
    recipe = whole_and_cut(digits, teacher, tmp_path)
    fit(recipe, tmp_path / "whole", Accelerator(cpu=True))
    # Of the five batches of an epoch, groups end with the second, the fourth and the last.
    assert fit_in_pieces(recipe, tmp_path / "cut", Accelerator(cpu=True)) == 9
    are_the_same(tmp_path / "whole", tmp_path / "cut")
    rows = read_metrics(tmp_path / "cut")
    assert [row["phase"] for row in rows] == ["first", "main", "main"]
    assert [row["lr"] for row in rows] == [0.02, pytest.approx(0.05 * 0.75), pytest.approx(0)]  # cosine after warm-up
    assert [row["step"] for row in rows] == [3, 6, 9]


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adamw", "lr": 0.01, "no_decay": ["norm", "bias"], "weight_decay": 0.1},
        {"name": "lamb", "lr": 0.01, "no_decay": ["norm", "bias"], "clip": 1.0},
        {"name": "torch.optim:NAdam", "lr": 0.01, "options": {"decoupled_weight_decay": True}},
    ],
    ids=lambda optimizer: optimizer["name"],
)
def test_any_optimizer_stopped_at_every_step(digits, tmp_path, optimizer):
    loss = {"ce": 1, f"{HERE}:First": 0.5}
    settings = {"student": f"{HERE}:drawing", "loss": loss, "batch_size": 80, "accumulate": 2, "optimizer": optimizer}
    recipe = recipe_of(digits, tmp_path, eval_batch_size=240, **settings)
    whole = fit(recipe, tmp_path / "whole", Accelerator(cpu=True))
    assert fit_in_pieces(recipe, tmp_path / "cut", Accelerator(cpu=True)) == 6
    are_the_same(tmp_path / "whole", tmp_path / "cut")
    moved = whole.setup.networks["student"].state_dict()
    assert not any(torch.equal(moved[name], one) for name, one in drawing(10).state_dict().items() if one.dim() == 2)


def test_deits_setting_stopped_at_every_step(digits, teacher, tmp_path):
    """All that its recipes have: drop path, AdamW, an average of the weights, drawn operations, boxes and mixtures."""
    layers = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    recipe = recipe_of(
        digits,
        tmp_path,
        teacher=str(teacher),
        student={"model": "timm:deit_tiny_patch16_224", "options": {**layers, "drop_path_rate": 0.3}},
        stream="decode | augment(cifar, pad=1) | coded(fixed(50)) | randaugment | erasing(0.25) | mix",
        loss={"label_smoothing": 1, "nkd": {"weight": 1, "gamma": 1, "temperature": 1}},
        optimizer={
            "name": "adamw",
            "lr": 1e-3,
            "no_decay": ["norm", "bias", "embedding"],
            "weight_decay": 0.05,
            "clip": 5,
        },
        schedule={"name": "cosine", "warmup": 1, "start_factor": 1e-3, "end_factor": 1e-2},
        ema=0.9,
        batch_size=100,
        eval_batch_size=240,
    )
    fit(recipe, tmp_path / "whole", Accelerator(cpu=True))
    assert fit_in_pieces(recipe, tmp_path / "cut", Accelerator(cpu=True)) == 2 * 3
    are_the_same(tmp_path / "whole", tmp_path / "cut")
    assert load_student(tmp_path / "whole").blocks[1].drop_path1.drop_prob == pytest.approx(0.3)


def test_two_processes_stopped_at_every_step(of_two):
    are_the_same(of_two / "whole", of_two / "cut")
    whole = load_checkpoint(of_two / "whole" / "last.pt")
    (other,) = whole["others"]
    assert not torch.equal(other["random"]["cpu"], whole["random"]["cpu"]), "each has random numbers of its own"


def test_one_process_continues_what_two_began(of_two, digits, tmp_path):
    said = Console(file=(tmp_path / "said").open("w"), width=200)
    recipe = load_recipe(str(of_two / "left.yaml"))
    assert load_checkpoint(of_two / "left" / "last.pt")["stream"]["step"] == 3
    fit(recipe, of_two / "left", Accelerator(cpu=True), display=Display(said))
    said.file.flush()
    assert "1 process(es) continue from the state of 2: random numbers will differ" in (tmp_path / "said").read_text()
    fit(recipe, tmp_path / "alone", Accelerator(cpu=True))
    for one, two in zip(read_metrics(tmp_path / "alone"), read_metrics(of_two / "left"), strict=True):
        assert _numbers(one) == pytest.approx(_numbers(two), rel=1e-4)


def test_a_checkpoint_of_the_version_before(digits, tmp_path):
    """It knows of one process and holds momenta of those parameters only that its probe had reached."""
    recipe = recipe_of(digits, tmp_path, loss={"ce": 1, f"{HERE}:Unreached": 1}, eval_batch_size=240)
    fit(recipe, tmp_path / "whole", Accelerator(cpu=True))
    with pytest.raises(Stopped):
        fit(recipe, tmp_path / "cut", Accelerator(cpu=True), stop_at=2)
    path = tmp_path / "cut" / "last.pt"
    state = load_checkpoint(path)
    del state["others"]
    (group,) = state["optimizer"]["param_groups"]
    held = sorted(state["optimizer"]["state"])
    assert held == list(range(2, len(group["params"]))), "the first two parameters have no momentum"
    state["optimizer"]["state"] = {i: state["optimizer"]["state"][key] for i, key in enumerate(held)}
    group["params"] = list(range(len(held)))
    torch.save(state, path)
    fit(recipe, tmp_path / "cut", Accelerator(cpu=True))
    are_the_same(tmp_path / "whole", tmp_path / "cut")


class Unreached(kd.Term):
    """Its layer is never reached; stands before the student's, for the sake of the order."""

    uses_teacher = False

    def adapt(self, student, teacher, image, build):
        layers = dict(student.named_children())
        for name in layers:
            delattr(student, name)
        student.idle = nn.Linear(2, 2)
        for name, layer in layers.items():
            setattr(student, name, layer)
        return student

    def forward(self, student, teacher, batch):
        return 0 * student.logits.sum()


@pytest.mark.parametrize("fault", ["missing", "damaged", "of another training", "of another epoch", "of another shape"])
def test_a_best_pt_that_cannot_be_exported(digits, tmp_path, fault):
    recipe = recipe_of(digits, tmp_path, student=f"{HERE}:plain", export="best", eval_batch_size=240)
    fit(recipe, tmp_path, Accelerator(cpu=True))
    last, best = load_checkpoint(tmp_path / "last.pt"), load_checkpoint(tmp_path / "best.pt")
    last["best"]["epoch"] = best["epoch"] = 1  # not the one that last.pt holds
    save_checkpoint(last, tmp_path / "last.pt")
    for name in ("result.json", "student.json", "student.safetensors", "best.pt"):
        (tmp_path / name).unlink()
    other = {
        "of another training": {"fingerprint": "0"},
        "of another epoch": {"epoch": 2},
        "of another shape": {"state": {"1.weight": torch.zeros(3)}},
    }
    if fault != "missing":
        save_checkpoint({**best, **other.get(fault, {})}, tmp_path / "best.pt")
    if fault == "damaged":
        data = bytearray((tmp_path / "best.pt").read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "best.pt").write_bytes(data)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        UserError, match=r"best\.pt .*: put back the right one|best\.pt .*; put back the right one"
    ) as error:
        fit(recipe, tmp_path, Accelerator(cpu=True))
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save_checkpoint(best, tmp_path / "best.pt")
    fit(recipe, tmp_path, Accelerator(cpu=True))
    assert load_student(tmp_path, trust_code=True).state_dict()["1.weight"].equal(best["state"]["1.weight"])


# --- what a batch reaches


def test_what_some_batches_do_not_reach_is_trained_all_the_same(digits, tmp_path):
    trainer = fit(of_reach(digits, tmp_path / "a"), tmp_path / "a", Accelerator(cpu=True))
    term = trainer.setup.distiller.terms[1]
    moved = [not layer.weight.equal(start) for layer, start in zip(term.layers, term.start, strict=True)]
    assert moved == [True] * 10
    recipe = of_reach(digits, tmp_path / "b", student=f"{HERE}:Skipping", loss="ce", batch_size=24)
    _all_blocks_move(recipe, fit(recipe, tmp_path / "b", Accelerator(cpu=True)).setup.networks["student"])


def _all_blocks_move(recipe: Recipe, network: nn.Module) -> None:
    torch.manual_seed(recipe.seed)
    start = build(f"{HERE}:Skipping", 10)
    assert not any(ours.equal(first) for ours, first in zip(network.parameters(), start.parameters(), strict=True))


def test_two_processes_train_what_some_batches_do_not_reach(of_two):
    recipe = load_recipe(str(of_two / "skipping.yaml"))
    _all_blocks_move(recipe, load_student(of_two / "skipping", trust_code=True))


@pytest.mark.parametrize("name", [*REACH, "one class", "mixed"])
def test_two_processes_train_it_as_one_does(of_two, tmp_path, name):
    """Weight decay and momentum, too: what no process reaches in a step rests, what one reaches moves on both."""
    fit(load_recipe(str(of_two / f"{name}.yaml")), tmp_path, Accelerator(cpu=True))
    states = [load_checkpoint(folder / "last.pt")["distiller"] for folder in (tmp_path, of_two / name)]
    if name == "one class":  # its loss is no mean over the batch: how samples are sliced weighs them
        assert not states[1]["student.module.1.weight"].equal(_start(of_two / f"{name}.yaml"))
        return
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)


def _start(path: Path) -> torch.Tensor:
    torch.manual_seed(load_recipe(str(path)).seed)
    return build(f"{HERE}:plain", 10)[1].weight


def test_where_something_is_frozen_or_rests_it_is_said(digits, tmp_path):
    said = Console(file=(tmp_path / "said").open("w"), width=200)
    loss = {"ce": 1, f"{HERE}:Classwise": 1, f"{HERE}:Frozen": 0}
    recipe = of_reach(digits, tmp_path, loss=loss, batch_size=120)
    trainer = fit(recipe, tmp_path / "out", Accelerator(cpu=True), display=Display(said))
    said.file.flush()
    text = (tmp_path / "said").read_text()
    assert f"job: frozen: {HERE}:Frozen\n" in text
    seen = set(trainer.setup.probe.label.tolist())
    resting = [f"{HERE}:Classwise.layers.{label}" for label in range(10) if label not in seen]
    assert f"the loss of the first images does not reach {', '.join(resting)}; only batches that do move it" in (
        " ".join(text.split())
    )


class Frozen(kd.Term):
    """Holds a layer that nobody trains."""

    uses_teacher = False

    def setup(self, task):
        self.fixed = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, student, teacher, batch):
        return student.logits.sum()


# --- batches of unequal size


@pytest.fixture(scope="module")
def one_step(ten, tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one step")
    fit(of_ten(ten, folder, batch_size=10), folder, Accelerator(cpu=True))
    return load_student(folder, trust_code=True).state_dict() | {"row": read_metrics(folder)[0]}


def _equals(one_step, folder: Path) -> None:
    state = load_student(folder, trust_code=True).state_dict()
    for key, value in state.items():
        torch.testing.assert_close(value, one_step[key], rtol=1e-5, atol=1e-7)
    (row,) = read_metrics(folder)
    assert _numbers(row) == pytest.approx(_numbers(one_step["row"]), rel=1e-5)


@pytest.mark.parametrize("settings", [{"batch_size": 4, "accumulate": 3}, {"batch_size": 3, "accumulate": 9}])
def test_accumulated_batches_weigh_by_their_samples(ten, one_step, tmp_path, settings):
    fit(of_ten(ten, tmp_path, **settings), tmp_path, Accelerator(cpu=True))
    _equals(one_step, tmp_path)


def test_slices_of_accumulated_batches_do(one_step, of_two):
    _equals(one_step, of_two / "4+3+3")


def test_accumulated_batches_of_which_a_stage_drops_samples(ten, tmp_path):
    dropped = {"stream": f"decode | {HERE}:without(3)"}
    for name, settings in (("one", {"batch_size": 10}), ("three", {"batch_size": 4, "accumulate": 3})):
        fit(of_ten(ten, tmp_path / name, **dropped, **settings), tmp_path / name, Accelerator(cpu=True))
    one, three = (load_student(tmp_path / name, trust_code=True).state_dict() for name in ("one", "three"))
    for key, value in one.items():
        torch.testing.assert_close(three[key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps", ["4", "many"])
def test_the_environment_does_not_divide_gradients(ten, one_step, tmp_path, monkeypatch, steps):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "gradient_accumulation_steps", property(lambda self: 4))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
    fit(of_ten(ten, tmp_path, batch_size=10), tmp_path, accelerator)
    _equals(one_step, tmp_path)
