"""teacher_answers: what is kept is what the teacher says, is found again, and is refused where no view comes again."""

from __future__ import annotations

import json

import pytest
import torch
from jobs import recipe_of, run
from processes import alone, together
from test_coding_plan import folder, make_teacher, stream_of  # noqa: F401 (a fixture)

import kdstream as kd
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import save_student
from kdstream.models.taps import Tapped
from kdstream.stream import teacher_answers
from kdstream.stream.stage import Chain

NO_PASS = "the teacher is asked, though what it says is kept"


class Counting:
    """A teacher that counts the images which it is shown."""

    def __init__(self, network):
        self.network, self.seen = network, 0

    def named_by(self):
        return "counting"

    @property
    def module(self):
        return self.network.module

    @property
    def paths(self):
        return self.network.paths

    def __call__(self, images):
        self.seen += len(images)
        return self.network(images)


def pooled(seed=0):
    return Counting(Tapped(make_teacher(seed).module, ["penultimate"]).eval())


def said(stream):
    """index -> logits, penultimate, quality."""
    found = {}
    for batch in stream:
        quality = [None] * len(batch) if batch.quality is None else batch.quality.tolist()
        rows = zip(
            batch.index.tolist(), batch.teacher.logits, batch.teacher.features["penultimate"], quality, strict=True
        )
        found |= {index: rest for index, *rest in rows}
    return found


def kept(folder):  # noqa: F811
    return sorted(folder.glob("*.answers-*.bin"))


@pytest.mark.parametrize("coded", ["", "coded(hkl, delta=50) | ", "coded(hkl, delta=50, plan=auto) | "])
def test_what_is_kept_is_what_the_teacher_says(folder, coded, capsys):  # noqa: F811
    online = said(stream_of(folder, f"decode | {coded}teacher", pooled()))
    chain = f"decode | {coded}teacher(cache=auto) | augment(cifar)"
    cached = said(stream_of(folder, chain, pooled()))
    told = "240 x (logits 10, penultimate 64" + (", quality)" if coded else ") = 0.1 MiB")
    assert told in capsys.readouterr().err
    assert cached.keys() == online.keys()
    for index, (logits, features, quality) in online.items():
        torch.testing.assert_close(cached[index][0], logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cached[index][1], features, rtol=1e-4, atol=1e-4)
        assert cached[index][2] == quality
    teacher = pooled()
    again = said(stream_of(folder, chain, teacher, seed=7))
    assert teacher.seen <= 2 * (4 if coded == "coded(hkl, delta=50) | " else 1), NO_PASS  # two images show the sizes
    assert all(torch.equal(again[index][0], cached[index][0]) for index in again)
    (path,) = kept(folder)
    assert path.stat().st_size == 240 * (4 * 74 + bool(coded))
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["taps"] == "penultimate=fc:input"
    assert "told" not in capsys.readouterr().err


def test_others_get_their_own(folder):  # noqa: F811
    chain = "decode | teacher(cache=auto)"
    first = said(stream_of(folder, chain, pooled()))
    other = said(stream_of(folder, chain, pooled(1)))
    assert not torch.equal(first[0][0], other[0][0])
    next(iter(stream_of(folder, chain)))  # without features
    next(iter(stream_of(folder, "decode | augment(eval, 12) | teacher(cache=auto)", pooled())))
    shaded = kd.decode | kd.stage(lambda samples: ({**one, "image": one["image"] // 2} for one in samples))
    next(iter(stream_of(folder, shaded | kd.teacher(cache="auto"), pooled())))
    assert len(kept(folder)) == 5


@pytest.mark.parametrize(
    ("before", "name"),
    [
        ("augment(cifar)", "crop_flip"),
        ("augment(inception, 12)", "random_box"),
        ("coded(random(50, 90))", "coded"),
        ("mixup", "mix"),
    ],
)
def test_views_that_do_not_come_again_are_refused(folder, before, name):  # noqa: F811
    chain = f"decode | {before} | teacher(cache=auto)"
    with pytest.raises(UserError, match=f"cache=auto is not possible: {name}, which stands before it, draws at random"):
        next(iter(stream_of(folder, chain)))
    recipe = recipe_of(folder, folder / "out", loss="kd", teacher={"model": "resnet8", "train": {}}, stream=chain)
    with pytest.raises(UserError, match="recipe job: teacher: cache=auto is not possible"):
        run(recipe)
    assert not (folder / "out").exists()


def test_what_cannot_be_kept_is_said(folder):  # noqa: F811
    maps = Tapped(make_teacher().module, ["block1"]).eval()
    with pytest.raises(UserError, match="loss reads 'block1', 16x16x16 a sample: leave cache=auto out"):
        next(iter(stream_of(folder, "decode | teacher(cache=auto)", maps)))
    with pytest.raises(UserError, match="cache is 'yes'; it is auto or off"):
        next(iter(stream_of(folder, "decode | teacher(cache=yes)")))
    odd = kd.stage(lambda samples: (one for one in samples if one["index"] != 5))
    with pytest.raises(UserError, match=r"needs every sample, but a stage drops or adds some: use teacher\(cache=off"):
        next(iter(stream_of(folder, Chain() | kd.decode | odd | kd.teacher(cache="auto"))))
    unnamed = kd.stage(lambda samples, of=(n for n in ()): samples)
    with pytest.raises(UserError, match=r"cache=auto is not possible, since answers are kept by the name"):
        next(iter(stream_of(folder, Chain() | kd.decode | unnamed | kd.teacher(cache="auto"))))


SETTINGS = {
    "epochs": 1,
    "loss": {"ce": 0.5, "kd": 0.5, "pkt": 1.0},
    "stream": "decode | coded(hkl, delta=50, plan=auto) | teacher(cache=auto) | augment(cifar, pad=1)",
}


def test_a_training_by_two_processes_one_of_which_died(folder, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    save_student(tmp_path / "teacher", build("resnet8", 10))
    recipe = recipe_of(folder, tmp_path / "one", teacher={"weights": str(tmp_path / "teacher")}, **SETTINGS)
    process = alone(_die_after_a_chunk, recipe)
    process.join(120)
    parts = list(folder.glob("*.answers-*.parts/*"))
    assert process.exitcode == 9
    assert len(parts) == 1
    before = parts[0].stat().st_mtime_ns
    made = folder / "made"
    together(2, _run_here, recipe, str(made))
    (path,) = kept(folder)
    times = {line.split()[0]: line.split()[1] for line in made.read_text().splitlines()}
    assert times == {"000000": str(before)}, "the chunk was made anew"
    assert not list(folder.glob("*.parts"))
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert sum(result["qualities"].values()) > 0
    stamp = path.stat().st_mtime_ns
    run(recipe_of(folder, tmp_path / "two", teacher={"weights": str(tmp_path / "teacher")}, seed=1, **SETTINGS))
    assert path.stat().st_mtime_ns == stamp


def _die_after_a_chunk(recipe):
    import os

    teacher_answers.CHUNK = 60
    make = teacher_answers.make_kept

    def once(*args, after_chunk, **settings):
        return make(*args, after_chunk=lambda: os._exit(9), **settings)

    teacher_answers.make_kept = once
    run(recipe)


def _run_here(recipe, made):
    from pathlib import Path

    from jobs import _run_here as train

    teacher_answers.CHUNK = 60
    make = teacher_answers.make_kept

    def looked(dataset, *args, **settings):
        found = list(Path(dataset.path).glob("*.answers-*.parts/*"))
        if found and settings.get("rank") == 0:
            Path(made).write_text("".join(f"{path.name} {path.stat().st_mtime_ns}\n" for path in found))
        return make(dataset, *args, **settings)

    teacher_answers.make_kept = looked
    train(recipe)
