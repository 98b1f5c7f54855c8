"""kdstream peakiness: its table, JSON and figure, selectors of the user's own, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from commands import refused, run_from_a_clone
from PIL import Image

from kdstream.analysis.peakiness import peakiness
from kdstream.data.shards import open_shards
from kdstream.models.taps import Tapped
from kdstream.stream.coded import fixed

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "reproduce.py"


def test_table_json_and_figure(run_verb, exported, network, digits, tmp_path):
    code, out, err = run_verb("peakiness", exported, digits, "--limit", 60, "--delta", 25, "--device", "cpu")
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


def test_weights_with_model_give_the_same_as_the_export(run_verb, exported, network, digits, tmp_path):
    weights = tmp_path / "other.pth"
    torch.save(network.state_dict(), weights)
    common = ("--limit", 30, "--delta", 100, "--split", "val", "--selector", "fixed(30)", "--device", "cpu")
    assert run_verb("peakiness", weights, digits, "--model", "resnet8", *common)[0] == 0
    written = json.loads((tmp_path / "runs" / "peakiness-other" / "peakiness.json").read_text())
    data = open_shards(digits / "val")
    # A file of weights says nothing of mean and deviation: they are the data set's.
    expected = peakiness(Tapped(network), data, data.mean, data.std, selector=fixed(30), delta=100, limit=30)
    assert written["coded"] == json.loads(json.dumps(expected.as_dict()["coded"]))
    assert written["qualities"] == {"30": 30}


def test_many_qualities_are_shown_by_tens(run_verb, exported, digits, tmp_path):
    code, out, _ = run_verb(
        "peakiness", exported, digits, "--selector", "random(0, 99)", "--out", tmp_path / "o", "--device", "cpu"
    )
    assert code == 0
    counts = [int(line.split()[1]) for line in out.splitlines() if ".." in line]
    assert len(counts) == 10
    assert sum(counts) == 240


def test_from_a_clone_without_installation(exported, digits, tmp_path):
    """A selector of the user's own is found in the working folder."""
    (tmp_path / "mine.py").write_text("import torch\n\ndef first(logits, label):\n    return torch.ones_like(label)\n")
    arguments = ["peakiness", str(exported), str(digits), "--limit", "20", "--selector", "mine:first", "--delta", "40"]
    done = run_from_a_clone(SCRIPT, *arguments, "--device", "cpu", "--out", "out", cwd=tmp_path)
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
def test_bad_options_of_peakiness_give_one_line_and_no_output(run_verb, exported, digits, tmp_path, options, says):
    refused(run_verb("peakiness", exported, digits, *options), says)
    assert os.listdir(tmp_path) == []
