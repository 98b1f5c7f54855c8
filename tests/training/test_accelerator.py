"""The place of a training: the launcher's precision, and what of its environment is refused or left out."""

from __future__ import annotations

import json
import os
from typing import ClassVar

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jobs import recipe_of
from torch import nn

import kdstream as kd
from kdstream.cli import train
from kdstream.errors import UserError
from kdstream.models.export import load_student
from kdstream.recipe_file import load_recipe
from kdstream.training.accelerator import PRECISION, make_accelerator, settle

SWITCHES = ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"]


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps device and precision for the life of a process, and notes in the environment."""
    environment = dict(os.environ)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    os.environ.clear()
    os.environ.update(environment)


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes were launched on a machine with 1 GPU, and each needs"):
        make_accelerator(False, None)


@pytest.mark.parametrize("value", ["true", "True", "1"])
@pytest.mark.parametrize("switch", [*SWITCHES, "ACCELERATE_USE_PARALLELISM_CONFIG"])
def test_plugins_that_shard_are_refused(monkeypatch, switch, value):
    monkeypatch.setenv(switch, value)
    refusal = rf"\({switch}\) is not supported: kdstream keeps the networks whole on every device"
    with pytest.raises(UserError, match=refusal) as error:
        make_accelerator(True, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("switch", SWITCHES)
def test_plugins_that_are_off_are_none(monkeypatch, switch):
    monkeypatch.setenv(switch, "false")
    assert make_accelerator(True, None).mixed_precision == "no"


@pytest.mark.parametrize(
    ("launcher", "recipe", "precision"),
    [
        (None, None, "no"),
        ("", None, "no"),
        ("no", None, "no"),
        ("bf16", None, "bf16"),
        ("BF16", None, "bf16"),
        ("bf16", "no", "no"),
        ("no", "bf16", "bf16"),
        ("fp16", "no", "no"),
        ("fp8", "bf16", "bf16"),
    ],
)
def test_the_recipes_precision_wins_and_the_launchers_fills_in(monkeypatch, launcher, recipe, precision):
    monkeypatch.delenv(PRECISION, raising=False)
    if launcher is not None:
        monkeypatch.setenv(PRECISION, launcher)
    accelerator = make_accelerator(True, recipe)
    assert accelerator.mixed_precision == precision
    found = settle(recipe_of("x", "out", precision=recipe), accelerator)
    assert found.precision == precision
    assert found.fingerprint() == recipe_of("x", "out", precision=precision).fingerprint()


@pytest.mark.parametrize(
    ("launcher", "recipe", "message"),
    [
        (
            "fp8",
            None,
            r"the launcher asks for precision 'fp8' \(ACCELERATE_MIXED_PRECISION\), kdstream trains in",
        ),
        ("float32", None, r"asks for precision 'float32'"),
        ("fp16", None, r"^fp16 needs a GPU, this is a CPU"),
        ("no", "fp16", r"^fp16 needs a GPU, this is a CPU .* set precision=bf16 or precision=no$"),
    ],
)
def test_precisions_that_there_are_none_of(monkeypatch, launcher, recipe, message):
    monkeypatch.setenv(PRECISION, launcher)
    with pytest.raises(UserError, match=message):
        make_accelerator(True, recipe)


def test_an_accelerator_of_somebody_elses_must_fit_the_recipe():
    with pytest.raises(UserError, match=r"^recipe job: precision is bf16, but Accelerate was started with no$"):
        settle(recipe_of("x", "out", precision="bf16"), Accelerator(cpu=True))
    AcceleratorState._reset_state(True)
    with pytest.raises(UserError, match=r"^fp16 needs a GPU"):
        settle(recipe_of("x", "out"), Accelerator(cpu=True, mixed_precision="fp16"))


def test_what_only_a_recipe_decides_is_left_out_aloud(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = make_accelerator(True, None)
    network = nn.Linear(2, 1)
    assert accelerator.prepare(network) is network, "not compiled"
    accelerator.backward(network(torch.ones(1, 2)).sum())
    assert network.weight.grad.tolist() == [[1.0, 1.0]]
    assert capsys.readouterr().err.splitlines() == [
        "note: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is left out: the recipe's accumulate decides",
        "note: ACCELERATE_DYNAMO_BACKEND=INDUCTOR is left out: the recipe's compile decides",
    ]


class Notes(kd.Term):
    """Notes in which precision the student answers."""

    uses_teacher = False
    seen: ClassVar[list[torch.dtype]] = []

    def forward(self, student, teacher, batch):
        self.seen.append(student.logits.dtype)
        return 0 * student.logits.sum()


def test_the_launchers_precision_reaches_training_fingerprint_export_and_report(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    loss = {"ce": 1, "test_accelerator:Notes": 1}
    settings = recipe_of(digits, "job", loss=loss, epochs=1).model_dump(mode="json", exclude_none=True)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    assert load_recipe("r.yaml").precision is None
    import test_accelerator  # the recipe's, whichever name pytest has for this file

    found = {}
    for name, launcher, more in (("a", "no", []), ("b", "bf16", []), ("c", "bf16", ["precision=no"])):
        AcceleratorState._reset_state(True)
        monkeypatch.setenv(PRECISION, launcher)
        test_accelerator.Notes.seen.clear()
        assert train.main(["--cpu", "r.yaml", f"out={name}", *more]) == 0
        result = json.loads((tmp_path / name / "result.json").read_text())
        exported = load_student(tmp_path / name).about["extra"]["recipe"]["precision"]
        report = (tmp_path / name / "report.html").read_text()
        found[name] = (
            result["fingerprint"],
            exported,
            test_accelerator.Notes.seen[-1],
            "<dt>precision</dt><dd>bf16</dd>" in report,
        )
    assert found["a"] == found["c"]
    assert found["a"][1:] == ("no", torch.float32, False)
    assert found["b"][1:] == ("bf16", torch.bfloat16, True)
    assert found["a"][0] != found["b"][0]
