"""Trackers: they get what metrics.jsonl has, once, in one run, after interruptions and failures of theirs, too."""

from __future__ import annotations

import json
import os

import pytest
from accelerate.tracking import GeneralTracker
from jobs import recipe_of, run

from kdstream.errors import UserError
from kdstream.recipe import make_recipe
from kdstream.training import trackers
from kdstream.training.loop import Trainer
from kdstream.training.metrics import MetricsLog, read_metrics
from kdstream.training.stop import Stopped
from kdstream.training.trackers import Tracked, Trackers, check_trackers, flat

OWN = "test_trackers:Notebook"


class Notebook(GeneralTracker):
    """A tracker that writes what it is told to the file that KDSTREAM_NOTEBOOK names."""

    name = "notebook"
    requires_logging_directory = False
    broken = None

    def __init__(self, run_name: str, run_id: str | None = None):
        super().__init__()
        self.project, self.run_id = run_name, run_id

    @property
    def tracker(self):
        return self

    def _say(self, *what):
        if Notebook.broken:
            raise Notebook.broken
        with open(os.environ["KDSTREAM_NOTEBOOK"], "a") as file:
            file.write(json.dumps([self.run_id, *what]) + "\n")

    def start(self):
        self.run_id = self.run_id or f"run-{os.urandom(4).hex()}"
        self._say("start", self.project)

    def store_init_configuration(self, values):
        self._say("settings", values)

    def log(self, values, step=None, **_):
        self._say("row", step, values)

    def finish(self):
        self._say("finish")


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What the tracker was told, as [run, what, ...]."""
    file = tmp_path / "notebook"
    monkeypatch.setenv("KDSTREAM_NOTEBOOK", str(file))
    monkeypatch.setattr(Notebook, "broken", None)
    return lambda *what: [one for one in map(json.loads, file.read_text().splitlines()) if not what or one[1] in what]


def test_an_interrupted_training_goes_on_in_the_same_run(digits, tmp_path, said, monkeypatch):
    out = tmp_path / "out"
    wanted = recipe_of(digits, out, track=OWN, runs={"a": {"epochs": 2}, "b": {}}, student="jobs:Plain", epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_must_stop", lambda self, step: self.global_step == 7)  # within the second epoch
        with pytest.raises(Stopped):
            run(wanted)
    run(wanted)
    of_runs = {one[0]: [] for one in said("start")}
    for one in said():
        of_runs[one[0]].append(one[1:])
    a, b = of_runs.values()
    assert [one[0] for one in a if one[0] != "row"] == ["start", "settings", "finish", "start", "finish"]
    assert [one[0] for one in b if one[0] != "row"] == ["start", "settings", "finish"]
    assert a[0] == b[0] == ["start", "job"], "the project is the recipe's"
    for notes, folder in ((a, out / "a"), (b, out / "b")):
        rows = read_metrics(folder)
        found = [one[1:] for one in notes if one[0] == "row"]
        assert [step for step, _ in found] == [row["step"] for row in rows]
        for (_, values), row in zip(found, rows, strict=True):
            assert values["loss/total"] == row["loss"]
            assert values["speed/images_per_s"] > 0
            numbers = {key: one for key, one in row.items() if isinstance(one, float) and key != "loss"}
            assert numbers.items() <= values.items()
            assert {type(one) for one in values.values()} <= {int, float}
    settings = a[1][1]
    assert (settings["optimizer.lr"], settings["epochs"], settings["loss.ce"]) == (0.05, 2, 1.0)
    before = said()
    run(wanted)  # finished: no tracker hears of it
    assert said() == before


def folder_of(tmp_path, steps=()):
    """A record with a row for each step."""
    with MetricsLog(tmp_path) as log:
        for step in steps:
            log.write("epoch", {"phase": "main", "step": step, "loss": step / 10})
            log.write_speed({"epoch": 1, "seconds": 1.0})
    return tmp_path


def opened(folder, notes, track=OWN, fingerprint="f"):
    recipe = make_recipe({"student": "resnet8", "data": "x", "track": track}, "test")
    made = Trackers(Tracked("job", "one", folder, fingerprint, recipe), notes.append)
    made.start()
    return made


def test_what_fails_never_stops_a_training_and_gets_the_rest_later(tmp_path, said):
    notes = []
    made = opened(folder_of(tmp_path, [1]), notes)
    assert [one[2] for one in said("row")] == [1]
    Notebook.broken = ConnectionError("no route\nto host")
    folder_of(tmp_path, [1, 2])
    made.log()
    made.log()
    assert [note for note in notes if "fails" in note] == [
        f"one: {OWN} fails (no route to host): the training goes on, metrics.jsonl has everything; the rest is tried "
        "at the end, and when the training is continued"
    ]
    Notebook.broken = None
    folder_of(tmp_path, [1, 2, 3])
    made.log()
    assert [one[2] for one in said("row")] == [1], "it is left in peace"
    made.finish()
    assert [one[2] for one in said("row")] == [1, 2, 3]
    assert notes[-1] == f"one: {OWN} has got what it lacked"
    folder_of(tmp_path, [1, 2, 3, 4])
    opened(tmp_path, notes).finish()
    assert [one[2] for one in said("row")] == [1, 2, 3, 4]
    assert len({one[0] for one in said()}) == 1
    opened(tmp_path, notes, fingerprint="of another training").finish()
    assert len({one[0] for one in said()}) == 2, "another training in the folder has a run of its own"
    (tmp_path / "trackers.json").write_text('{"fingerprint": "of another training", "runs": [3')
    opened(tmp_path, notes, fingerprint="of another training").finish()
    assert len({one[0] for one in said()}) == 3


def test_what_does_not_start_is_said_in_a_line(tmp_path, said):
    Notebook.broken = RuntimeError("api_key not configured (no-tty).\ncall login")
    with pytest.raises(UserError, match=r"track: .* does not start: api_key not configured \(no-tty\). call login; or"):
        opened(tmp_path, [])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wanb", "unknown tracker 'wanb': did you mean 'wandb'?, or a dotted path"),
        ("os:system", "Python's standard library has no trackers"),
        ("test_trackers:folder_of", "no class of accelerate.tracking.GeneralTracker"),
        ("nowhere:Tracker", "cannot import module 'nowhere'"),
    ],
)
def test_mistakes_are_found_before_any_work(name, says):
    recipe = make_recipe({"student": "resnet8", "data": "x", "track": [name]}, "test")
    with pytest.raises(UserError) as error:
        check_trackers(recipe)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [])
    for name, package in (("wandb", "wandb"), ("tensorboard", "'kdstream[tensorboard]'")):
        recipe = make_recipe({"student": "resnet8", "data": "x", "track": name}, "test")
        with pytest.raises(UserError) as error:
            check_trackers(recipe)
        assert str(error.value) == f"track: {name} is not installed: pip install {package}, or leave it out of track"


def test_settings_are_flat():
    values = {"a": {"b": {"c": 1.5}, "d": {}}, "e": [1, "x"], "f": None, "g": True}
    assert flat(values) == {"a.b.c": 1.5, "a.d": "{}", "e": '[1, "x"]', "f": None, "g": True}


@pytest.mark.parametrize("asked", [{"track": ["tensorboard"]}, {"tensorboard": True}])
def test_tensorboard_has_each_row_once(tmp_path, asked):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = make_recipe({"student": "resnet8", "data": "x", **asked}, "test")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.old").write_bytes(b"of an earlier training")
    for steps in ([], [5], [5, 10, 15]):  # interrupted twice
        made = Trackers(Tracked("job", "one", folder_of(tmp_path, steps), "f", recipe), lambda note: None)
        made.start()
        made.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss/total")] == [(5, 0.5), (10, 1.0), (15, 1.5)]
    assert events.Tags()["scalars"] == ["loss/total", "speed/seconds"]
    (text,) = events.Tensors(events.Tags()["tensors"][0])[:1]
    assert b"student" in text.tensor_proto.string_val[0]
