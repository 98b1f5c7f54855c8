"""A disk that is full or fails at any moment of a job costs one clear line, and the same command goes on."""

from __future__ import annotations

import errno
import json
import os

import pytest
import yaml
from accelerate.state import AcceleratorState
from faulty_disk import FaultyDisk
from rich.console import Console

from kdstream.cli import train
from kdstream.convert.make_shards import make_shards
from kdstream.models.export import load_student
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.metrics import read_metrics, read_speed

# How the points are spread over the errors: neighbours differ.
ERRORS = [(errno.ENOSPC, True), (errno.EIO, False), (errno.ENOSPC, False), (errno.EACCES, False), (errno.EDQUOT, True)]
# KDSTREAM_TEST_FAULTS=1 tries all points, each with the next error of the list; 2 with two of them, and so on.
EVERY = int(os.environ.get("KDSTREAM_TEST_FAULTS", "0"))
APART = 19


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A job with all that is ever written: teacher, student, curves, exports, report; and what it leaves behind."""
    folder = tmp_path_factory.mktemp("full")
    make_shards("digits", folder / "digits", limit=40, processes=1, console=Console(quiet=True))
    settings = {
        "data": {"path": str(folder / "digits")},
        "student": "jobs:Plain",
        "teacher": {"model": "jobs:Plain", "train": {"loss": "ce", "epochs": 1}},
        "loss": {"ce": 0.5, "kd": 0.5},
        "stream": "decode",
        "epochs": 2,
        "batch_size": 40,
        "workers": 0,
        "export": "best",
    }
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run(recipe, capfd):
    """Runs the job; gives exit code and what went to standard error."""

    def run(out):
        environment = dict(os.environ)
        AcceleratorState._reset_state(True)
        capfd.readouterr()
        try:
            code = train.main(["--cpu", str(recipe), f"out={out}"])
        finally:
            AcceleratorState._reset_state(True)
            os.environ.clear()
            os.environ.update(environment)
        return code, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """What the job leaves where nothing fails, and the acts that write it."""
    folder = tmp_path_factory.mktemp("whole")
    AcceleratorState._reset_state(True)
    disk = FaultyDisk(folder)
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        assert train.main(["--cpu", str(recipe), f"out={folder}/job"]) == 0
    return left_by(folder), disk.acts


def left_by(folder):
    """What must not depend on the way: weights, metrics, results without their times; all names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = "events" if "tfevents" in path.name else path.relative_to(folder).as_posix()
        found[name] = None
        if path.suffix in (".safetensors", ".yaml") or path.name == "metrics.jsonl":
            found[name] = path.read_bytes().replace(str(folder).encode(), b"")
        if path.name == "result.json":
            result = json.loads(path.read_text())
            found[name] = {key: result[key] for key in result if key not in ("seconds", "images_per_s", "memory")}
    return found


def check_all_is_whole(folder):
    """What stands under a final name can be read."""
    for path in folder.rglob("*"):
        if path.name.endswith(".pt"):
            load_checkpoint(path)
        elif path.name in ("result.json", "student.json"):
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict)
        elif path.name == "report.html":
            assert path.read_text().endswith("</html>\n")
        elif path.name == "metrics.jsonl":
            read_metrics(path.parent)
            read_speed(path.parent)
        if path.name == "student.json":
            load_student(path, trust_code=True)


def test_a_disk_that_fails_at_any_moment(whole, run, tmp_path):
    expected, acts = whole
    assert len(acts) > 100
    refused = 0
    points = kinds(acts) if EVERY else kinds(acts)[::APART]
    for i, point in enumerate(points):
        for number, lasting in [ERRORS[(i + k) % len(ERRORS)] for k in range(EVERY or 1)]:
            out = tmp_path / f"{point}-{number}-{lasting}"
            with pytest.MonkeyPatch.context() as patch:
                disk = FaultyDisk(out, point, number, lasting)
                disk.install(patch)
                code, said = run(out / "job")
            where = f"point {point}: {acts[point - 1]}, {os.strerror(number)}: {said!r}"
            assert code in (0, 2), where
            if code == 2:
                refused += 1
                assert said.count("\n") == 1, where
                assert said.startswith("error: "), where
                assert os.strerror(number) in said, where
            else:
                assert said == "", where
            check_all_is_whole(out)
            assert run(out / "job") == (0, ""), where
            assert left_by(out) == expected, where
    assert refused > len(points) / 2, "most faults cannot be overlooked"


def kinds(acts):
    """The points to try: of acts that follow each other and do the same to the same file, the first and the last."""
    same = [acts[i] == acts[i - 1] == acts[(i + 1) % len(acts)] for i in range(len(acts))]
    return [i + 1 for i in range(len(acts)) if not same[i]]
