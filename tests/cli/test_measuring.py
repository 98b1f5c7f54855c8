"""kdstream evaluate and peakiness: what they print and write, and one line for every mistake."""

from __future__ import annotations

import io
import json
import os
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from PIL import Image
from publishing import publish, serving
from rich.console import Console

from kdstream.analysis.accuracy import Accuracy, accuracy
from kdstream.analysis.peakiness import peakiness
from kdstream.cli import main
from kdstream.cli.evaluate import classes_table, mistakes_table
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.models import build
from kdstream.models.download import cached
from kdstream.models.export import save_student
from kdstream.models.taps import Tapped
from kdstream.recipe import make_recipe
from kdstream.stream.coded import fixed
from kdstream.training.job import Job
from kdstream.training.metrics import read_metrics

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "reproduce.py"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command in an empty folder; gives (exit code, what it printed, its error line)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("resnet8", 10).eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "digits-resnet8"
    save_student(folder, network, mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))
    return folder


def test_table_json_and_figure(run, exported, network, digits, tmp_path):
    code, out, err = run("peakiness", exported, digits, "--limit", 60, "--delta", 25, "--device", "cpu")
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "peakiness-digits-resnet8"
    assert sorted(os.listdir(folder)) == ["peakiness.json", "peakiness.png"]
    with Image.open(folder / "peakiness.png") as image:
        assert image.format == "PNG"
    written = json.loads((folder / "peakiness.json").read_text())
    expected = peakiness(
        Tapped(network), open_shards(digits / "train"), (0.3,) * 3, (0.2,) * 3, delta=25, limit=60
    ).as_dict()
    assert {key: written[key] for key in expected} == json.loads(json.dumps(expected))
    assert (written["selector"], written["delta"], written["subsampling"]) == ("hkl", 25, "4:4:4")
    assert max(map(len, out.splitlines())) <= 80
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ") and line.strip()}
    sides = (written["original"], written["coded"])
    for row, cells in (
        ("entropy,", [f"{x['entropy_mean']:.4f} (±{x['entropy_std']:.4f})" for x in sides]),
        ("ground-truth", [f"{x['probability_mean']:.4f} (±{x['probability_std']:.4f})" for x in sides]),
        ("top-1,", [f"{x['top1']:.2f}" for x in sides]),
        ("covariance,", [f"{1e5 * x['covariance']:.4f}" for x in sides]),
        ("T.", [f"{1e5 * x['mean_probability_std']:.4f}" for x in sides]),
    ):
        expected_end = " ".join(cells).split()
        assert rows[row][-len(expected_end) :] == expected_end
    for quality, count in written["qualities"].items():
        assert rows[quality][-2:] == [str(count), f"{100 * count / 60:.2f}"]
    assert "compare the two columns" in " ".join(out.split())


def test_weights_with_model_give_the_same_as_the_export(run, exported, network, digits, tmp_path):
    weights = tmp_path / "other.pth"
    torch.save(network.state_dict(), weights)
    common = ("--limit", 30, "--delta", 100, "--split", "val", "--selector", "fixed(30)", "--device", "cpu")
    assert run("peakiness", weights, digits, "--model", "resnet8", *common)[0] == 0
    written = json.loads((tmp_path / "runs" / "peakiness-other" / "peakiness.json").read_text())
    data = open_shards(digits / "val")
    # A file of weights says nothing of mean and deviation: they are the data set's.
    expected = peakiness(Tapped(network), data, data.mean, data.std, selector=fixed(30), delta=100, limit=30)
    assert written["coded"] == json.loads(json.dumps(expected.as_dict()["coded"]))
    assert written["qualities"] == {"30": 30}


def test_evaluation_of_an_export_gives_what_its_training_reported(run, digits, tmp_path):
    recipe = make_recipe(
        {
            "data": {"path": str(digits), "mean": [0.2, 0.3, 0.4], "std": [0.3, 0.2, 0.4]},
            "student": "resnet8",
            "stream": "decode | augment(inception, 12)",  # and so evaluated at 12 pixels, where the images have 16
            "epochs": 6,
            "batch_size": 30,
            "eval_batch_size": 77,
            "workers": 0,
            "tensorboard": False,
            "out": str(tmp_path / "trained"),
        },
        "test",
    )
    [reported] = Job(recipe, Accelerator(cpu=True), Display(Console(quiet=True))).run()
    code, out, err = run("evaluate", tmp_path / "trained", digits, "--device", "cpu", "--batch-size", 50)
    assert (code, err) == (0, "")
    folder = tmp_path / "runs" / "evaluate-trained"
    assert sorted(os.listdir(folder)) == ["confusion.png", "evaluate.json", "reliability.png"]
    for name in ("confusion.png", "reliability.png"):
        with Image.open(folder / name) as image:
            assert image.format == "PNG"
    written = json.loads((folder / "evaluate.json").read_text())
    assert (written["samples"], written["size"], written["shards"]) == (240, 12, "digits/val")
    assert (written["top1"], written["top5"]) == (reported["top1"], reported["top5"])
    assert 15 < written["top1"] < 100  # neither chance nor perfect: equal by merit
    assert written["loss"] == pytest.approx(read_metrics(tmp_path / "trained")[-1]["val/loss"], rel=1e-5)
    rows = {line.split(",")[0].strip(): line.split()[-1] for line in out.splitlines() if line.count(",") == 1}
    assert rows["top-1"] == f"{written['top1']:.2f}"
    assert rows["top-5"] == f"{written['top5']:.2f}"
    assert rows["loss"] == f"{written['loss']:.4f}"
    assert rows["calibration error"] == f"{written['calibration_error']:.2f}"
    for each in written["per_class"]:
        cells = [each["class"], str(each["samples"]), f"{each['top1']:.2f}"]
        assert any(line.split() == cells for line in out.splitlines()), cells
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_evaluation_of_a_file_of_weights_recognises_the_network(run, network, digits, tmp_path):
    torch.save({"model": network.state_dict()}, tmp_path / "other.pth")
    assert run("evaluate", "other.pth", digits, "--split", "train", "--device", "cpu", "--out", "o")[0] == 0
    written = json.loads((tmp_path / "o" / "evaluate.json").read_text())
    data = open_shards(digits / "train")
    # A file of weights says nothing of mean and deviation: they are the data set's.
    expected = accuracy(network, data, data.mean, data.std).as_dict()
    assert {key: written[key] for key in expected} == json.loads(json.dumps(expected))
    assert written["size"] is None


def test_evaluation_from_an_address(run, network, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    url = "https://kdstream.invalid/models/best.pth"
    secret = url.replace("//", "//me:SECRET@") + "?token=SECRET.x"
    cached(secret).parent.mkdir(parents=True)
    torch.save(network.state_dict(), cached(secret))
    assert run("evaluate", secret, digits, "--limit", 20, "--device", "cpu")[0] == 0
    written = json.loads((tmp_path / "runs" / "evaluate-best" / "evaluate.json").read_text())
    assert (written["weights"], written["samples"]) == (url, 20)


def test_evaluation_of_published_weights(run, network, digits, tmp_path, monkeypatch):
    with serving(tmp_path / "served", monkeypatch) as server:
        torch.save({"model": network.state_dict()}, server.folder / "ckpt_epoch_240.pth")
        publish(server, monkeypatch, "net@digits")
        code, out, _ = run("evaluate", "published:net@digits", digits, "--device", "cpu")
    assert code == 0
    folder = tmp_path / "runs" / "evaluate-net@digits"
    written = json.loads((folder / "evaluate.json").read_text())
    assert (written["weights"], written["published_top1"]) == ("published:net@digits", 75)
    # Its mean and deviation, and not the data set's.
    expected = accuracy(network, open_shards(digits / "val"), (0.5, 0.25, 0.125), (0.5, 0.4, 0.3))
    assert written["top1"] == expected.top1
    assert "top-1 as published, % 75.00" in " ".join(out.split())
    assert f"note: it gets {expected.top1:.2f} % on the val split, 75.00 % as published" in " ".join(out.split())


def test_only_the_least_accurate_of_many_classes_are_shown():
    confusion = np.diag(np.arange(1, 31))
    confusion[7, 8] = 40
    confusion[3] = 0
    result = Accuracy(tuple(f"[class] {i}" for i in range(30)), 90, 99, 0.5, 3, (), confusion)
    heading, table = classes_table(result)
    assert heading == "the 10 least accurate of 30 classes"
    with Console(width=80, file=io.StringIO(), record=True) as console:
        console.print(table, mistakes_table(result))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["[class]", "7", "48", "16.67"] in lines
    assert ["[class]", "7", "[class]", "8", "40", "83.33"] in lines
    assert not any(line[:2] == ["[class]", "3"] for line in lines), "it has no images"


def test_many_qualities_are_shown_by_tens(run, exported, digits, tmp_path):
    code, out, _ = run(
        "peakiness", exported, digits, "--selector", "random(0, 99)", "--out", tmp_path / "o", "--device", "cpu"
    )
    assert code == 0
    counts = [int(line.split()[1]) for line in out.splitlines() if ".." in line]
    assert len(counts) == 10
    assert sum(counts) == 240


def test_from_a_clone_without_installation(exported, digits, tmp_path):
    """-S with the packages' folder on the path: kdstream's own (editable) installation is not seen. A selector of the
    user's own is found in the working folder."""
    (tmp_path / "mine.py").write_text("import torch\n\ndef first(logits, label):\n    return torch.ones_like(label)\n")
    packages = site.getsitepackages()[0]
    code = f"import sys, runpy; sys.path[0] = {packages!r}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    arguments = ["peakiness", str(exported), str(digits), "--limit", "20", "--selector", "mine:first", "--delta", "40"]
    command = [sys.executable, "-S", "-c", code, *arguments, "--device", "cpu", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "peakiness.json").read_text())["qualities"] == {"0": 20}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--selector", "hlk"], "unknown selector 'hlk'"),
        (["--selector", "fixed(50"], "--selector 'fixed(50'"),
        (["--selector", "hkl | hkl"], "--selector 'hkl | hkl'"),
        (["--selector", "fixed(101)"], "JPEG quality 101"),
        (["--delta", "0"], "delta is 0"),
        (["--delta", "x"], "invalid int value"),
        (["--subsampling", "4:2:2"], "subsampling is '4:2:2'"),
        (["--limit", "1"], "limit is 1"),
    ],
)
def test_bad_options_of_peakiness_give_one_line_and_no_output(run, exported, digits, tmp_path, options, says):
    _refused(run("peakiness", exported, digits, *options), says)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["evaluate", "peakiness"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit", "0"], "limit is 0"),
        (["--limit", "x"], "invalid int value"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--size", "0"], "size is 0"),
        (["--split", "test"], "no split 'test'"),
        (["--device", "abacus"], "--device abacus"),
        (["--model", "resnet20"], "resnet8"),
        (["--out", "taken/out"], "is a file"),
        (["--bogus"], "--bogus"),
    ],
)
def test_bad_options_give_one_line_and_no_output(run, command, exported, digits, tmp_path, options, says):
    (tmp_path / "taken").write_text("")
    _refused(run(command, exported, digits, *options), says)
    assert os.listdir(tmp_path) == ["taken"]


def _refused(answer: tuple[int, str, str], says: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluat"], "unknown verb 'evaluat': did you mean 'evaluate'?"),
        (["evaluate", "x.pth"], "the following arguments are required: SHARDS; see --help"),
        (["evaluate", "x.pth", "set", "--nope"], "unrecognized arguments: --nope; see --help"),
    ],
)
def test_a_bad_command_line(run, arguments, says):
    _refused(run(*arguments), says)


def test_interrupted(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdstream.cli.evaluate.prepare", interrupt)
    assert run("evaluate", "x.pth", "set") == (130, "", "interrupted: nothing written\n")


def test_classes_in_the_order_that_one_says(run, exported, digits, tmp_path):
    common = ("evaluate", exported, digits, "--device", "cpu", "--out")
    code, plain, _ = run(*common, "plain")
    assert (code, "note" in plain) == (0, False)
    code, out, _ = run(*common, "turned", "--classes=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]")
    assert (code, "note: " in out, "'0' = output 9" in " ".join(out.split())) == (0, True, True)
    plain, turned = (
        json.loads((tmp_path / name / "evaluate.json").read_text())["confusion"] for name in ("plain", "turned")
    )
    assert turned == {
        label: {str(9 - int(answer)): count for answer, count in sorted(row.items(), reverse=True)}
        for label, row in plain.items()
    }
    for option, says in (
        ("--classes=[0, 3]", "--classes has 2 entries, the data has 10 classes"),
        ("--classes=all", "--classes 'all': it is same, or a list"),
        ("--classes=[", "--classes '['"),
        ("--num-classes=12", "is for 10 classes, the data has 12 ('0', '1', '2', ...): it must know all of them"),
        ("--num-classes=9", "has a sample of class 9, so there are not 9"),
    ):
        code, _, err = run(*common, "refused", option)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("command", ["evaluate", "peakiness"])
def test_bad_networks_and_shards_give_one_line(run, command, exported, digits, tmp_path):
    odd = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2, 2)}, odd)
    save_student(tmp_path / "seven", build("resnet8", 7))
    (tmp_path / "empty").mkdir()
    for teacher, shards, says in (
        (tmp_path / "nowhere", digits, "no such file or folder"),
        (tmp_path / "empty", digits, "student.json"),
        (odd, digits, "name the model"),
        ("ftp://host/w.pth", digits, "only http"),
        (tmp_path / "seven", digits, "is for 7 classes, the data has 10"),
        (exported, tmp_path / "empty", "empty"),
    ):
        code, out, err = run(command, teacher, shards, "--limit", 10)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert says in err
    code, _, err = run("divine")
    assert (code, err.count("\n")) == (2, 1)
    assert "divine" in err
    assert not (tmp_path / "runs").exists()
