"""The loop: it learns, resumes bit by bit after any death, stops politely, and says what went wrong."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from every import EVERY
from jobs import run_in_two
from processes import alone
from torch import nn

import kdstream as kd
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models.export import load_student
from kdstream.recipe import make_recipe
from kdstream.training.distiller import Distiller
from kdstream.training.job import Job
from kdstream.training.loop import Trainer
from kdstream.training.metrics import read_metrics
from kdstream.training.stop import StopFlag, Stopped


def recipe_of(digits, **settings):
    base = {
        "data": {"path": str(digits)},
        "student": "resnet8",
        "loss": "ce",
        "stream": "decode | augment(cifar, pad=1, flip=false)",
        "epochs": 2,
        "batch_size": 48,
        "workers": 0,
        "optimizer": {"lr": 0.1},
        "schedule": {"name": "cosine", "warmup": 0.5},
    }
    return make_recipe({**base, **settings}, "test")


def display():
    return Display(enabled=False)


def train(recipe, folder, teacher=None, stop=None):
    data = Path(recipe.data.path)
    return Trainer(
        recipe, folder, open_shards(data / "train"), open_shards(data / "val"), teacher, Accelerator(cpu=True),
        display(), stop or StopFlag(),
    ).fit()  # fmt: skip


def job(recipe, **settings):
    return Job(recipe, Accelerator(cpu=True), display(), **settings).run()


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    """The folder of a small trained teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    result = train(recipe_of(digits, epochs=8, student="resnet14"), folder)
    assert result["top1"] > 60
    return folder


def test_a_run_leaves_everything_behind(digits, teacher):
    names = {path.name for path in teacher.iterdir()}
    assert names >= {
        "student.safetensors",
        "student.json",
        "metrics.jsonl",
        "speed.jsonl",
        "result.json",
        "last.pt",
        "best.pt",
    }
    rows = read_metrics(teacher)
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["step"] == 8 * 5
    result = json.loads((teacher / "result.json").read_text())
    student = load_student(teacher)
    stream = kd.Stream(digits / "val", 100, train=False) | "decode | normalize"
    right = sum(int((student(b.image).argmax(1) == b.label).sum()) for b in stream)
    assert 100 * right / 240 == pytest.approx(result["top1"])
    assert student.classes == [str(i) for i in range(10)]


LEARNING = [
    ({"ce": 0.1, "kd": 0.9}, "decode | augment(cifar, pad=1) | coded(hkl, delta=50)"),
    ({"kd": 1.0}, "decode | coded(hkl, delta=50) | augment(cifar, pad=1)"),
    ({"ce": 1.0, "kd": 0.5, "fitnet": {"weight": 100}}, "decode"),
]
if EVERY:
    LEARNING += [
        ({"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}}, "decode | augment(cifar, pad=1)"),
        ({"ce": 1.0, "at": 1000}, "decode | augment(cifar, pad=1) | coded(random(10, 90))"),
    ]


@pytest.mark.parametrize(("loss", "stream"), LEARNING)
def test_distillation_learns_plain_and_coded(digits, teacher, tmp_path, loss, stream):
    recipe = recipe_of(digits, loss=loss, stream=stream, teacher=str(teacher), epochs=5, out=str(tmp_path / "out"))
    (result,) = job(recipe)
    rows = read_metrics(tmp_path / "out")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["train/top1"] > max(20, 1.5 * rows[0]["train/top1"])
    assert 0 < rows[-1]["teacher/entropy"] < 2.4
    coded = "coded" in stream
    assert ("qualities" in result) == coded
    if coded:
        assert sum(result["qualities"].values()) == 240
    assert "Training loss" in (tmp_path / "out" / "report.html").read_text()


def test_a_coded_teacher_is_flatter(digits, teacher, tmp_path):
    loss = {"kd": 1.0}
    (plain,) = job(recipe_of(digits, loss=loss, teacher=str(teacher), epochs=1, out=str(tmp_path / "a")))
    stream = "decode | augment(cifar, pad=1, flip=false) | coded(hkl)"
    (coded,) = job(recipe_of(digits, loss=loss, stream=stream, teacher=str(teacher), epochs=1, out=str(tmp_path / "b")))
    assert coded["teacher"]["entropy"][0] > plain["teacher"]["entropy"][0]
    assert coded["teacher"]["gt_probability"][0] < plain["teacher"]["gt_probability"][0]


def test_fitnet_in_two_stages(digits, teacher, tmp_path):
    loss = {"kd": 1.0, "fitnet": {"stages": 2, "epochs": 2, "lr": 0.01, "milestones": [1]}}
    recipe = recipe_of(digits, loss=loss, teacher=str(teacher), out=str(tmp_path / "out"), export="best")
    (result,) = job(recipe)
    rows = read_metrics(tmp_path / "out")
    assert [row["phase"] for row in rows] == ["fitnet.hint", "fitnet.hint", "main", "main"]
    assert rows[0]["lr"] == 0.01
    assert rows[1]["lr"] == pytest.approx(0.001)
    assert rows[1]["loss/fitnet"] < rows[0]["loss/fitnet"]
    assert "loss/kd" not in rows[0]
    assert "loss/fitnet" not in rows[2]
    assert result["top1"] == result["best_top1"] == max(rows[2]["val/top1"], rows[3]["val/top1"])


def test_a_phase_trains_what_its_loss_reaches_and_nothing_else(digits, teacher):
    torch.manual_seed(0)
    student = kd.models.build("resnet8", 10)
    from kdstream.models.taps import Tapped
    from kdstream.objectives import Task, parse_loss

    tapped, strong = Tapped(student, ["block2"]), Tapped(load_student(teacher), ["block2"]).eval()
    terms = parse_loss({"ce": 1, "fitnet": {"stages": 2}})
    images = torch.randn(2, 3, 16, 16)
    probe = kd.Batch(images, torch.tensor([1, 2]), torch.tensor([0, 1]), teacher=strong(images).detach())
    for _, _, term in terms:
        term.setup(Task(10, 240, 1, tapped.eval()(images).detach(), probe.teacher))
    student.conv1.weight.requires_grad_(False)  # frozen by the user: stays so in every phase
    distiller = Distiller(tapped, terms)
    before = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
    hint, main = distiller.stages()

    def moved(stage):
        """By a step of a stage, with weight decay."""
        optimizer = torch.optim.SGD(distiller.begin(stage, probe), 0.1, weight_decay=0.1)
        assert all(buffer.equal(before[name]) for name, buffer in distiller.named_buffers())
        start = {name: p.detach().clone() for name, p in distiller.named_parameters()}
        distiller(probe)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, buffer in distiller.named_buffers():
            buffer.copy_(before[name])
        return {name for name, p in distiller.named_parameters() if not p.equal(start[name])}

    names = moved(hint)
    assert distiller.unreached() == ["student.layer3", "student.fc"]
    assert distiller.frozen() == ["student.conv1"]
    assert any(name.startswith("terms.1.connector") for name in names)
    assert any("layer2" in name for name in names)
    assert not any("layer3" in name or "fc" in name or name.endswith("module.conv1.weight") for name in names)
    names = moved(main)
    assert any("fc" in name for name in names)
    assert not any(name.startswith("terms.1") or name.endswith("module.conv1.weight") for name in names)
    assert distiller.unreached() == ["fitnet"]


class Reuse(kd.Term):
    """Surgery, for the test: the student's features through the frozen classifier of the teacher; plus a peer."""

    student_taps = ("penultimate",)

    def adapt(self, student, teacher, image, build):
        student.fc.load_state_dict(teacher.fc.state_dict())
        student.fc.requires_grad_(False)
        return student

    def setup(self, task):
        self.task = task
        self.peer = task.build("resnet8", task.num_classes)
        self.epochs_seen = []

    def peers(self):
        return {"peer": self.peer}

    def begin_epoch(self, epoch, epochs):
        self.epochs_seen.append((epoch, epochs))

    def forward(self, student, teacher, batch):
        assert student.features["penultimate"].shape == (len(batch), 64)
        again = self.task.student(batch.image)  # a second pass within a step
        loss = nn.functional.cross_entropy(again.logits, batch.label)
        return loss + nn.functional.cross_entropy(self.peer(batch.image), batch.label)


def test_surgery_peers_epochs_and_further_passes(digits, teacher, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    name = f"{Path(__file__).stem}:Reuse"
    recipe = recipe_of(digits, loss={name: 1.0}, teacher=str(teacher), out=str(tmp_path / "out"))
    (result,) = job(recipe)
    rows = read_metrics(tmp_path / "out")
    assert {"val/top1", "val/peer/top1"} <= set(rows[-1])
    assert result["network"] == "student"
    assert result["top1"] == rows[-1]["val/top1"]
    state = torch.load(tmp_path / "out" / "last.pt", weights_only=True)["distiller"]
    assert state["student.module.fc.weight"].equal(load_student(teacher).fc.weight)


def test_accumulated_batches_equal_one_large_batch(digits, tmp_path):
    # resnet without batch norm statistics in the way: compare one step of a linear model.
    monkey = {
        "student": f"{Path(__file__).stem}:linear",
        "stream": "decode",
        "schedule": {"name": "constant"},
        "epochs": 1,
    }
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        train(recipe_of(digits, batch_size=240, **monkey), tmp_path / "one")
        train(recipe_of(digits, batch_size=48, accumulate=5, **monkey), tmp_path / "five")
    finally:
        sys.path.pop(0)
    a, b = (load_student(tmp_path / name, trust_code=True).state_dict() for name in ("one", "five"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


def linear(num_classes):
    """A network without batch norm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))


def test_a_finished_run_is_not_repeated_and_another_recipe_is_refused(digits, teacher, tmp_path):
    recipe = recipe_of(digits, out=str(tmp_path / "out"), epochs=1)
    (first,) = job(recipe)
    stamp = (tmp_path / "out" / "last.pt").stat().st_mtime_ns
    (again,) = job(recipe)
    assert again == first
    assert (tmp_path / "out" / "last.pt").stat().st_mtime_ns == stamp
    other = recipe_of(digits, out=str(tmp_path / "out"), epochs=3)
    with pytest.raises(
        UserError, match=r"other settings \(different: epochs: 1 -> 3\): choose another out=FOLDER, or --fresh"
    ):
        job(other)
    assert len(read_metrics(tmp_path / "out")) == 1
    job(other, fresh=True)
    assert len(read_metrics(tmp_path / "out")) == 3


def test_fresh_deletes_only_what_kdstream_made(digits, tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="was not made by kdstream"):
        job(recipe_of(digits, out=str(tmp_path), epochs=1), fresh=True)
    assert (tmp_path / "precious.txt").exists()


def test_several_runs_share_a_trained_teacher(digits, tmp_path):
    recipe = recipe_of(
        digits,
        teacher={"model": "resnet8", "train": {"epochs": 1}},
        epochs=1,
        runs={"labels": {}, "kd": {"loss": {"kd": 1.0}}},
        out=str(tmp_path / "runs" / "x"),
    )
    results = job(recipe)
    assert [result["name"] for result in results] == ["labels", "kd"]
    (folder,) = (tmp_path / "runs" / "teachers").iterdir()
    stamp = (folder / "last.pt").stat().st_mtime_ns
    job(recipe, fresh=True)
    assert (folder / "last.pt").stat().st_mtime_ns == stamp
    page = (tmp_path / "runs" / "x" / "report.html").read_text()
    assert "labels" in page
    assert "kd" in page


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_continues(digits, tmp_path, number):
    recipe = recipe_of(digits, epochs=4)
    whole = train(recipe, tmp_path / "whole")
    started = threading.Event()

    def watch():
        while not (tmp_path / "cut" / "metrics.jsonl").exists() or not (tmp_path / "cut" / "last.pt").exists():
            time.sleep(0.01)
        started.set()
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()
    with pytest.raises(Stopped) as stopped:
        train(recipe, tmp_path / "cut")
    assert stopped.value.signal == number
    assert started.is_set()
    assert not (tmp_path / "cut" / "result.json").exists()
    result = train(recipe, tmp_path / "cut")
    assert result["top1"] == whole["top1"]
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def finish(recipe, out):
    """In another process, as those that are killed."""
    process = alone(job, recipe.model_copy(update={"out": str(out)}))
    process.join(600)
    assert process.exitcode == 0


def test_killed_at_random_instants_it_ends_with_the_same_bits(digits, teacher, tmp_path):
    recipe = recipe_of(
        digits,
        teacher=str(teacher),
        epochs=4,
        loss={"ce": 0.5, "kd": 1.0, "fitnet": {"stages": 2, "epochs": 2, "lr": 0.01}},
        stream="decode | augment(cifar, pad=1) | coded(hkl, delta=50)",
        checkpoint_seconds=0,
        workers=1,
    )
    alone(os.getpid).join()  # the server of processes is there, and does not count
    began = time.monotonic()
    finish(recipe, tmp_path / "whole")
    length = time.monotonic() - began
    wanted, kills, instants = int(os.environ.get("KDSTREAM_TEST_KILLS", "3")), 0, random.Random(0)
    while kills < wanted:
        process = alone(job, recipe.model_copy(update={"out": str(tmp_path / "cut")}))
        process.join(instants.uniform(0.02, 1.0) * length * min(0.5, 5 / wanted))
        if process.exitcode is not None:
            break  # it finished before the kill
        process.kill()
        process.join()
        kills += 1
    finish(recipe, tmp_path / "cut")
    assert kills >= wanted / 2  # the others would have come after its end
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ends = [json.loads((tmp_path / side / "result.json").read_text()) for side in ("whole", "cut")]
    for end in ends:
        del end["seconds"], end["images_per_s"], end["memory"]
    assert ends[0] == ends[1]


def test_a_loss_that_is_not_finite_names_step_and_term(digits, tmp_path):
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        recipe = recipe_of(digits, loss={"ce": 1.0, f"{Path(__file__).stem}:Explodes": 0.5})
        where = r"not finite at step 3 of epoch 1 \(.*Explodes = nan\)"
        with pytest.raises(UserError, match=rf"{where}: lower optimizer.lr \(0.1\), lengthen") as error:
            train(recipe, tmp_path / "a")
        assert "checkpoint" not in str(error.value), "there is none"
        with pytest.raises(UserError, match=r"clip; the last good checkpoint is .*last.pt"):
            train(recipe.model_copy(update={"checkpoint_seconds": 0.0}), tmp_path / "b")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"ce": 1e39}}, r"step 1 of epoch 1 .*: nothing was trained yet: see to the loss, its weights, and"),
        ({"optimizer": {"lr": 1e30, "clip": 5}}, r": lower optimizer.lr \(1e\+30\), .*lower optimizer.clip \(5\)$"),
    ],
)
def test_advice_names_causes_that_apply(digits, tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as error:
        train(recipe_of(digits, epochs=1, **settings), tmp_path)
    assert "checkpoint" not in str(error.value)


class Explodes(kd.Term):
    """Turns to NaN at its fifth call: the probe before training is the first."""

    uses_teacher = False
    calls = 0

    def forward(self, student, teacher, batch):
        self.calls += 1
        return student.logits.sum() * (float("nan") if self.calls == 4 else 0.0)


def test_two_processes_train_as_one_does(digits, teacher, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for world in (1, 2):
        # No batch norm in the student, since its statistics are per process: the gradients must then be equal.
        recipe = recipe_of(
            digits,
            teacher=str(teacher),
            student=f"{Path(__file__).stem}:linear",
            loss={"ce": 0.4, "kd": 0.4, "dist": 0.2},  # dist compares the samples of a batch
            stream="decode | augment(cifar, pad=1) | coded(hkl, delta=50)",
            batch_size=49,
            epochs=2,
            optimizer={"lr": 0.02},
            out=str(tmp_path / str(world)),
        )
        run_in_two(recipe) if world == 2 else job(recipe)
    one, two = (load_student(tmp_path / str(world), trust_code=True) for world in (1, 2))
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    for a, b in zip(read_metrics(tmp_path / "1"), read_metrics(tmp_path / "2"), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            same = a[key] == b[key] if isinstance(a[key], str) else a[key] == pytest.approx(b[key], rel=1e-4)
            assert same, key


def test_the_loss_needs_a_teacher(digits, tmp_path):
    with pytest.raises(UserError, match=r"the loss \(kd\) needs a teacher"):
        train(recipe_of(digits, loss={"kd": 1}), tmp_path)


def test_resuming_between_phases_and_random_numbers_of_terms(digits, teacher, tmp_path, monkeypatch):
    """Stop exactly after the last epoch of a phase; a term that draws from torch's generator sees the same numbers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    loss = {"fitnet": {"stages": 2, "epochs": 1, "lr": 0.01}, f"{Path(__file__).stem}:Noisy": 1.0, "ce": 1.0}
    recipe = recipe_of(digits, loss=loss, teacher=str(teacher), out=str(tmp_path / "whole"))
    job(recipe)
    save = Trainer._save

    def save_and_die(self, optimizer):
        save(self, optimizer)
        if self.global_epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", save_and_die)
    cut = recipe.model_copy(update={"out": str(tmp_path / "cut"), "workers": 1})
    with pytest.raises(KeyboardInterrupt):
        job(cut)
    monkeypatch.setattr(Trainer, "_save", save)
    job(cut)
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class Noisy(kd.Term):
    """Dropout, in effect."""

    uses_teacher = False

    def forward(self, student, teacher, batch):
        return nn.functional.dropout(student.logits, 0.5).square().mean()


def test_a_coded_recipe_shares_its_teacher_with_the_plain_one(digits, tmp_path):
    settings = {"teacher": {"model": "resnet8", "train": {"epochs": 1}}, "loss": "kd", "epochs": 1}
    job(recipe_of(digits, **settings, out=str(tmp_path / "a")))
    coded = recipe_of(digits, **settings, out=str(tmp_path / "b"))
    job(coded.model_copy(update={"stream": f"{coded.stream} | coded(fixed(30))"}))
    assert len(list((tmp_path / "teachers").iterdir())) == 1


def test_mean_and_std_of_the_recipe_serve_training_evaluation_and_export(digits, tmp_path):
    data = {"path": str(digits), "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    job(recipe_of(digits, data=data, epochs=1, out=str(tmp_path)))
    assert load_student(tmp_path).about["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(UserError, match=r"normalize has no settings: set data.mean"):
        job(recipe_of(digits, stream="decode | normalize(mean=[0, 0, 0], std=[1, 1, 1])"))


def test_memory_format_does_not_change_what_is_learnt(digits, teacher, tmp_path):
    settings = {"teacher": str(teacher), "loss": {"kd": 1.0, "at": 100}, "epochs": 1}
    (plain,) = job(recipe_of(digits, **settings, out=str(tmp_path / "a")))
    (last,) = job(recipe_of(digits, **settings, channels_last=True, out=str(tmp_path / "b")))
    a, b = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=1e-3)
    assert plain["teacher"]["entropy"] == pytest.approx(last["teacher"]["entropy"], rel=1e-4)


def test_a_recipe_with_a_coding_plan(digits, teacher, tmp_path):
    stream = "decode | augment(cifar, pad=1) | coded(hkl, delta=50, plan=auto)"
    recipe = recipe_of(digits, teacher=str(teacher), loss="kd", epochs=1, stream=stream, out=str(tmp_path / "out"))
    others = set(digits.glob("train.coding-*.bin"))  # of tests that share the data set
    (result,) = job(recipe)
    assert sum(result["qualities"].values()) == 240
    (plan,) = set(digits.glob("train.coding-*.bin")) - others
    chosen = torch.frombuffer(bytearray(plan.read_bytes()), dtype=torch.uint8)
    assert result["qualities"].get("0", 0) == int((chosen == 0).sum())
