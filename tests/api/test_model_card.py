"""Model cards: every number with its epoch and seeds, names that are no markup, other people's README.md left alone."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from kdstream.api.int8 import Int8
from kdstream.api.model_card import CARD, MARK, card, gather, write_card
from kdstream.errors import UserError
from kdstream.models.onnx_export import OnnxFile
from kdstream.recipe import make_recipe

ONNX = OnnxFile(Path("student.onnx"), 1000, 20, (3, 16, 16), "float32 [batch,3,16,16], standardised", 1e-6, 5.0)
INT8 = Int8(Path("student.int8.onnx"), 300, 1000, 96, "digits/val", 240, 91.25, 90.0, 97.5, 0.5)


def about(digits, **more):
    """What student.json says of a finished training."""
    settings = {
        "name": "kd, seed 1",
        "data": {"path": str(digits), "per_class": 7},
        "teacher": {"model": "resnet14", "train": {"epochs": 3}},
        "student": "resnet8",
        "loss": {"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}, "my_losses:Own": 2},
        "stream": "decode | augment(cifar, pad=2)",
        "epochs": 30,
        "seed": 1,
        **more.pop("settings", {}),
    }
    recipe = make_recipe(settings, "test").shown()
    result = {"name": settings["name"], "top1": 91.256, "best_top1": 93.5, "best_epoch": 21, "epochs": 30}
    return {
        "format": 1,
        "spec": {"name": "resnet8", "num_classes": 2},
        "classes": ["<b>bad</b>", "a|b\n# big"],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.3, 0.2, 0.1],
        "image_size": [16, 16],
        "extra": {"recipe": recipe, "result": {**result, "model": "resnet8", "params": 78042}},
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    """Of one of three seeds; the job's has what they reach together."""
    place = tmp_path / "job" / "kd" / "seed1"
    place.mkdir(parents=True)
    found = {"seeds": [0, 1, 2], "top1": {"mean": 90.0, "std": 1.5}, "best_top1": {"mean": 92.0, "std": 0.5}}
    (tmp_path / "job" / "results.json").write_text(json.dumps({"first": "kd", "runs": {"kd": found}}))
    (tmp_path / "job" / "teacher.json").write_text(json.dumps({"key": "k", "top1": 96.5}))
    return place


def front(text):
    """The front matter, as the Hub reads it."""
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_every_number_says_which_epoch_and_how_many_seeds(digits, folder):
    text = card(gather(folder, about(digits), onnx=ONNX, int8=INT8, licence="apache-2.0"))
    numbers = re.findall(r"^\| (.*) \| ([\d.± ]+) \|$", text.split("## Data")[0], re.MULTILINE)
    assert numbers == [
        ("these weights, last epoch (30)", "91.26"),
        ("best epoch (21), which these images chose; not these weights", "93.50"),
        ("mean ± standard deviation over 3 seeds, last epoch", "90.00 ± 1.50"),
        ("mean ± standard deviation over 3 seeds, best epoch of each", "92.00 ± 0.50"),
        ("its teacher", "96.50"),
        ("`student.onnx`, float32", "91.25"),
        ("`student.int8.onnx`, int8", "90.00"),
    ]
    for said in (
        "# resnet8, distilled from resnet14 on digits\n",
        "| on 240 images, split val | top-1, % |",
        "Seed of these weights: 1.",
        "has 0.30 of the size, one image takes 0.50 of the time",
        "Calibrated on 96 training images",
        "70 images, validated on 240 others (val); 7 images of each class",
        '| `kd` `{"temperature": 4}` | 0.9 | Knowledge distillation by softened outputs | Hinton et al. 2015',
        "| `my_losses:Own` | 2 | code of its author's own |",
        "mean 0.1000, 0.2000, 0.3000; std 0.3000, 0.2000, 0.1000",
        "16 x 16 pixels",
        "of these weights: `apache-2.0`",
    ):
        assert said in text, said
    found = front(text)
    assert (found["license"], found["library_name"]) == ("apache-2.0", "kdstream")
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "top-1, %, last epoch (30)", "value": 91.26}]
    assert str(digits.parent) not in text, "where it lies on this disk is nobody's business"


def test_the_best_epoch_is_called_what_it_is(digits, folder):
    text = card(gather(folder, about(digits, settings={"export": "best"})))
    assert "| these weights, best epoch (21), which these images chose | 91.26 |" in text
    assert "not these weights" not in text
    last = about(digits)
    last["extra"]["result"] |= {"best_epoch": 30, "best_top1": 91.256}
    text = card(gather(folder, last))
    assert "| these weights, last epoch (30) | 91.26 |" in text
    assert "not these weights" not in text, "the last epoch is the best one"


def test_names_are_text_and_nothing_else(digits, folder):
    settings = {"name": "x\nlicense: mit\n---", "data": {"path": "/data/[birds](http://evil)|*"}}
    text = card(gather(folder, about(digits, settings=settings)))
    assert "license" not in front(text)
    assert r"\<b\>bad\</b\>, a\|b \# big" in text
    assert "](http" not in text
    assert text.count("\n# ") == 1


def test_a_student_of_labels_and_of_a_training_that_goes_on(digits, folder):
    unfinished = about(digits, settings={"loss": {"ce": 1}})
    del unfinished["extra"]["result"]
    unfinished["extra"]["checkpoint"] = "best"
    text = card(gather(folder, unfinished))
    assert "# resnet8, trained on digits" in text
    assert "The training was not finished: these weights are those of its best epoch so far." in text
    assert "no number is known" not in text, "the teacher's is"
    assert "knowledge-distillation" not in front(text)["tags"]
    assert "model-index" not in front(text)
    bare = {"spec": {"name": "resnet8", "num_classes": 2}}
    text = card(gather(folder.parent.parent.parent, bare))
    assert "no number is known" in text
    assert "2 classes, without names" in text


@pytest.mark.parametrize("hub", [None, "me/birds"])
@pytest.mark.parametrize("name", ["resnet8", "my_nets:Net", "my_nets:`\nx\n```"])
def test_the_code_in_it_is_python(digits, folder, hub, name):
    spec = {"name": name, "num_classes": 2}
    text = card(gather(folder, about(digits, spec=spec), onnx=ONNX, hub=hub))
    assert ("trust_code=True" in text) == (name != "resnet8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
    assert ('snapshot_download("me/birds")' in text) == (hub is not None)


def test_a_readme_of_somebodys_stays(digits, folder):
    facts = gather(folder, about(digits))
    assert write_card(folder, facts) == folder / CARD
    (folder / CARD).write_text(MARK)
    assert write_card(folder, facts) == folder / CARD, "it is ours"
    edited = (folder / CARD).read_text().replace(MARK, "")
    (folder / CARD).write_text(edited)
    assert write_card(folder, facts) is None
    assert (folder / CARD).read_text() == edited


def test_a_licence_is_a_name(digits, folder):
    with pytest.raises(UserError, match="--license MIT License: as the Hub spells it"):
        gather(folder, about(digits), licence="MIT License")
