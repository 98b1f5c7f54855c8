"""kdstream evaluate: what it prints and writes of exports, files of weights and addresses."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from publishing import publish, serving
from rich.console import Console

from kdstream.analysis.accuracy import Accuracy, accuracy
from kdstream.cli.evaluate import classes_table, mistakes_table
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.models.download import cached
from kdstream.recipe import make_recipe
from kdstream.training.job import Job
from kdstream.training.metrics import read_metrics


def test_evaluation_of_an_export_gives_what_its_training_reported(run_verb, digits, tmp_path):
    recipe = make_recipe(
        {
            "data": {"path": str(digits), "mean": [0.2, 0.3, 0.4], "std": [0.3, 0.2, 0.4]},
            "student": "resnet8",
            "stream": "decode | augment(inception, 12)",  # and so evaluated at 12 pixels, where the images have 16
            "epochs": 6,
            "batch_size": 30,
            "eval_batch_size": 77,
            "workers": 0,
            "out": str(tmp_path / "trained"),
        },
        "test",
    )
    [reported] = Job(recipe, Accelerator(cpu=True), Display(Console(quiet=True))).run()
    code, out, err = run_verb("evaluate", tmp_path / "trained", digits, "--device", "cpu", "--batch-size", 50)
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


def test_evaluation_of_a_file_of_weights_recognises_the_network(run_verb, network, digits, tmp_path):
    torch.save({"model": network.state_dict()}, tmp_path / "other.pth")
    assert run_verb("evaluate", "other.pth", digits, "--split", "train", "--device", "cpu", "--out", "o")[0] == 0
    written = json.loads((tmp_path / "o" / "evaluate.json").read_text())
    data = open_shards(digits / "train")
    # A file of weights says nothing of mean and deviation: they are the data set's.
    expected = accuracy(network, data, data.mean, data.std).as_dict()
    assert {key: written[key] for key in expected} == json.loads(json.dumps(expected))
    assert written["size"] is None


def test_evaluation_from_an_address(run_verb, network, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    url = "https://kdstream.invalid/models/best.pth"
    secret = url.replace("//", "//me:SECRET@") + "?token=SECRET.x"
    cached(secret).parent.mkdir(parents=True)
    torch.save(network.state_dict(), cached(secret))
    assert run_verb("evaluate", secret, digits, "--limit", 20, "--device", "cpu")[0] == 0
    written = json.loads((tmp_path / "runs" / "evaluate-best" / "evaluate.json").read_text())
    assert (written["weights"], written["samples"]) == (url, 20)


def test_evaluation_of_published_weights(run_verb, network, digits, tmp_path, monkeypatch):
    with serving(tmp_path / "served", monkeypatch) as server:
        torch.save({"model": network.state_dict()}, server.folder / "ckpt_epoch_240.pth")
        publish(server, monkeypatch, "net@digits")
        code, out, _ = run_verb("evaluate", "published:net@digits", digits, "--device", "cpu")
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
