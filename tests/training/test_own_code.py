"""The user's own code counts in what finds and guards trainings; other recipes keep the names that they had."""

from __future__ import annotations

import sys

import pytest
from jobs import recipe_of, run

from kdstream.errors import UserError
from kdstream.training.own_code import code_mark, own_code

CODE = """
import torch
from torch import nn
import kdstream as kd
from kdstream.objectives import Term

FACTOR = 1.0

@kd.stage
def dim(samples, by=1.0):
    for sample in samples:
        sample["image"] = (sample["image"] * (FACTOR * by)).to(torch.uint8)
        yield sample

def at(which):
    return lambda logits, label: torch.full_like(label, which)

class Loss(Term):
    def forward(self, student, teacher, batch):
        return 1.0 * nn.functional.cross_entropy(student.logits, batch.label)

def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes))
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the user's file, and makes Python forget the one before."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two files of one second and size would share it

    def write(old="", new=""):
        (tmp_path / "code_of_mine.py").write_text(CODE.replace(old, new) if old else CODE)
        sys.modules.pop("code_of_mine", None)

    write()
    yield write
    sys.modules.pop("code_of_mine", None)


STREAM = "decode | code_of_mine:dim(by=0.5) | coded(code_of_mine:at(1), delta=50) | augment(cifar)"


def test_what_a_recipe_names_is_found(digits, tmp_path, write):
    plain = recipe_of(digits, tmp_path)
    assert own_code(plain) == {}
    assert code_mark(plain) == ""
    assert own_code(recipe_of(digits, tmp_path, loss={"kdstream.objectives.kd:KnowledgeDistillation": 1})) == {}
    everything = {
        "stream": STREAM,
        "eval_stream": "decode | code_of_mine:dim",
        "loss": {"code_of_mine:Loss": 1.0, "dml": {"peers": ["resnet8"]}},
        "student": "code_of_mine:net",
        "teacher": {"model": "resnet8"},
    }
    recipe = recipe_of(digits, tmp_path, **everything)
    names = ["code_of_mine:Loss", "code_of_mine:at", "code_of_mine:dim", "code_of_mine:net"]
    before = own_code(recipe)
    assert list(before) == names
    write()
    assert own_code(recipe) == before
    for old, new, changed in [
        ("FACTOR = 1.0", "FACTOR = 2.0", {"code_of_mine:dim"}),
        ("label, which", "label, 1 + which", {"code_of_mine:at"}),
        ("1.0 * nn", "2.0 * nn", {"code_of_mine:Loss"}),
        ("nn.Flatten()", "nn.Flatten(), nn.Identity()", {"code_of_mine:net"}),
    ]:
        write(old, new)
        after = own_code(recipe)
        assert {name for name in names if after[name] != before[name]} == changed
    write("import kdstream", "# only a note\nimport kdstream")
    assert own_code(recipe) == before


def test_a_training_with_other_code_is_not_continued(digits, tmp_path, write):
    recipe = recipe_of(
        digits, tmp_path / "out", stream="decode | code_of_mine:dim", student="code_of_mine:net", epochs=1
    )
    (result,) = run(recipe)
    assert f"{recipe.fingerprint()}{code_mark(recipe)}-" in result["fingerprint"]
    assert run(recipe) == [result]
    write("FACTOR = 1.0", "FACTOR = 0.25")
    with pytest.raises(UserError, match=r"other code: code_of_mine:dim.*has changed since"):
        run(recipe)
    # What was trained before code counted is continued, as it was then.
    path = tmp_path / "out" / "result.json"
    path.write_text(path.read_text().replace(result["fingerprint"], result["fingerprint"].replace("+", "", 1)))
    with pytest.raises(UserError, match="other settings"):
        run(recipe)
    head, _, tail = result["fingerprint"].partition("+")
    path.write_text(path.read_text().replace(result["fingerprint"].replace("+", "", 1), head + tail[16:]))
    assert run(recipe)[0]["top1"] == result["top1"]


def test_a_kept_teacher_is_found_by_its_code(digits, tmp_path, write):
    recipe = recipe_of(
        digits,
        tmp_path / "runs" / "a",
        stream="decode | code_of_mine:dim",
        teacher={"model": "code_of_mine:net", "train": {}},
        student="code_of_mine:net",
        loss={"ce": 1, "kd": 1},
        epochs=1,
    )
    run(recipe)
    teachers = tmp_path / "runs" / "teachers"
    assert len(list(teachers.iterdir())) == 1
    write("FACTOR = 1.0", "FACTOR = 0.25")
    run(recipe.model_copy(update={"out": str(tmp_path / "runs" / "b")}))
    assert len(list(teachers.iterdir())) == 2
