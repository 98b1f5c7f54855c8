"""A student in int8: quantized on images of its training, and measured beside the float one on those of validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdstream.analysis.accuracy import Score
from kdstream.convert.kept_shards import kept_shards
from kdstream.convert.open_source import is_source
from kdstream.data.altered import as_asked
from kdstream.data.held_out import divided
from kdstream.data.shards import ShardSet, has_split, open_shards, split_of
from kdstream.errors import UserError
from kdstream.models.onnx_export import OnnxFile
from kdstream.models.quantize import Runner, quantize_onnx, time_ratio
from kdstream.notes import About
from kdstream.recipe import Recipe, make_recipe
from kdstream.stream.stream import Stream
from kdstream.training.chains import evaluation_chain

IMAGES = 512
"""To calibrate with, where nothing else is said."""
_BATCH = 32


@dataclass(frozen=True)
class Int8:
    """A quantized student beside the float one.

    Attributes:
        path: of the file.
        size, float_size: bytes of the two files.
        images: that it was calibrated with, of the training split.
        split: of validation, by name.
        samples: of that split, all.
        float_top1, top1: percent of them, by onnxruntime.
        same: percent of them on which the two give the same class.
        time_ratio: time for one image over that of the float file, on this machine's CPU; median.
    """

    path: Path
    size: int
    float_size: int
    images: int
    split: str
    samples: int
    float_top1: float
    top1: float
    same: float
    time_ratio: float


def recipe_of(about: About) -> Recipe | None:
    """That of the training that gave a student; None where its export does not say."""
    found = (about.get("extra") or {}).get("recipe")
    return make_recipe(found, "the student's recipe") if isinstance(found, dict) else None


def images_of(recipe: Recipe) -> tuple[ShardSet, ShardSet]:
    """The images that a recipe trains and validates with, as its training saw them.

    Raises:
        UserError: they are not where the recipe says.
    """
    data = recipe.data
    path = str(kept_shards(data.path)) if is_source(data.path) else data.path
    names = [data.val] if data.val else [one for one in ("val", "test") if has_split(path, one)]
    if not names and not data.hold_out:
        raise UserError(f"{path} has no split val or test")
    train, *others = (open_shards(split_of(path, one)) for one in (data.train, *([] if data.hold_out else names[:1])))
    if data.num_classes is not None:
        for shards in (train, *others):
            shards.number_classes(data.num_classes)
    train = as_asked(train, data)
    return divided(train, data.hold_out, data.seed or 0) if data.hold_out else (train, others[0])


def to_int8(
    made: OnnxFile,
    about: About,
    *,
    data: str | None = None,
    images: int = IMAGES,
    normalization: bool = False,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Int8:
    """Quantize an exported student; ``student.onnx`` becomes ``student.int8.onnx``.

    Calibration sees training images without augmentation, drawn at random once and for all; validation images only
    measure.

    Args:
        made: the float file.
        about: of the student: its recipe, classes, mean and std.
        data: a folder of shards, in place of the recipe's.
        images: how many to calibrate with.
        normalization: whether the file standardises images itself.
        advance: told what is done, how much of it, and of how much.

    Raises:
        UserError: data that is not there, or of other classes; images of another size than the file takes; see
            :func:`kdstream.models.quantize.quantize_onnx`.
    """
    recipe = recipe_of(about)
    if images < 1:
        raise UserError(f"{images} images to calibrate with: it is a number, 1 or more")
    if recipe is None:
        raise UserError("the export does not say how it was trained, so there are no images to quantize it with")
    if data is not None:
        settings = recipe.data.model_dump(mode="json", exclude_none=True) | {"path": data}
        recipe = make_recipe({**recipe.shown(), "data": settings}, "the student's recipe")
    try:
        train, val = images_of(recipe)
    except UserError as error:
        raise UserError(f"int8 needs images: {error}; say where they are, with --data SHARDS") from error
    classes = about.get("classes")
    mean: Any = about.get("mean")
    std: Any = about.get("std")
    if classes is not None and list(val.classes) != list(classes):
        raise UserError(f"{val.name}/{val.split} has other classes than the student: name its data, with --data SHARDS")
    for shards in (train, val):
        shards.mean, shards.std = mean or shards.mean, std or shards.std
    undo = (train.mean, train.std) if normalization else None
    count = min(images, len(train))
    path = made.path.with_suffix(".int8.onnx")

    def calibrating() -> Iterator[Tensor]:
        done = 0
        size = min(_BATCH, count)
        for batch in _batches(train, recipe, size, True, made, undo):
            done += size
            advance("calibrate", min(done, count), count)
            yield batch[0]
            if done + size > count:  # all batches of one size
                return

    size = quantize_onnx(made.path, path, calibrating())
    exact, coarse = Runner(made.path), Runner(path)
    scores, same, seen = (Score(val.classes, "cpu"), Score(val.classes, "cpu")), 0, 0
    first: Tensor | None = None
    for batch, labels in _batches(val, recipe, _BATCH, False, made, undo):
        first = batch[:1] if first is None else first
        answers = exact(batch), coarse(batch)
        for score, logits in zip(scores, answers, strict=True):
            score.add(logits, labels)
        # Of equal logits, the one that the accuracy counts.
        one, other = (logits.topk(min(5, logits.shape[1])).indices[:, 0] for logits in answers)
        same += int((one == other).sum())
        seen += len(labels)
        advance("measure", seen, len(val))
    if first is None:
        raise UserError(f"{val.name}/{val.split} has no images")
    tops = [score.result().top1 for score in scores]
    ratio = time_ratio(coarse, exact, first)
    used = count // min(_BATCH, count) * min(_BATCH, count)
    split = f"{val.name}/{val.split}"
    return Int8(path, size, made.size, used, split, seen, tops[0], tops[1], 100 * same / seen, ratio)


def _batches(
    shards: ShardSet,
    recipe: Recipe,
    size: int,
    shuffled: bool,
    made: OnnxFile,
    undo: tuple[Sequence[float], Sequence[float]] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as the file takes them, with their labels; ``undo`` is what its own standardisation does."""
    place: dict[str, Any] = {"workers": 0, "device": "cpu", "cache": "off", "rank": 0, "world": 1}
    with torch.no_grad():
        for batch in Stream(shards, size, train=shuffled, **place) | evaluation_chain(recipe):
            image = batch.image
            if tuple(image.shape[1:]) != made.shape:
                raise UserError(
                    f"the images of {shards.name}/{shards.split} are {image.shape[-1]} x {image.shape[-2]} in "
                    f"evaluation, the file takes {made.shape[2]} x {made.shape[1]}: leave --size out"
                )
            if undo is not None:
                mean, std = (torch.tensor(list(one)).view(-1, 1, 1) for one in undo)
                image = image * std.clamp(min=1e-6) + mean
            yield image, batch.label
