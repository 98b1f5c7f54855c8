"""evaluate: how often a network is right on a split, how well it knows that, and what it takes for what."""

from __future__ import annotations

import os
from typing import Any

import torch
from rich.console import Console
from torch import nn

from kdstream.analysis.accuracy import Accuracy, accuracy
from kdstream.analysis.predict import view_of
from kdstream.bars import progress_bars
from kdstream.data.shards import has_split, open_shards, split_of
from kdstream.errors import UserError
from kdstream.models.classes import Choice
from kdstream.models.pretrained import check_weights, load_for
from kdstream.notes import about_of


def evaluate(
    network: nn.Module | str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str | None = None,
    *,
    model: str | None = None,
    classes: Choice = None,
    size: int | None = None,
    limit: int | None = None,
    batch_size: int = 100,
    workers: int = 0,
    device: torch.device | str | None = None,
    trust_code: bool = False,
    show: bool = True,
) -> Accuracy:
    """Measure a network on the images of a split, each exactly once, as ``kdstream evaluate`` does.

    Args:
        network: a result of :func:`kdstream.distill`, the folder of a run, weights as
            :func:`kdstream.load_teacher` takes them, or a module: images [N,3,H,W] -> logits [N,C], standardised as its
            ``about`` says, else as the data does.
        data: a folder of shards, or their address.
        split: its name; default: val, else test.
        model: the network that a file of weights is for; None = recognised.
        classes: which outputs stand for the data's classes, see :data:`kdstream.models.classes.Choice`.
        size: cut the central square to size x size; default: as the network was trained.
        limit: at most so many images, drawn at random once and for all.
        batch_size, workers, device: how it is done; device None = a GPU where there is one.
        trust_code: run the code of a network of your own that an export names.
        show: a progress bar, on a terminal or in a notebook.

    Raises:
        UserError: no such data or weights; a network for other classes; images of several sizes and no size known.
    """
    name = split or next((one for one in ("val", "test") if has_split(os.fspath(data), one)), "val")
    shards = open_shards(split_of(os.fspath(data), name))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(network, nn.Module):
        measured: nn.Module = network
        if model is not None or classes is not None:
            raise UserError("model and classes are for weights; a module is what it is")
    else:
        weights = os.fspath(network)
        check_weights(weights)
        names: dict[str, Any] = {"choice": classes, "option": "classes"}
        measured, _ = load_for(shards.classes, weights, model=model, trust_code=trust_code, **names)
    about = about_of(measured)
    mean, std = about.get("mean") or shards.mean, about.get("std") or shards.std
    view = view_of(measured, size, mean, std).size
    cut = size if size is not None else view[0] if view and view[0] == view[1] and view != shards.image_size else None
    home, training = next((one.device for one in measured.parameters()), place), measured.training
    total = min(limit or len(shards), len(shards))
    try:
        measured.to(place).eval()
        with progress_bars(Console(quiet=not show)) as progress:
            bar = progress.add_task("evaluate", total=total)
            return accuracy(
                measured,
                shards,
                mean,
                std,
                size=cut,
                limit=limit,
                batch_size=batch_size,
                workers=workers,
                device=place,
                advance=lambda count: progress.advance(bar, count),
            )
    finally:
        measured.to(home).train(training)
