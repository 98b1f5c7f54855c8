"""A teacher from elsewhere: its classes put in the data's order, evaluated once, doubted where it cannot be right."""

from __future__ import annotations

import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from jobs import recipe_of, run, run_in_two
from rich.console import Console

import kdstream as kd
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.models.export import describe, save_student
from kdstream.training import teacher_check
from kdstream.training.job import Job
from kdstream.training.metrics import read_metrics
from kdstream.training.teacher_check import TEACHER_FILE, doubts

WORDS = [f"{word} hand" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")]
KD = {"kd": 1, "ce": 0.1}


def told(recipe):
    """What a job prints, without line breaks."""
    text = io.StringIO()
    Job(recipe, Accelerator(cpu=True), Display(Console(file=text, width=2000))).run()
    return text.getvalue()


def rename(digits, folder, names):
    """The digits with names for their classes."""
    shutil.copytree(digits, folder)
    about = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**about, "classes": names}))
    return folder


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """The digits with words for classes; a teacher that is often right, by the digits' numbers, by their words, and
    by their words in another order (its outputs too)."""
    folder = tmp_path_factory.mktemp("made")
    run(recipe_of(digits, folder / "numbers", student="resnet8", epochs=6, batch_size=24, optimizer={"lr": 0.1}))
    network = kd.load_student(folder / "numbers")
    state = {"mean": network.about["mean"], "std": network.about["std"]}
    save_student(folder / "words", network, classes=WORDS, **state)
    order = [8, 5, 4, 9, 1, 7, 6, 3, 2, 0]
    with torch.no_grad():
        network.fc.weight.copy_(network.fc.weight[order].clone())
        network.fc.bias.copy_(network.fc.bias[order].clone())
    save_student(folder / "turned", network, classes=[WORDS[number] for number in order], **state)
    data = rename(digits, folder / "data", WORDS)
    return SimpleNamespace(folder=folder, data=data, **{n: str(folder / n) for n in ("numbers", "words", "turned")})


# --- classes


LOSSES = {
    "coded": {
        "loss": {"kd": 1, "at": 100, "srrl": 1, "ce": 0.1},
        "stream": "decode | coded(hkl, delta=50, plan=auto) | augment(cifar, pad=1)",
    },
    "simkd": {"loss": "simkd"},
}
"""Who looks at a teacher: logits, maps, a plan, its classifier, copied or put into the student."""


def test_a_teacher_whose_classes_stand_in_another_order_teaches_the_same(made, tmp_path):
    settings = {"epochs": 1, "runs": LOSSES}
    data = shutil.copytree(made.data, tmp_path / "data", ignore=shutil.ignore_patterns("*.coding-*"))
    run(recipe_of(data, tmp_path / "straight", teacher=made.words, **settings))
    printed = told(recipe_of(data, tmp_path / "turned", teacher=made.turned, **settings))
    assert "another order ('eight hand', 'five hand', 'four hand', ...) than the data's ('zero hand'" in printed
    assert "warning" not in printed
    for name in LOSSES:
        straight, turned = (kd.load_student(tmp_path / kind / name) for kind in ("straight", "turned"))
        assert weights_hash(straight) == weights_hash(turned), name
        assert turned.classes == WORDS
    assert len(list(data.glob("*.bin"))) == 1, "one plan serves both"


def test_other_classes_are_refused_and_same_takes_them(digits, made, tmp_path):
    data = rename(digits, tmp_path / "data", [*WORDS[:9], "ten hand"])
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"^teacher: .*words is for other classes than the data: 'ten hand' of the data"
    ):
        run(recipe_of(data, out, teacher=made.words, loss=KD))
    with pytest.raises(UserError, match=r"student: .*words is for other .* by student\.classes=\[\.\.\.\].*"):
        run(recipe_of(data, out, student=made.words))
    assert not out.exists()
    wanted = {"weights": made.words, "classes": "same"}
    assert "warning" not in told(recipe_of(data, out, teacher=wanted, loss=KD, epochs=1))


def test_numbers_are_noted_and_what_they_hide_is_found(digits, made, tmp_path):
    printed = told(recipe_of(digits, tmp_path / "right", teacher=made.words, loss=KD, epochs=1))
    assert "have names ('zero hand', 'one hand', 'two hand', ...), the data's are only numbers: they cannot" in printed
    assert "warning" not in printed
    printed = told(recipe_of(digits, tmp_path / "wrong", teacher=made.turned, loss=KD, epochs=1))
    assert re.search(
        r"warning: teacher resnet8: it gets \d+\.\d % on the val split, near chance \(\d+\.\d %\)", printed
    )
    assert "near chance" in (tmp_path / "wrong" / "report.html").read_text()


def test_a_student_that_starts_from_an_export_brings_its_classes_in_order(made, tmp_path):
    out = tmp_path / "out"
    printed = told(recipe_of(made.data, out, student=made.turned, epochs=1, optimizer={"lr": 1e-9}))
    assert "student: " in printed
    assert "its outputs are put in the data's order" in printed
    (straight,) = run(recipe_of(made.data, tmp_path / "other", student=made.words, epochs=1, optimizer={"lr": 1e-9}))
    assert read_metrics(out)[-1]["val/top1"] == straight["top1"]
    with pytest.raises(UserError, match=r"student\.classes says which outputs of given weights .*no student\.weights"):
        run(recipe_of(made.data, tmp_path / "x", student={"model": "resnet8", "classes": "same"}))


@pytest.fixture
def some(digits, retell, tmp_path):
    """A function: the digits 0, 3 and 7 as somebody else's tars, under the labels that one gives them."""

    def make(*labels):
        for split in ("train", "val"):
            retell(
                open_shards(digits / split), dict(zip((0, 3, 7), labels, strict=True)), tmp_path / f"some/{split}/0.tar"
            )
        return tmp_path / "some"

    return make


def test_some_of_a_teachers_classes_in_its_numbering(some, made, tmp_path):
    some, out = some(0, 3, 7), tmp_path / "out"
    with pytest.raises(
        UserError, match=r"is for 10 classes, the data has 8 \(0 to 7\): .* set data\.num_classes=10; el"
    ):
        run(recipe_of(some, out, teacher=made.numbers, loss=KD))
    with pytest.raises(UserError, match=r"data\.num_classes=7: some/train has a sample of class 7"):
        run(recipe_of(some, out, data={"path": str(some), "num_classes": 7}))
    assert not out.exists()
    data = {"path": str(some), "num_classes": 10}
    losses = {"crd": {"loss": {"crd": 0.8, "kd": 1}}, **LOSSES}
    printed = told(recipe_of(some, out, data=data, teacher=made.numbers, epochs=1, runs=losses))
    assert "some/train has samples of 3 of 10 classes, none of '1', '2', '4', '5', '6', ..." in printed
    assert "warning" not in printed
    for name in losses:
        student = kd.load_student(out / name)
        assert (student.spec["num_classes"], student.classes) == (10, [str(number) for number in range(10)])
    # A teacher that is trained for such data has as many outputs.
    trained = {"model": "resnet8", "train": {"epochs": 1}}
    run(recipe_of(some, tmp_path / "r" / "t", data=data, teacher=trained, loss=KD, epochs=1, assistants=["resnet8"]))
    (teacher, _) = sorted((tmp_path / "r" / "teachers").iterdir())
    assert kd.load_student(teacher).spec["num_classes"] == 10


@pytest.mark.parametrize("choice", [None, ["zero hand", "three_hand", 7]])
def test_some_of_a_teachers_classes_by_name_or_number(some, made, tmp_path, choice):
    data = some(0, 1, 2)
    teacher = {"weights": made.words, "classes": choice}
    recipe = recipe_of(data, tmp_path / "out", teacher=teacher, epochs=1, runs=LOSSES)
    if choice is None:
        with pytest.raises(UserError, match=r"is for 10 classes, the data has 3 .*teacher\.classes=\[\.\.\.\]"):
            run(recipe)
        return
    printed = told(recipe)
    assert "'0' = output 0 'zero hand', '1' = output 3 'three hand', '2' = output 7 'seven hand'" in printed
    assert "warning" not in printed
    assert json.loads((tmp_path / "out" / TEACHER_FILE).read_text())["top1"] > 90
    assert kd.load_student(tmp_path / "out" / "simkd").spec["num_classes"] == 3


# --- the data


def test_a_class_that_one_split_lacks(make_tars, tmp_path):
    make_tars(tmp_path / "set", train=[0, 1] * 12, val=[0, 1, 2])
    with pytest.raises(UserError, match=r"val holds class 2, train has 2 .*as data\.num_classes=3$"):
        run(recipe_of(tmp_path / "set", tmp_path / "out"))
    data = {"path": str(tmp_path / "set"), "num_classes": 3}
    printed = told(recipe_of(tmp_path / "set", tmp_path / "out", data=data, epochs=1, batch_size=12))
    assert "set/train has samples of 2 of 3 classes, none of '2'" in printed
    assert "set/val" not in printed
    assert kd.load_student(tmp_path / "out").spec["num_classes"] == 3


def test_data_of_one_class(make_tars, tmp_path):
    make_tars(tmp_path / "zero", train=[0] * 24, val=[0])
    with pytest.raises(
        UserError, match=r"zero: all samples of train are of one class \('0'\): there is nothing to tell"
    ):
        run(recipe_of(tmp_path / "zero", tmp_path / "out"))
    make_tars(tmp_path / "five", train=[5] * 24, val=[5, 1])
    printed = told(recipe_of(tmp_path / "five", tmp_path / "out", epochs=1, batch_size=12))
    assert "five/train has samples of only one ('5') of 6 classes, none of '0', '1', '2', '3', '4'" in printed


def test_named_classes_are_as_many_as_they_are(made, tmp_path):
    data = {"path": str(made.data), "num_classes": 12}
    with pytest.raises(
        UserError, match=r"^data\.num_classes=12: data names its 10 classes, so there are not 12: a numb"
    ):
        run(recipe_of(made.data, tmp_path / "out", data=data))


# --- the evaluation


def test_a_loaded_teacher_is_evaluated_once_and_stands_in_the_table(digits, made, tmp_path, monkeypatch):
    passes = []
    measure = teacher_check._measure
    monkeypatch.setattr(teacher_check, "_measure", lambda *a: passes.append(1) or measure(*a))
    out = tmp_path / "out"
    settings = {"teacher": made.numbers, "epochs": 1}
    printed = told(recipe_of(digits, out, runs={"ce": {}, "kd": {"loss": KD}}, **settings))
    expected = json.loads((made.folder / "numbers" / "result.json").read_text())
    (row,) = re.findall(r"teacher resnet8 +resnet8 +([\d,]+) +([\d.]+)", printed)
    assert row == (f"{expected['params']:,}", f"{expected['top1']:.2f}")
    assert "teacher resnet8" in (out / "report.html").read_text()
    assert passes == [1]
    printed = told(recipe_of(digits, out, runs={"ce": {}, "kd": {"loss": KD}, "at": {"loss": "at"}}, **settings))
    assert len(re.findall("teacher resnet8 +resnet8", printed)) == 1
    assert passes == [1]
    # For another teacher what was kept does not count; and a loss that looks at none needs none.
    (out / "kd" / "result.json").unlink()
    run(recipe_of(digits, tmp_path / "other", teacher=made.words, loss=KD, epochs=1))
    assert passes == [1, 1]
    assert "teacher resnet8" not in told(recipe_of(digits, tmp_path / "ce", **settings))
    assert passes == [1, 1]


def test_it_changes_no_bit_of_the_training(digits, made, tmp_path):
    hashes = []
    for kept in (False, True):
        out = tmp_path / str(kept)
        if kept:
            out.mkdir()
            shutil.copy(tmp_path / "False" / TEACHER_FILE, out)
        run(recipe_of(digits, out, teacher=made.numbers, loss=KD, epochs=1))
        hashes.append((weights_hash(kd.load_student(out)), (out / "metrics.jsonl").read_bytes()))
    assert hashes[0] == hashes[1]
    assert (tmp_path / "True" / TEACHER_FILE).read_bytes() == (tmp_path / "False" / TEACHER_FILE).read_bytes()


def test_two_processes_find_the_same(digits, made, tmp_path):
    settings = {"teacher": made.numbers, "loss": KD, "epochs": 1, "eval_batch_size": 50}
    run(recipe_of(digits, tmp_path / "one", **settings))
    run_in_two(recipe_of(digits, tmp_path / "two", **settings))
    one, two = (json.loads((tmp_path / name / TEACHER_FILE).read_text()) for name in ("one", "two"))
    assert one == two


def test_a_teacher_is_given_the_images_it_was_trained_with(digits, made, tmp_path):
    expected = json.loads((made.folder / "numbers" / "result.json").read_text())["top1"]
    data = {"path": str(digits), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.9, 1.0)}
    run(recipe_of(digits, tmp_path / "out", data=data, teacher=made.numbers, loss=KD, epochs=1))
    assert json.loads((tmp_path / "out" / TEACHER_FILE).read_text())["top1"] == expected


# --- doubts


def matrix(rows):
    return torch.tensor(rows, dtype=torch.int64)


def swapped(count, images, *pairs):
    table = np.eye(count, dtype=np.int64) * images
    for a, b in pairs:
        table[[a, b]] = table[[b, a]]
    return torch.from_numpy(table)


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        (swapped(3, 4), None),  # always right
        (swapped(2, 1), None),  # two images say nothing against it
        (matrix([[30, 20], [25, 25]]), r"near chance \(50\.0 %\)"),  # 55 % of two classes, by accident
        (matrix([[4000, 1000], [1000, 4000]]), None),
        (matrix([[900, 0], [100, 0]]), r"gets 90\.0 % .* near chance \(90\.0 %\)"),  # always the same answer
        (matrix([[880, 20], [60, 40]]), None),  # 92 % where one class has 90 %
        (matrix([[860, 40], [60, 40]]), None),  # right less often than the most frequent class, and not by accident
        (torch.full((10, 10), 10), r"gets 10\.0 % .*near chance \(10\.0 %\): wrong classes"),
        (torch.full((1000, 1000), 5) + torch.eye(1000, dtype=torch.int64) * 10, r"near chance"),  # 0.3 of 0.1 %
        (torch.full((10, 10), 8) + torch.eye(10, dtype=torch.int64) * 20, None),  # 28 %, a weak one
        (swapped(4, 50, (0, 1), (2, 3)), r"gets 0\.0 % .* near chance \(25\.0 %\) \(it takes 'a' for 'b', 'b' for 'a'"),
        (swapped(10, 50, (2, 4)), r"gets 80\.0 % .* images of 2 classes for one another \('c' for 'e', 'e' for 'c'\)"),
        (swapped(10, 4, (2, 4)), None),  # too few images
        (matrix([[50, 0, 0], [0, 10, 40], [0, 0, 50]]), None),  # takes one class for another, but not that for it
        (torch.zeros(3, 3, dtype=torch.int64), None),
    ],
)
def test_doubts(confusion, expected):
    said = doubts(confusion, [chr(97 + number) if number < 26 else str(number) for number in range(1000)], "val")
    assert (said is None) == (expected is None), said
    assert expected is None or re.search(expected, said), said


def test_a_library_whose_classes_are_called_otherwise_is_only_noted(monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    from kdstream import recipe as settings
    from kdstream.models import pretrained
    from kdstream.training.networks import make_teacher

    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    network = build("resnet18", 1000)
    monkeypatch.setattr(
        pretrained, "_published", lambda *a: describe(network, {"spec": network.spec, "classes": list(names)})
    )
    wanted = settings.Teacher(model="resnet18", options={"weights": "DEFAULT"})
    codes = [f"n{number:08}" for number in range(1000)]
    assert "called otherwise" in make_teacher(wanted, 1000, codes).note
    assert make_teacher(wanted, 1000, list(names)).note is None
    with pytest.raises(UserError, match=r"the weights of resnet18 is for other classes .*by teacher\.classes="):
        make_teacher(wanted, 10, codes[:10])
    some = make_teacher(wanted, 3, [names[2], names[700], names[0]])
    assert "3 classes of its 1000 are the data's, by name" in some.note
    assert some.network.fc.weight.shape == (3, 512)
