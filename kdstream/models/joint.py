"""A student that answers through its teacher's classifier: backbone, connector, reused linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.notes import architecture, classifier_path_of, taps_of


class Connector(nn.Module):
    """Bias-free convolutions, each with BatchNorm and ReLU: [N,channels,H,W] -> [N,width,H,W].

    Source: "Knowledge Distillation Under Ideal Joint Classifier Assumption", section 4.2; Chen et al. 2022 (SimKD,
    arXiv:2203.14001).

    Args:
        channels: of the student's map.
        width: of the result, that of the teacher's classifier.
        kernels: odd sizes of the convolutions: (1,), (1, 1), (1, 3, 1).
        mid_channels: between the convolutions; None: half of ``width``.
    """

    def __init__(self, channels: int, width: int, kernels: Sequence[int] = (1,), mid_channels: int | None = None):
        super().__init__()
        middle = max(1, width // 2) if mid_channels is None else mid_channels
        self.depth = len(kernels)
        inputs = channels
        for number, kernel in enumerate(kernels, 1):
            outputs = width if number == self.depth else middle
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(outputs))
            inputs = outputs

    def forward(self, maps: Tensor) -> Tensor:
        for number in range(1, self.depth + 1):
            maps = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(maps)))
        return maps


def _pair(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    return height, width


class ReusedHead(nn.Module):
    """From a student's last feature map to logits through a teacher's linear layer: [N,channels,H,W] -> [N,C].

    Args:
        num_classes: C.
        channels, width, kernels, mid_channels: of the :class:`Connector`.
        size: (H', W') to which the map is average-pooled before the connector, where it is larger than the teacher's
            (SimKD's rule); None: it stays as it is.
        bias: whether the classifier has one.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        width: int,
        kernels: Sequence[int] = (1,),
        mid_channels: int | None = None,
        size: Sequence[int] | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.size = None if size is None else _pair(size)
        self.connector = Connector(channels, width, kernels, mid_channels)
        self.classifier = nn.Linear(width, num_classes, bias=bias)

    def connect(self, maps: Tensor) -> Tensor:
        """What stands in for the teacher's map: [N,width,H',W']."""
        return self.connector(maps if self.size is None else F.adaptive_avg_pool2d(maps, self.size))

    def classify(self, connected: Tensor) -> Tensor:
        """The classifier's answer to the spatial mean: [N,width,H',W'] -> [N,C]."""
        return self.classifier(connected.mean(dim=(2, 3)))

    def forward(self, maps: Tensor) -> Tensor:
        return self.classify(self.connect(maps))


class JointNetwork(nn.Module):
    """Images [N,3,H,W] -> logits [N,C] of the reused classifier.

    Taps: those of the backbone; ``connector`` (the map that stands in for the teacher's); ``penultimate`` is what the
    reused classifier sees.

    Args:
        num_classes: C.
        backbone: ``spec`` of the student (see :func:`kdstream.models.build`). Its own classifier is left out.
        path: of the backbone's module whose map goes on.
        side: "output" or "input" of that module. (Not ``path:input`` as taps have it: in a saved spec that would read
            like the path of somebody's code, which loading refuses.)
        head: settings of :class:`ReusedHead` but ``num_classes``.

    Raises:
        UserError: a backbone that cannot be built, that has no classifier or no such module; wrong settings.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Mapping[str, Any],
        path: str,
        side: Literal["output", "input"],
        head: Mapping[str, Any],
    ):
        super().__init__()
        if side not in ("output", "input"):
            raise UserError(f"a joint network takes the output or the input of {path!r}, not {side!r}")
        try:
            network = build(**backbone)
            self.head = ReusedHead(num_classes, **head)
        except TypeError as error:
            raise UserError(
                f"a joint network cannot be built from backbone {backbone} and head {head}: {error}"
            ) from error
        own = classifier_path_of(network)
        if own is None:
            raise UserError(f"{architecture(network)} has no linear classifier that another could replace")
        network.set_submodule(own, nn.Identity())
        self.backbone = Tapped(network, {"map": path if side == "output" else f"{path}:input"})

        self.inplace = getattr(network, "inplace", True)
        self.classifier_path = "head.classifier"
        self.taps = {name: f"backbone.module.{place}" for name, place in taps_of(network).items()}
        self.taps |= {"connector": "head.connector", "penultimate": "head.classifier:input"}

    def start_from(self, student: nn.Module, classifier: nn.Linear) -> None:
        """Take over the weights of the plain student and, frozen, those of the teacher's classifier."""
        own = f"{classifier_path_of(student)}."
        state = {key: value for key, value in student.state_dict().items() if not key.startswith(own)}
        self.backbone.module.load_state_dict(state)
        self.head.classifier.load_state_dict(classifier.state_dict())
        self.head.classifier.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        return self.head(self.backbone(images).features["map"])
