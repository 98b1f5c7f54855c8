"""kdstream models: the table fits 80 columns, JSON is JSON, mistakes are one line and exit code 2."""

from __future__ import annotations

import json

import pytest
from commands import refused

from kdstream.cli.models import main, readable, shortened
from kdstream.models import MODELS
from kdstream.models.download import cached
from kdstream.models.published import known


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_the_whole_zoo_one_line_each(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in MODELS}
    assert rows.keys() == set(MODELS)
    assert rows["resnet8"].split() == [
        *("resnet8", "83,892", "12.51", "M"),
        *("stem", "block1..3", "(.pre)", "map", "penultimate"),
    ]
    assert all(line.rstrip().endswith("penultimate") for line in rows.values())
    assert "timm:" in text


def test_named_networks_at_a_size(capsys):
    assert main(["resnet18", "vgg8", "--size", "224", "--classes", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "224 x 224 images, 1000 classes"
    rows = [line.split() for line in lines if "penultimate" in line]
    assert rows[0][:4] == ["resnet18", "11,689,512", "1.81", "G"]
    assert [row[0] for row in rows] == ["resnet18", "vgg8"]


def test_taps(capsys):
    assert main(["resnet110", "--taps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "block3.pre layer3.17.relu2:input 64 x 8 x 8" in [" ".join(line.split()) for line in lines]


def test_json(capsys):
    assert main(["resnet8", "MobileNetV2", "--json", "--size", "64", "--classes", "10"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["size"], data["classes"], list(data["models"])) == (64, 10, ["resnet8", "MobileNetV2"])
    assert data["models"]["resnet8"]["parameters"] == 78_042
    assert data["models"]["resnet8"]["taps"]["block2"] == {"path": "layer2", "shape": [32, 32, 32]}


def test_published_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    one = known()["resnet34@imagenet"]
    cached(one.address).parent.mkdir(parents=True)
    cached(one.address).touch()
    assert main(["--published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.strip().startswith("published:")]
    assert [row[:2] for row in rows] == [[f"published:{name}", f"{each.top1:.2f}"] for name, each in known().items()]
    assert [row[0] for row in rows if row[2] == "yes"] == ["published:resnet34@imagenet"]
    assert main(["--published", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed.keys() == known().keys()
    assert listed["resnet34@imagenet"]["address"] == one.address


@pytest.mark.parametrize(
    "arguments",
    [
        ["resnet9"],
        ["vgg8", "--size", "4"],
        ["resnet8", "vgg8", "--json", "--size=1"],
        ["--published", "resnet56"],
        ["--published", "--taps"],
    ],
)
def test_mistakes(arguments, run_main):
    refused(run_main(main, *arguments), "")


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", ""])
def test_sizes_that_are_none(value, run_main):
    line = f"error: argument --size: {value!r} is no positive whole number; see --help\n"
    assert run_main(main, f"--size={value}") == (2, "", line)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--siz"], "argument --size: expected one argument"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["--nope\nagain"], "unrecognized arguments: --nope again"),
        (["--taps", "--json"], "argument --json: not allowed with argument --taps"),
    ],
)
def test_bad_options(arguments, part, run_main):
    assert run_main(main, *arguments) == (2, "", f"error: {part}; see --help\n")


def test_interrupted(monkeypatch, run_main):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdstream.models.macs.cost", interrupt)
    assert run_main(main, "resnet8") == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("taps", "short"),
    [
        (["stem", "block1", "block1.pre", "block2", "block2.pre", "penultimate"], "stem block1..2 (.pre) penultimate"),
        (["block1", "block2", "block2.pre"], "block1..2 block2.pre"),
        (["tokens.1", "tokens.2", "tokens.3", "tokens.last"], "tokens.1..3 tokens.last"),
        (["block1", "block3"], "block1,3"),
        ([], ""),
    ],
)
def test_shortened(taps, short):
    assert shortened(taps) == short


@pytest.mark.parametrize(
    ("macs", "text"),
    [(0, "0.00 M"), (12_507_392, "12.51 M"), (125_800_000, "125.8 M"), (1_814_000_000, "1.81 G"), (2e11, "200.0 G")],
)
def test_readable(macs, text):
    assert readable(macs) == text
