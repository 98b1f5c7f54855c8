"""Trainings of the papers' tables are set up, as a job does before its first step: on random weights, with a tiny data
set of the right classes in place of the real one.

With ``KDSTREAM_EVERY_CELL=1`` all of them, each one once, whichever tables have it; else one of each paper.
"""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from pathlib import Path

import pytest
from accelerate import Accelerator
from tars import image_bytes, write_tar

from kdstream.display.progress import Display
from kdstream.models import build
from kdstream.models.pretrained import without_weights
from kdstream.recipe import Imbalance, Recipe
from kdstream.recipe import Teacher as Wanted
from kdstream.training.accelerator import settle
from kdstream.training.checks import check
from kdstream.training.job import Job, teacher_recipe
from kdstream.training.networks import Teacher
from kdstream.training.tables.cells import expand
from kdstream.training.tables.table import known_tables, load_table

EVERY_CELL = bool(os.environ.get("KDSTREAM_EVERY_CELL"))
ONE_EACH = (
    *("ckd/table5:resnet56-resnet20:cft", "beyond/table4:resnet26-resnet8:one", "ijckd/table1:resnet56-resnet20:simkd"),
    *("cmkd/table1:resnet56-resnet20:takd", "ttm/table6:resnet56-resnet20:wttm-without-ce"),
)
CLASSES = {"cifar10": 10, "cifar100": 100, "cub200": 200, "stanford_dogs": 120, "imagenet": 1000, "imagenet1pct": 1000}
"""Of the data sets that the tables name."""
CIFAR, PHOTO = (32, 32), (72, 64)
"""Pixels; the streams for photographs cut and scale them to what the networks take."""


def trainings() -> dict[str, Recipe]:
    """Table and cell -> recipe, each training once."""
    found: dict[str, tuple[str, Recipe]] = {}
    for name in known_tables() if EVERY_CELL else sorted({one.partition(":")[0] for one in ONE_EACH}):
        for cell in expand(load_table(name)):
            what = f"{name}:{cell.key}"
            if cell.recipe is not None and (EVERY_CELL or what in ONE_EACH):
                found.setdefault(f"{cell.recipe.fingerprint()}{cell.of_teacher}", (what, cell.recipe))
    return dict(found.values())


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The name of a data set -> shards with two images of each of its classes to train."""

    @functools.cache
    def stand_in(name: str) -> Path:
        folder = tmp_path_factory.mktemp("sets") / name
        images = [image_bytes(i, CIFAR if name.startswith("cifar") else PHOTO) for i in range(40)]
        for split, count in (("train", 2 * CLASSES[name]), ("val", 4)):
            members = [(f"{i:05d}.{kind}", data) for i in range(count)
                       for kind, data in (("jpg", images[i % 40]), ("cls", b"%d" % (i % CLASSES[name])))]  # fmt: skip
            write_tar(folder / split / "000.tar", members)
        return folder

    return stand_in


@pytest.fixture(scope="module")
def known():
    """Teachers that were set up, by how they are trained; the last few."""
    return OrderedDict[str, Teacher]()


@pytest.mark.parametrize("name", trainings() if EVERY_CELL else ONE_EACH)
def test_a_training_of_a_table_is_set_up(name, stand_in, known):
    set_up(_all()[name], stand_in, known)


@functools.cache
def _all() -> dict[str, Recipe]:
    return trainings()


def set_up(recipe: Recipe, stand_in, known) -> None:
    """As :meth:`Job.run` before anything is trained; what is wrong is its UserError."""
    check(recipe)
    data = {"path": str(stand_in(Path(recipe.data.path).name)), "source": None}
    data |= {name: getattr(recipe.data, name) or value for name, value in (("mean", (0.5,) * 3), ("std", (0.25,) * 3))}
    if recipe.data.imbalance is not None:
        data["imbalance"] = Imbalance(gamma=recipe.data.imbalance.gamma, largest=2, smallest=1)
    accelerator = Accelerator(cpu=True)
    recipe = settle(recipe.model_copy(update={"data": recipe.data.model_copy(update=data), "workers": 0}), accelerator)
    job = Job(recipe, accelerator, Display(enabled=False))
    train, val = job.data()
    teacher, teaching = None, teacher_recipe(recipe)
    if recipe.teacher is not None:
        key = f"{recipe.teacher.model} {recipe.teacher.options} {teaching and teaching.fingerprint()} {train.path}"
        if key not in known:
            if teaching is not None:
                job._rehearse({"teacher": [teaching]}, None, None, train, train, val)
            # Its weights are random anyway: published ones are not fetched.
            options = without_weights(str(recipe.teacher.model), recipe.teacher.options)
            network = build(str(recipe.teacher.model), train.num_classes, **options)
            known[key] = Teacher(network.requires_grad_(False).eval(), Wanted(taps=recipe.teacher.taps), None, None, "")
        teacher = known[key]
        while len(known) > 4:
            known.popitem(last=False)
    job._rehearse({recipe.name: [*job._links(recipe.assistants), recipe]}, None, teacher, train, train, val)


def test_a_cell_that_cannot_be_is_told(stand_in, known):
    """What the others rely on: a set-up that fails does so here."""
    recipe = next(recipe for recipe in _all().values() if recipe.teacher is not None)
    broken = recipe.model_copy(update={"loss": {"ce": 1.0, "at": {"taps": ["block9"]}}})
    with pytest.raises(Exception, match="block9"):
        set_up(broken, stand_in, known)
