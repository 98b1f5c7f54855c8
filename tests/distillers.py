"""Every objective ready to train: small networks, the smallest data, the trainer's own set-up."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from builders import batch
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.models import build
from kdstream.objectives import parse_loss
from kdstream.recipe import Model
from kdstream.training.distiller import Distiller, Stage
from kdstream.training.networks import tapped
from kdstream.training.setup import prepare

SETTINGS = {"crd": {"nce_k": 8}}
SIZE = 16
"""Of the images: the last maps have 4 x 4 positions."""


class Labels(SimpleNamespace):
    """What :func:`prepare` asks of a training set."""

    def __len__(self) -> int:
        return len(self.labels)


def networks(name: str) -> tuple[dict, dict]:
    """A student and a teacher that the objective can work with."""
    if name == "vitkd":
        return {"name": "tiny_vit:TinyViT"}, {"name": "tiny_vit:TinyViT", "width": 32}
    return {"name": "resnet8"}, {"name": "resnet14"}


def stages(
    name: str,
    classes: int,
    count: int,
    size: int = SIZE,
    world: int = 1,
    relations: str = "global",
    sync_batchnorm: bool = False,
    **settings: object,
) -> Iterator[tuple[Stage, Distiller, Batch]]:
    """Every stage of an objective's training that has a loss, begun, with a batch to train with.

    Args:
        name: of the objective.
        classes: C.
        count: samples of the batch, which the term is told of.
        size: of the images.
        world: processes that share a batch.
        relations, sync_batchnorm: of the recipe.
        settings: of the term.

    Raises:
        UserError: what the objective says.
    """
    torch.manual_seed(0)
    ours, theirs = networks(name)
    terms = parse_loss({name: {**SETTINGS.get(name, {}), **settings}})
    train = Labels(num_classes=classes, labels=[i % classes for i in range(4 * count)], mean=(0.5,) * 3, std=(0.2,) * 3)
    plain = build(num_classes=classes, **theirs).eval().requires_grad_(False)
    teacher = tapped(plain, terms.teacher_taps, Model(model=theirs["name"])).eval()

    def taught(count: int) -> Batch:
        image = torch.randn(count, 3, size, size)
        return batch(image=image, label=torch.tensor(train.labels)[:count], teacher=teacher(image).detach())

    with torch.no_grad():
        probe, small = taught(2), taught(count)
    student = build(num_classes=classes, **ours)
    recipe = SimpleNamespace(epochs=10, batch_size=count, relations=relations, sync_batchnorm=sync_batchnorm)
    _, student, _, _ = prepare(
        student, Model(model=ours["name"]), teacher, (train.mean, train.std), terms, probe, train, recipe, world
    )
    distiller = Distiller(student, terms)
    for stage in distiller.stages():
        if not stage.losses:
            continue
        distiller.begin(stage, probe)
        distiller.train()
        if name == "bss":  # attacked is what both networks classify rightly
            with torch.no_grad():
                small.label = student(small.image).logits.argmax(1)
            small.teacher = Outputs(5.0 * F.one_hot(small.label, classes))
        yield stage, distiller, small
