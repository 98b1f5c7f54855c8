"""Several teachers as one: the mean of their probabilities, and the features of the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.batch import SMALLEST_STD, logits_of
from kdstream.notes import architecture, classifier_path_of, note, spec_of, taps_of

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation by channel, of images in [0,1]."""


class Ensemble(nn.Module):
    """Networks that answer together.

    Images [N,3,H,W] in [0,1] -> log of the mean of the networks' softmaxes, float32 [N,C]; each network gets the images
    as it was trained. The mean is taken at temperature 1: a term of temperature T, which takes softmax(logits / T),
    sees the normalised power p^(1/T) of that mean p, and not the mean of the networks' softened answers.

    Taps and the classifier are those of the first network.

    Args:
        networks: two or more, images -> logits [N,C].
        statistics: of each, see :data:`Statistics`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, networks: Sequence[nn.Module], statistics: Sequence[Statistics]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        shifts, scales = (torch.tensor([list(one[i]) for one in statistics]) for i in (0, 1))
        self.register_buffer("shift", shifts[..., None, None])
        self.register_buffer("scale", scales.clamp(min=SMALLEST_STD)[..., None, None])
        first = networks[0]
        self.inplace = getattr(first, "inplace", True)
        specs = [spec_of(network) for network in networks]
        spec: dict[str, Any] = {"name": " + ".join(map(architecture, networks)), "networks": specs}
        note(self, spec={**spec, "num_classes": specs[0].get("num_classes")})
        path = classifier_path_of(first)
        note(self, classifier_path=None if path is None else within_first(path))
        note(self, taps={name: within_first(path) for name, path in taps_of(first).items()})

    def forward(self, images: Tensor) -> Tensor:
        """Images float [N,3,H,W] in [0,1] -> logits float32 [N,C]."""
        answers = [
            torch.log_softmax(logits_of(network((images - shift) / scale)).float(), 1)
            for network, shift, scale in zip(self.networks, self.shift, self.scale, strict=True)
        ]
        return torch.stack(answers).logsumexp(0) - math.log(len(answers))


def within_first(path: str) -> str:
    """A module path of the first network, as one of the ensemble's."""
    return f"networks.0.{path}"
