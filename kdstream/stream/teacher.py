"""teacher: the (coded) teacher's answer for every sample of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.stream.normalize import standardise
from kdstream.stream.stage import batch_stage, given

PIXELS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 26}
"""Pixels that go through the teacher in one forward pass, by device: 64 images of 32x32 on a CPU (larger batches fall
out of its caches and run slower), 1,300 of 224x224 on a GPU; halved there as long as memory does not suffice."""


@batch_stage(role="teacher")
def teacher(
    batches: Iterator[Batch],
    model: Callable[[Tensor], Outputs] = given("teacher"),
    mean: Sequence[float] = given("teacher_mean"),
    std: Sequence[float] = given("teacher_std"),
    cache: str | bool | None = "off",
) -> Iterator[Batch]:
    """Set ``teacher`` (and, after ``coded``, ``quality``) of every batch; the versions are dropped.

    The teacher runs in eval mode, without gradients, in chunks that fit memory, on images standardised by its own mean
    and standard deviation: put this stage before ``normalize``.

    Args:
        batches: images uint8 or float in [0,1].
        model: float [n,3,H,W] -> Outputs.
        mean, std: by channel, of images in [0,1], as the teacher was trained.
        cache: "auto", in a :class:`~kdstream.stream.stream.Stream`: the teacher answers once for every sample, and what
            it says (float32 logits, and features of one vector a sample) is kept beside the shards
            (:mod:`kdstream.stream.teacher_answers`), by all that it depends on: a run that finds it makes no teacher
            pass. That is for fixed views: no stage before it may draw at random. "off": it answers for every view anew.
    """
    if isinstance(model, nn.Module):
        model.eval()
    limit: dict[str, int] = {}
    for batch in batches:
        yield answer(batch, model, mean, std, limit)


@torch.no_grad()
def answer(
    batch: Batch,
    model: Callable[[Tensor], Outputs],
    mean: Sequence[float],
    std: Sequence[float],
    limit: dict[str, int] | None = None,
) -> Batch:
    """One batch with the teacher's answer.

    With versions and a selector the teacher answers for the original and all versions, and the selector's choice stays;
    with versions and no selector it answers for the one version there is.

    Args:
        batch: see :func:`teacher`.
        model, mean, std: see :func:`teacher`.
        limit: remembers, between calls, how many samples fit in a chunk ("samples" -> count).
    """
    views, choose = batch.image[:, None], None
    if batch.variants is not None:
        choose = batch.selector
        views = batch.variants if choose is None else _with_original(batch.image, batch.variants)
        if choose is None and views.shape[1] != 1:
            raise UserError("the teacher got several versions of each image but no selector to choose among them")
    limit = {} if limit is None else limit
    device = batch.image.device.type
    pixels = views.shape[1] * views.shape[-1] * views.shape[-2]
    fits = max(1, PIXELS_AT_ONCE.get(device, PIXELS_AT_ONCE["cuda"]) // pixels)
    size = min(limit.get("samples", fits), fits)
    answers: list[Outputs] = []
    picks: list[Tensor] = []
    start = 0
    while start < len(batch):
        part = slice(start, start + size)
        try:
            outputs, pick = _chunk(views[part], batch.label[part], model, mean, std, choose)
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            size = limit["samples"] = size // 2
            torch.cuda.empty_cache()
            continue
        answers.append(outputs)
        picks.append(pick)
        start += size
    joined = Outputs(
        torch.cat([part.logits for part in answers]),
        {name: torch.cat([part.features[name] for part in answers]) for name in answers[0].features},
    )
    quality = None
    if batch.qualities is not None:
        pick = torch.cat(picks)
        original = torch.full_like(batch.qualities[:, :1], -1)
        offered = batch.qualities if choose is None else torch.cat([original, batch.qualities], 1)
        quality = offered.gather(1, pick[:, None])[:, 0]
    return replace(batch, teacher=joined, quality=quality, variants=None, qualities=None, selector=None)


def _with_original(image: Tensor, variants: Tensor) -> Tensor:
    """[N,1+V,3,H,W]: the original first."""
    if image.dtype != variants.dtype:
        image, variants = (part.float() / (255 if part.dtype == torch.uint8 else 1) for part in (image, variants))
    return torch.cat([image[:, None], variants], dim=1)


def _chunk(
    views: Tensor,
    label: Tensor,
    model: Callable[[Tensor], Outputs],
    mean: Sequence[float],
    std: Sequence[float],
    choose: Callable[[Tensor, Tensor], Tensor] | None,
) -> tuple[Outputs, Tensor]:
    """The answers for the chosen versions of n samples and which they are (int64 [n]); views [n,V,3,H,W]."""
    count, versions = views.shape[:2]
    outputs = model(standardise(views.flatten(0, 1), mean, std))
    pick = torch.zeros(count, dtype=torch.int64, device=label.device)
    if choose is not None:
        pick = choose(outputs.logits.unflatten(0, (count, versions)), label)
        if pick.shape != (count,) or pick.dtype != torch.int64:
            raise UserError(f"the selector returned {pick.dtype} {tuple(pick.shape)}; it returns int64 [{count}]")
    rows = torch.arange(count, device=label.device) * versions + pick
    return outputs.map(lambda value: value[rows]), pick
