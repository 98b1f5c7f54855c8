"""kdpp in a training: the phase before the main one sums the teacher's features, every sample once."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.recipe import make_recipe
from kdstream.stream.stream import Stream
from kdstream.training.chains import training_chain
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.loop import Trainer
from kdstream.training.metrics import read_metrics
from kdstream.training.networks import Teacher
from kdstream.training.stop import StopFlag


def test_a_training_measures_the_class_means_first(digits, tmp_path):
    torch.manual_seed(0)
    network = build("resnet8", 10).eval()
    recipe = make_recipe(
        {
            "data": {"path": str(digits)},
            "teacher": {"model": "resnet8"},
            "student": "resnet8",
            "loss": {"ce": 1, "kdpp": 2},
            "stream": "decode",
            "epochs": 1,
            "batch_size": 48,
            "workers": 0,
            "tensorboard": False,
            "optimizer": {"lr": 0.05},
        },
        "test",
    )
    train, val = open_shards(digits / "train"), open_shards(digits / "val")
    teacher = Teacher(network, recipe.teacher, None, None, "0" * 64)
    accelerator, display = Accelerator(cpu=True), Display(enabled=False)
    Trainer(recipe, tmp_path, train, val, teacher, accelerator, display, StopFlag()).fit()
    assert [row["phase"] for row in read_metrics(tmp_path)] == ["kdpp.class_means", "main"]
    found = load_checkpoint(tmp_path / "last.pt")["distiller"]["terms.1.class_sums"]
    expected = torch.zeros(10, 64)
    tapped = Tapped(network, ["penultimate"])
    with torch.no_grad():
        for part in Stream(train, 48, recipe.seed, workers=0) | training_chain(recipe, False):
            expected.index_add_(0, part.label, tapped(part.image).features["penultimate"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
