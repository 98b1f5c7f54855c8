"""Teacher assistants: a chain of links in one recipe, each kept and continued on its own, and shown."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from jobs import recipe_of, run, run_and_kill
from rich.console import Console

import kdstream as kd
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.models.export import save_student
from kdstream.recipe_file import load_recipe
from kdstream.training.checks import check
from kdstream.training.job import Job
from kdstream.training.loop import Trainer
from kdstream.training.metrics import read_metrics

KD = {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}}
CODED = "decode | augment(cifar, pad=1, flip=false) | coded(hkl, delta=100)"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    save_student(folder, build("resnet20", 10))
    return folder


def chain(digits, out, teacher, **settings):
    """resnet20 -> resnet14 -> wrn_10_1 -> resnet8."""
    links = ["resnet14", {"model": "wrn_10_1", "options": {"dropout": 0.1}, "train": {"epochs": 3}}]
    return recipe_of(digits, out, teacher=str(teacher), assistants=links, **{"loss": KD, **settings})


def links(folder: Path) -> dict[str, Path]:
    """Model -> folder of the assistants' trainings."""
    found = {}
    for place in folder.iterdir():
        result = json.loads((place / "result.json").read_text())
        if result["name"].startswith("assistant "):
            found[result["model"]] = place
    return found


# --- the chain


@pytest.fixture(scope="module")
def whole(digits, teacher, tmp_path_factory):
    """A chain of two assistants with the coded stream: its folder, results and printed screen."""
    folder = tmp_path_factory.mktemp("chain")
    recipe = chain(digits, folder / "runs" / "job", teacher, stream=CODED)
    console = Console(file=io.StringIO(), width=120)
    return folder / "runs", Job(recipe, Accelerator(cpu=True), Display(console)).run(), console.file.getvalue()


def test_each_link_learns_from_the_one_before_it(whole, teacher):
    runs, (result,), _ = whole
    places = links(runs / "teachers")
    assert set(places) == {"resnet14", "wrn_10_1"}
    assert [row["epoch"] for row in read_metrics(places["resnet14"])] == [1, 2]
    assert [row["epoch"] for row in read_metrics(places["wrn_10_1"])] == [1, 2, 3]
    assert kd.load_student(places["wrn_10_1"]).spec["dropout"] == 0.1
    taught_by = [teacher, places["resnet14"], places["wrn_10_1"]]
    for place, master in zip([places["resnet14"], places["wrn_10_1"], runs / "job"], taught_by, strict=True):
        fingerprint = json.loads((place / "result.json").read_text())["fingerprint"]
        assert fingerprint.endswith(weights_hash(kd.load_student(master))[:16])
    assert result["model"] == "resnet8"


def test_a_coded_stream_serves_every_link(whole):
    runs, (result,), _ = whole
    for place in [*links(runs / "teachers").values(), runs / "job"]:
        own = json.loads((place / "result.json").read_text())
        assert sum(own["qualities"].values()) == 240
        assert own["teacher"]["entropy"][0] > 0
    assert "qualities" in result


def test_what_is_printed_names_the_links_and_lists_the_assistants(whole):
    screen = whole[2]
    lines = [line.strip() for line in screen.splitlines()]
    for line in (
        "Link 1 of 3: resnet14 learns from resnet20",
        "Link 2 of 3: wrn_10_1 learns from resnet14",
        "Link 3 of 3: the student learns from wrn_10_1",
    ):
        assert line in lines
    table = [line for line in lines if re.match(r"(assistant \w+|job) +\w+ +[\d,]+ +\d", line)]
    assert [line.split("  ")[0] for line in table] == ["assistant resnet14", "assistant wrn_10_1", "job"]


def test_the_report_marks_them(whole):
    page = (whole[0] / "job" / "report.html").read_text()
    for name in ("resnet14", "wrn_10_1"):
        assert f"<span>assistant {name}<span class='tag'>assistant</span></span>" in page
    assert page.count("class='tag'>assistant<") == 2
    assert "<span>job</span>" in page


def test_assistants_are_trained_once_for_all_runs_and_for_the_next_job(digits, teacher, tmp_path, monkeypatch):
    trained = []
    begin = Trainer._begin
    monkeypatch.setattr(Trainer, "_begin", lambda self: (trained.append(self.recipe.name), begin(self))[1])
    runs = {
        "labels only": {"loss": "ce", "assistants": []},
        "kd": {"assistants": []},
        "takd": {},
        "takd seed 1": {"seed": 1},
    }
    recipe = recipe_of(
        digits, tmp_path / "job", teacher=str(teacher), assistants="resnet14", loss=KD, runs=runs, epochs=1
    )
    results = run(recipe)
    assert trained == ["labels only", "kd", "assistant resnet14", "takd", "takd seed 1"]
    assert [result["name"] for result in results] == [name for name in trained if name != "assistant resnet14"]
    trained.clear()
    run(recipe.model_copy(update={"out": str(tmp_path / "other"), "runs": {}}))
    assert trained == ["job"]
    page = (tmp_path / "job" / "report.html").read_text()
    assert page.count("class='tag'>assistant<") == 1


def test_another_chain_before_it_makes_another_assistant(digits, teacher, tmp_path):
    for number, middle in enumerate((["resnet8"], ["resnet14", "resnet8"])):
        run(recipe_of(digits, tmp_path / str(number), teacher=str(teacher), assistants=middle, loss=KD, epochs=1))
    found = sorted(place.name.split("-")[1] for place in (tmp_path / "teachers").iterdir())
    assert found == ["resnet14", "resnet8", "resnet8"]


# --- resuming


def test_killed_in_the_second_link_the_same_command_continues_there(digits, teacher, whole, tmp_path):
    recipe = chain(digits, tmp_path / "runs" / "job", teacher, stream=CODED)
    run_and_kill(recipe, "assistant wrn_10_1", step=8)
    places = {place.name.split("-")[1]: place for place in (tmp_path / "runs" / "teachers").iterdir()}
    finished = {path: path.stat().st_mtime_ns for path in places["resnet14"].iterdir() if path.name != ".lock"}
    assert (places["resnet14"] / "result.json").exists()
    assert not (places["wrn_10_1"] / "result.json").exists()
    assert not (tmp_path / "runs" / "job" / "recipe.yaml").exists()  # the student has not begun
    console = Console(file=io.StringIO(), width=120)
    Job(recipe, Accelerator(cpu=True), Display(console)).run()
    screen = console.file.getvalue()
    assert "assistant resnet14: finished before" in screen
    assert "assistant wrn_10_1: continues at epoch 2, step 3" in screen
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    expected = {**links(whole[0] / "teachers"), "student": whole[0] / "job"}
    for model, place in {**places, "student": tmp_path / "runs" / "job"}.items():
        for name in ("student.safetensors", "metrics.jsonl"):
            assert (place / name).read_bytes() == (expected[model] / name).read_bytes(), (model, name)


# --- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"assistants": ["resnet14"], "teacher": None}, r"the loss \(kd\) needs a teacher: add teacher: to the recipe"),
        ({"assistants": ["resnet14"], "teacher": None, "loss": "ce"}, r"the first of the assistants needs a teacher"),
        ({"assistants": ["resnet9"]}, r"unknown model 'resnet9': did you mean 'resnet8'\?"),
        ({"assistants": ["resnet9", "resnet14"]}, r"unknown model 'resnet9'"),
        ({"assistants": ["resnet14"], "loss": "ce"}, r"assistant resnet14: its loss \(ce\) does not look at a teacher"),
        ({"assistants": [{"model": "resnet14", "train": {"loss": "kdd"}}]}, r"assistant resnet14: loss: unknown"),
        ({"assistants": [{"model": "resnet14", "options": {"widht": 7}}]}, r"model 'resnet14': .*widht"),
        (
            {"assistants": ["alexnet"], "loss": {"at": 1}},
            r"unknown tap 'block\*': none of the taps \(penultimate\) is a block",
        ),
        (
            {"assistants": ["alexnet", "resnet14"], "loss": {"at": 1}},
            r"unknown tap 'block\*': none of the taps \(penultimate\) is a block",
        ),
    ],
)
def test_mistakes_are_found_before_any_work(digits, teacher, tmp_path, settings, message):
    base = {"teacher": str(teacher), "loss": KD}
    with pytest.raises(UserError, match=message) as error:
        run(recipe_of(digits, tmp_path / "runs" / "job", **{**base, **settings}))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"assistants": [{"weights": "a/b"}]},
            r"assistants\.0: an assistant is trained by this job and has no weights",
        ),
        ({"assistants": [{}]}, r"assistants\.0: an assistant needs a model"),
        ({"assistants": [{"modle": "resnet8"}]}, r"unknown setting 'assistants\.0\.modle': did you mean 'model'\?"),
        ({"assistants": [{"model": "a", "train": {"epohcs": 1}}]}, r"assistants\.0\.train: unknown setting 'epohcs'"),
        (
            {"assistants": [{"model": "a", "train": {"teacher": "b"}}]},
            r"assistants\.0\.train cannot have its own 'teac",
        ),
        ({"assistants": [{"model": "a", "train": {"student": "b"}}]}, r"the list of assistants says who learns"),
        ({"assistants": 3}, r"assistants: .*list"),
        (
            {"assistants": [{"model": "resnet14", "options": {"num_classes": 7}}]},
            r"assistants\.0\.options: leave num_classes out: the data says it",
        ),
    ],
)
def test_settings_that_no_assistant_has(digits, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        check_all(recipe_of(digits, tmp_path, teacher="resnet14", loss=KD, **settings))


def check_all(recipe):
    """As a job does before it begins."""
    for link in Job(recipe, Accelerator(cpu=True), Display(enabled=False))._links(recipe.assistants):
        check(link)


def test_a_teacher_of_other_classes_ends_the_job_before_the_first_link(digits, tmp_path):
    save_student(tmp_path / "strange", build("resnet8", 7))
    with pytest.raises(UserError, match=r"strange is for 7 classes, the data has 10"):
        run(recipe_of(digits, tmp_path / "job", teacher=str(tmp_path / "strange"), assistants=["resnet8"], loss=KD))
    assert not (tmp_path / "teachers").exists()


def test_one_assistant_needs_no_list_also_on_the_command_line(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "data: {path: x}\nstudent: resnet8\nteacher: a/b\nloss: kd\nassistants: resnet14\n"
    )
    assert [one.model for one in load_recipe(str(tmp_path / "r.yaml")).assistants] == ["resnet14"]
    changed = load_recipe(str(tmp_path / "r.yaml"), ["assistants=[resnet20, resnet14]"])
    assert [one.model for one in changed.assistants] == ["resnet20", "resnet14"]
