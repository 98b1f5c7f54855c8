"""Networks to be asked: whatever holds weights, loaded for a data set, as a function of images in [0,1]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.addresses import is_published, is_url
from kdstream.batch import Batch, logits_of
from kdstream.data.shards import ShardSet
from kdstream.models.pretrained import load_for
from kdstream.notes import about_of
from kdstream.stream.normalize import standardise


@dataclass(frozen=True)
class Asked:
    """A network that is called with images and answers with logits.

    Attributes:
        name: what to call it.
        network: in eval mode, frozen.
        mean, std: by channel, that images in [0,1] are standardised with.
        note: what a user should know of its classes.
    """

    name: str
    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    note: str | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """Images uint8, or float in [0,1], [n,3,H,W] -> logits [n,C]."""
        logits: Tensor = logits_of(self.network(standardise(image, self.mean, self.std)))
        return logits


def load_asked(name: str, place: str, data: ShardSet, device: torch.device | str, model: str | None = None) -> Asked:
    """Load a network that answers for the classes of ``data``.

    Args:
        name: what to call it.
        place: a run's folder or another export, a file of weights, its address, ``published:`` weights; or the name of
            a network whose library has weights (``resnet18``, ``timm:...``, ``hf:...``), which it downloads.
        data: whose classes it answers for.
        device: where it goes.
        model: the network of a file of weights.

    Raises:
        UserError: see :func:`kdstream.models.pretrained.load_teacher`.
    """
    weights: str | None = place
    options: dict[str, Any] | None = None
    if not (is_published(place) or is_url(place) or Path(place).exists()):
        weights, model = None, place
        options = {"pretrained": True} if place.startswith(("timm:", "hf:")) else {"weights": "DEFAULT"}
    network, note = load_for(data.classes, weights, model=model, options=options)
    about = about_of(network)
    mean, std = about["mean"] or data.mean, about["std"] or data.std
    return Asked(name, network.requires_grad_(False).eval().to(device), mean, std, note)


@torch.no_grad()
def gather(networks: Sequence[Asked], batches: Iterable[Batch]) -> tuple[list[Tensor], Tensor]:
    """The answers of several networks to the same images, in main memory.

    Returns:
        Logits float32 [N,C] of each network, and labels int64 [N].
    """
    answers: list[list[Tensor]] = [[] for _ in networks]
    labels = []
    for batch in batches:
        labels.append(batch.label.cpu())
        for one, found in zip(networks, answers, strict=True):
            found.append(one(batch.image).float().cpu())
    return [torch.cat(found) for found in answers], torch.cat(labels)
