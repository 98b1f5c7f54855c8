"""A stream in trainers that are not kdstream's: interrupted and continued, each sees the batches of one pass."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import kdstream as kd


@pytest.fixture
def stream(digits):
    return lambda: kd.Stream(digits / "train", batch_size=60, seed=3) | kd.decode() | kd.augment("cifar", pad=1)


@pytest.fixture
def expected(stream) -> list[list[int]]:
    """The samples of each batch of two epochs."""
    one = stream()
    return [batch.index.tolist() for _ in range(2) for batch in one]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))


def test_a_plain_loop(stream, expected, tmp_path):
    first, seen = stream(), []
    for batch in first:
        seen.append(batch.index.tolist())
        if len(seen) == 3:
            torch.save({"stream": first.state_dict()}, tmp_path / "state.pt")
            break
    again = stream()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)["stream"])
    while again.epoch < 2:
        seen += [batch.index.tolist() for batch in again]
    assert seen == expected


def test_accelerate(stream, expected, tmp_path):
    seen = []

    def train(steps: int, resume: bool) -> None:
        accelerator = Accelerator(cpu=True)
        batches = stream()
        model = network()
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
        accelerator.register_for_checkpointing(batches)
        if resume:
            accelerator.load_state(tmp_path / "state")
        while batches.epoch < 2 and len(seen) < steps:
            for batch in batches:
                seen.append(batch.index.tolist())
                accelerator.backward(nn.functional.cross_entropy(model(batch.image / 255), batch.label))
                optimizer.step()
                optimizer.zero_grad()
                if len(seen) == steps:
                    break
        accelerator.save_state(tmp_path / "state", safe_serialization=False)

    train(5, resume=False)
    train(100, resume=True)
    assert seen == expected


def test_lightning(stream, expected, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.seen = network(), []

        def training_step(self, batch, number):
            self.seen.append(batch.index.tolist())
            return nn.functional.cross_entropy(self.network(batch.image / 255), batch.label)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def trainer(**settings):
        quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}
        return lightning.Trainer(accelerator="cpu", **quiet, **{"enable_checkpointing": False, **settings})

    whole = Classifier()
    trainer(max_epochs=2).fit(whole, stream())
    assert whole.seen == expected
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "last", every_n_train_steps=3)
    first, second = Classifier(), Classifier()
    trainer(max_steps=3, callbacks=[keep], enable_checkpointing=True).fit(first, stream())
    trainer(max_epochs=2).fit(second, stream(), ckpt_path=tmp_path / "last.ckpt")
    assert first.seen + second.seen == expected
