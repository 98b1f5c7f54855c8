"""The folder of a training: finished, half-written, or of another training, whose differences are named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.recipe import make_recipe
from kdstream.training import folder as module
from kdstream.training.folder import RECIPE, RESULT, Identity, locked, which_teacher


def identity(folder, data: str = "a" * 64, teacher: str | None = "b" * 64, **settings) -> Identity:
    base = {"data": {"path": "nowhere"}, "teacher": "resnet8", "student": "resnet8", "loss": "kd", "epochs": 2}
    recipe = make_recipe({**base, **settings}, "test")
    known = None if teacher is None else SimpleNamespace(hash=teacher)
    return Identity.of(recipe, folder, SimpleNamespace(fingerprint=data), known)


def test_a_result_counts_when_it_is_whole(tmp_path):
    own = identity(tmp_path)
    assert own.finished() is None
    result = {"top1": 61.5, "fingerprint": own.fingerprint}
    text = json.dumps(result)
    for half in ("", text[: len(text) // 2], "[]", '{"top1": "much"}'):
        (tmp_path / RESULT).write_text(half)
        assert own.finished() is None
    (tmp_path / RESULT).write_text(text)
    assert own.finished() == result


def test_what_decides_the_result_and_nothing_else_makes_another_training(tmp_path):
    own = identity(tmp_path)
    for same in (identity(tmp_path, workers=3), identity(tmp_path, name="other"), identity(tmp_path, out="elsewhere")):
        own.check_same(same.fingerprint)
    (tmp_path / RECIPE).write_text(identity(tmp_path, epochs=3, workers=5).recipe.to_yaml())
    for other, what in (
        (identity(tmp_path, epochs=3), r"\(different: epochs: 3 -> 2\)"),
        (identity(tmp_path, data="c" * 64), "."),
        (identity(tmp_path, teacher="c" * 64), "."),
    ):
        with pytest.raises(
            UserError, match=rf"holds a training with other settings .*{what}.*: choose another out=FOLDER"
        ):
            own.check_same(other.fingerprint)
    (tmp_path / RECIPE).write_text(own.recipe.to_yaml())
    with pytest.raises(UserError, match=r"other settings \(other data or another teacher\)"):
        own.check_same(identity(tmp_path, data="c" * 64).fingerprint)


def test_other_code_of_the_users_is_said_to_be_it(tmp_path, monkeypatch):
    own = identity(tmp_path)
    marked = own.fingerprint.replace("-", "+0123456789abcdef-", 1)
    own.check_same(own.without_code)
    monkeypatch.setattr(module, "own_code", lambda recipe: {"mine:loss": "1"})
    with pytest.raises(UserError, match="holds a training with other code: mine:loss, or what it calls, has changed"):
        own.check_same(marked)


def test_who_waits_for_the_folder_is_told(tmp_path, monkeypatch):
    notes = []
    display = Display(enabled=False)
    monkeypatch.setattr(display, "note", lambda text, once=False: notes.append(text))

    class Taken:
        """A lock that another job holds, on a system that then has none."""

        def __init__(self, folder, waiting, without):
            waiting()
            without("no locks")

        def __enter__(self):
            return None

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(module, "alone", Taken)
    with locked(tmp_path, "run 1", display):
        assert notes[0] == f"run 1: another job trains in {tmp_path}; waiting for it"
        assert notes[1].startswith("no locks where the results go (no locks): train one job at a time")


def test_which_teacher_is_used_and_why(tmp_path):
    made = {"data": {"path": "x"}, "student": "resnet14", "name": "teacher resnet14", "epochs": 9}
    student, teaching = (make_recipe({**made, "epochs": epochs}, "x") for epochs in (2, 9))
    folder = tmp_path / "teachers" / "x-resnet14-11111111"

    def told():
        return which_teacher(folder, teaching, student)

    assert told() == (
        "teacher resnet14: trained now, none is kept for it; teacher -> student: epochs: 9 -> 2 "
        "(teacher.train.KEY=... sets the teacher's)"
    )
    other = tmp_path / "teachers" / "x-resnet14-22222222"
    other.mkdir(parents=True)
    (other / "result.json").write_text("{}")
    (other / "recipe.yaml").write_text(student.to_yaml())
    assert "trained now, the kept x-resnet14-22222222 differs: epochs: 2 -> 9; " in told()
    folder.mkdir()
    (folder / "last.pt").write_text("")
    assert told() == f"teacher resnet14: its training in {folder} goes on"
    (folder / "result.json").write_text("{}")
    assert told() is None
