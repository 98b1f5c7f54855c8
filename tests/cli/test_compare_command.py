"""The command compare on digits: interrupted, continued, extended, tuned on held-out images, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import modules_that_help_loads

from kdstream.cli import compare, main
from kdstream.data.dataset_info import DATASET_FILE
from kdstream.models.export import load_student
from kdstream.training import job
from kdstream.training.tables import work

SMALL = ["--teacher", "resnet8", "--student", "resnet8", "--cpu", "epochs=1", "batch_size=120", "workers=0"]
SMALL += ["schedule={name: constant}", "stream=decode | augment(cifar, pad=1, flip=false)"]


@pytest.fixture
def trained(monkeypatch):
    """Trainings run in this process; gives the names of those that were run. That each has a process of its own is
    what tests of ``kdstream table`` show."""
    names: list[str] = []
    most = [99]

    def run_tasks(tasks, jobs, tell, advance, options=(), logs=None):
        for task in tasks:
            if len(names) == most[0]:
                raise KeyboardInterrupt
            names.append(task.name)
            assert main([*task.launch, *options]) == 0
            advance(task, True)
        return []

    monkeypatch.setattr(work, "run_tasks", run_tasks)
    monkeypatch.setattr(job, "write_report", lambda *given: None)  # that of each training, which nobody reads here
    return names, most


def found(folder="runs/compare-digits-resnet8-resnet8"):
    page = json.loads(Path(folder, "compare.json").read_text())
    return page, {row["method"]: row for row in page["methods"]}


def test_a_comparison_is_interrupted_goes_on_and_is_extended(run_verb, digits, trained):
    names, most = trained
    command = ["compare", digits, "--methods", "ckd", "--delta", "50", *SMALL]
    most[0] = 2
    code, _, err = run_verb(*command, "--seeds", "1")
    assert (code, err) == (130, "interrupted: what is trained is saved; the same command continues\n")
    assert names == ["teacher resnet8", "labels only, seed 0"]
    most[0] = 99
    code, out, err = run_verb(*command, "--seeds", "2")
    assert code == 0, err
    assert names[2:] == ["kd, seed 0", "ckd, seed 0", "labels only, seed 1", "kd, seed 1", "ckd, seed 1"]
    assert max(map(len, out[out.index("method") :].splitlines())) <= 80
    page, rows = found()
    assert set(rows) == {"labels only", "kd", "ckd"}
    for name, row in rows.items():
        for seed in ("0", "1"):
            (folder,) = Path("runs/compare-digits-resnet8-resnet8/trainings").glob(
                f"{name.replace(' ', '_')}-*-seed{seed}"
            )
            result = json.loads((folder / "result.json").read_text())
            assert row["by_seed"][seed]["top1"] == pytest.approx(result["top1"])
            assert row["by_seed"][seed]["seconds"] == result["seconds"]
            assert row["by_seed"][seed]["process"] == result["memory"]["process"] > 2**20
            assert load_student(folder)(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    one, base = rows["ckd"]["by_seed"], rows["labels only"]["by_seed"]
    difference = sum(one[seed]["top1"] - base[seed]["top1"] for seed in "01") / 2
    assert rows["ckd"]["over labels only"]["mean"] == pytest.approx(difference)
    assert "over kd" not in rows["labels only"]
    assert page["level_of_each_interval"]["labels only"] == pytest.approx(0.975)
    for name in ("compare.html", "compare.md"):
        text = Path("runs/compare-digits-resnet8-resnet8", name).read_text()
        assert f"{rows['ckd']['top1']['mean']:.2f}" in text
        assert page["conclusions"][0] in text


def test_tuning_never_looks_at_the_validation_split(run_verb, digits, trained, monkeypatch):
    names, _ = trained
    opened = []
    real = job.open_shards
    monkeypatch.setattr(job, "open_shards", lambda path: opened.append((len(names), Path(path).name)) or real(path))
    command = ["compare", digits, *SMALL, "--methods", "kd", "--seeds", "1"]
    code, out, err = run_verb(*command, "--tune", "loss.kd.temperature=1,8")
    assert code == 0, err
    trials = [name for name in names if name.startswith("trial")]
    assert trials == [f"trial of kd, seed 0 (loss.kd.temperature={value})" for value in (1, 8)]
    assert names[0] == "teacher resnet8 without what is held out"
    while_tuning = {split for count, split in opened if 0 < count <= 3}
    assert while_tuning == {"train"}
    _, rows = found()
    reached = {trial["settings"][0]: trial["top1"] for trial in rows["kd"]["trials"]}
    assert set(reached) == {"loss.kd.temperature=1", "loss.kd.temperature=8"}
    assert reached[rows["kd"]["tuned"][0]] == max(reached.values())
    assert rows["labels only"]["trials"] == []
    assert "labels only: nothing of it is tuned" in " ".join(out.split())


def test_a_dry_run_writes_nothing(run_verb, digits, trained, monkeypatch):
    names, _ = trained
    timed = []
    monkeypatch.setattr(compare, "estimate", lambda console, tasks, cpu: timed.extend(tasks))
    code, out, err = run_verb("compare", digits, *SMALL, "--methods", "dist", "--dry-run", "--seeds", "3")
    assert code == 0, err
    assert "9 trainings of students: 10 left, 1 of them teachers', 10 epochs" in out
    assert len(timed) == 10
    assert (names, list(Path().iterdir())) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "kdd"], "no method 'kdd': did you mean 'kd'?"),
        (["--methods", "vitkd"], "recipe vitkd: unknown tap"),
        (["--tune", "loss.kd.temprature=1,2"], "unknown setting 'temprature'"),
        (["--seeds", "0"], "no positive whole number"),
        (["data.val=nowhere"], "has no split 'nowhere'"),
        (["data.hold_out=0.1", "--tune", "loss.kd.temperature=1,2"], "data.hold_out"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(run_verb, digits, trained, arguments, says):
    names, _ = trained
    code, _, err = run_verb("compare", digits, *SMALL, *arguments)
    assert (code, names) == (2, [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_data_without_a_validation_split_says_what_to_do(run_verb, digits, tmp_path):
    place = tmp_path / "bare"
    place.mkdir()
    info = json.loads((digits / DATASET_FILE).read_text())
    info["splits"] = {"train": info["splits"]["train"]}
    (place / DATASET_FILE).write_text(json.dumps(info))
    for path in digits.glob("train*"):
        (place / path.name).symlink_to(path)
    code, _, err = run_verb("compare", place, *SMALL)
    assert code == 2
    assert "data.hold_out=0.1" in err


def test_help_loads_nothing_heavy():
    text, loaded = modules_that_help_loads("kdstream.cli.compare")
    assert "--tune KEY=A,B" in text
    assert not loaded
