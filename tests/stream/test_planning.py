"""What a coding plan is made for: names that last, and the view without what is drawn at random, the user's too."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from test_coding_plan import folder, plans, stream_of  # noqa: F401 (a fixture)

import kdstream as kd
from kdstream.errors import UserError
from kdstream.stream import parse_chain
from kdstream.stream.planning import plan_key, unaugmented


@kd.stage(random=True)
def dimmed(samples):
    for sample in samples:
        share = kd.uniform(torch.tensor([sample["rng_key"]]), 1, "dimmed").item()
        yield {**sample, "image": (sample["image"] * share).to(torch.uint8)}


@kd.batch_stage(random=True)
def inverted(batches):
    for batch in batches:
        chosen = (kd.uniform(batch.rng_key, 1, "inverted") < 0.5)[:, :, None, None]
        yield batch.map_views(lambda images, chosen=chosen: images.where(~chosen, 255 - images))


@kd.batch_stage
def negative(batches):
    for batch in batches:
        yield batch.map_views(lambda images: 255 - images)


KNOWN = {"teacher": None, "teacher_hash": "t" * 64, "teacher_mean": (0.3,) * 3, "teacher_std": (0.3,) * 3}
KNOWN |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize(
    ("chain", "view", "name"),
    [
        (
            "decode | augment(cifar) | coded(hkl, plan=auto) | teacher | normalize",
            "decode() | coded(delta=10, subsampling='4:4:4', plan='off')",
            "hkl-d10-444-6256e15b",
        ),
        (
            "decode | coded(hkl, delta=5, plan=auto) | augment(inception, 12, jitter=[0.4, 0.4, 0.4, 0.1]) | teacher",
            "decode() | coded(delta=5, subsampling='4:4:4', plan='off') | center_box(size=12)",
            "hkl-d5-444-84710bf5",
        ),
        (
            "decode(upright=false) | augment(inception, 24) | coded(delta=20, subsampling='4:2:0', plan=auto)",
            "decode(upright=False) | center_box(size=24) | coded(delta=20, subsampling='4:2:0', plan='off')",
            "hkl-d20-420-e905389c",
        ),
        (
            "decode | augment(eval, 16) | coded(hkl, delta=20, plan=auto) | teacher",
            "decode() | center_box(size=16, crop=0.875) | coded(delta=20, subsampling='4:4:4', plan='off')",
            "hkl-d20-444-79743350",
        ),
    ],
)
def test_plans_made_before_stages_had_roles_are_found_again(chain, view, name):
    """The names are those of commit 7508357."""
    chain = parse_chain(chain)
    key = plan_key(chain, chain.roles.index("coded"), KNOWN, SimpleNamespace(fingerprint="data"))
    assert key.view == f"{view}, mean [0.3, 0.3, 0.3], std [0.3, 0.3, 0.3], precision no"
    assert key.file_name("train") == f"train.coding-tttttttt-{name}.bin"


def test_random_stages_of_ones_own_are_left_out(folder):  # noqa: F811
    coded = kd.coded("hkl", delta=20, plan="auto") | kd.teacher
    plain = next(iter(stream_of(folder, kd.decode | coded)))
    (path,) = plans(folder)
    made, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert len(set(made)) > 1
    batch = next(iter(stream_of(folder, kd.decode | dimmed | inverted | coded | inverted)))
    assert plans(folder) == [path]
    assert path.stat().st_mtime_ns == stamp
    assert batch.quality.equal(plain.quality)
    assert not batch.image.equal(plain.image)  # in the training they take part
    with pytest.raises(UserError, match="put dimmed before negative"):
        next(iter(stream_of(folder, kd.decode | negative | dimmed | coded)))
    assert plans(folder) == [path]
    next(iter(stream_of(folder, kd.decode | dimmed | negative | coded)))
    (other,) = set(plans(folder)) - {path}
    assert other.read_bytes() != made
    assert "negative" in json.loads(other.with_suffix(".json").read_text())["view"]
    assert "dimmed" not in other.with_suffix(".json").read_text()


def test_the_view_goes_by_what_stages_are_not_by_their_names():
    def called(name, **settings):
        def function(batches, size=None):
            yield from batches

        function.__name__ = name
        return kd.batch_stage(**settings)(function)

    own = [called(name) for name in ("teacher", "normalize", "coded", "random_box", "crop_flip")]
    gone = [called(name, random=True) for name in ("teacher", "decode", "center_box")]
    chain = kd.decode() | kd.augment("inception", 8)
    for stage in [*own, *gone, kd.coded("hkl", plan="auto"), kd.normalize, *own]:
        chain = chain | stage
    view = unaugmented(chain.stages, chain.roles.index("coded"))
    names = ["decode", "center_box", "teacher", "normalize", "coded", "random_box", "crop_flip", "coded"]
    assert [stage.name for stage in view.stages] == names
    assert view.roles == [None, "box", None, None, None, None, None, "coded"]
    assert view.stages[1].settings == {"size": 8}
    assert view.stages[-1].settings["plan"] == "off"
    by_position = parse_chain("decode | kdstream.stream.augment:random_box(24) | coded(hkl, plan=auto)")
    assert unaugmented(by_position.stages, 2).stages[1].settings == {"size": 24}
