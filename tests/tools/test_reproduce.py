"""reproduce, the command: what it prints and writes, and one line for every mistake."""

from __future__ import annotations

import importlib.util
import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from kdstream.analysis.peakiness import peakiness
from kdstream.models import build
from kdstream.models.export import save_student
from kdstream.models.taps import Tapped
from kdstream.stream.coded import fixed
from kdstream.stream.shards import open_shards

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "reproduce.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("reproduce_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, capsys, monkeypatch, tmp_path):
    """Run the command in an empty folder; gives (exit code, what it printed, its error line)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments) -> tuple[int, str, str]:
        code = script.main([str(argument) for argument in arguments])
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
def test_bad_options_give_one_line_and_no_output(run, exported, digits, tmp_path, options, says):
    (tmp_path / "taken").write_text("")
    code, out, err = run("peakiness", exported, digits, *options)
    assert (code, out) == (2, "")
    assert err.startswith("reproduce: ")
    assert err.count("\n") == 1
    assert says in err
    assert os.listdir(tmp_path) == ["taken"]


def test_bad_teachers_and_shards_give_one_line(run, network, exported, digits, tmp_path):
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(network.state_dict(), weights)
    save_student(tmp_path / "seven", build("resnet8", 7))
    (tmp_path / "empty").mkdir()
    for teacher, shards, says in (
        (tmp_path / "nowhere", digits, "no such file or folder"),
        (tmp_path / "empty", digits, "student.json"),
        (weights, digits, "--model"),
        (tmp_path / "seven", digits, "is for 7 classes, the data has 10"),
        (exported, tmp_path / "empty", "empty"),
    ):
        code, out, err = run("peakiness", teacher, shards, "--limit", 10)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert says in err
    code, _, err = run("divine")
    assert (code, err.count("\n")) == (2, 1)
    assert "divine" in err
    assert not (tmp_path / "runs").exists()
