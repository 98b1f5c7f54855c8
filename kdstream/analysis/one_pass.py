"""One pass over the unaugmented images of a split: all of them, each exactly once, or a fixed random part."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import torch

from kdstream.batch import Batch
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.stream.augment import augment
from kdstream.stream.decode import decode
from kdstream.stream.stage import Chain
from kdstream.stream.stream import Stream


def one_pass(
    shards: ShardSet,
    *stages: Any,
    size: int | None = None,
    limit: int | None = None,
    batch_size: int = 100,
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Batches of images uint8 (float where ``size`` resizes them) on ``device``, in one process.

    Args:
        shards: the split.
        stages: what follows ``decode`` and the cut.
        size: cut the central square to size x size first, as ``augment(eval, size)``; needed where images differ in
            size.
        limit: at most so many images: the first of a fixed random order, so that a set that is sorted by class still
            gives all classes.
        batch_size: images at a time.
        workers: reader processes.
        device: where batches go and batch stages run.

    Raises:
        UserError: at once: settings out of range, images of different sizes without ``size``.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: it is a number of images, 1 or more")
    if size is None and shards.image_size is None:
        raise UserError(
            f"the images of {shards.name}/{shards.split} differ in size: give a size to cut them to, as 224"
        )
    count = min(limit or len(shards), len(shards))
    view = Chain() | decode if size is None else Chain() | decode | augment("eval", size)
    # The natural order where all images are read, which is the order of the disk.
    alone: dict[str, Any] = {"workers": workers, "device": device, "cache": "off", "rank": 0, "world": 1}
    stream = Stream(shards, batch_size, train=count < len(shards), **alone)
    for stage in (view, *stages):
        stream = stream | stage
    return _first(count, stream)


def _first(count: int, batches: Stream) -> Iterator[Batch]:
    """The first ``count`` samples."""
    left = count
    for batch in batches:
        if len(batch) > left:
            batch = batch.map_tensors(itemgetter(slice(left)))
        left -= len(batch)
        yield batch
        if left == 0:
            return
