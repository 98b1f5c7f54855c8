"""What a network costs: parameters, multiply-adds and the shapes of its taps, measured without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.notes import taps_of


@dataclass(frozen=True)
class Cost:
    """One network at one image size.

    Args:
        name: as given to :func:`kdstream.models.build`.
        parameters: all learnable ones.
        macs: multiply-adds of one image's forward pass in convolutions, linear layers and attention (FLOPs / 2;
            norms, activations and poolings are not counted, as is usual).
        taps: tap name -> (module path, shape for one image, without the batch).
    """

    name: str
    parameters: int
    macs: int
    taps: dict[str, tuple[str, list[int]]]


def cost(name: str, num_classes: int, size: int, **kw: Any) -> Cost:
    """Build the network on torch's meta device (shapes only: no memory, no arithmetic) and count.

    Args:
        name: as for :func:`kdstream.models.build`, with ``kw``.
        num_classes: C.
        size: H and W of the images, 3 channels.

    Raises:
        UserError: see ``build``; or the network cannot take such images.
    """
    try:
        with torch.device("meta"):
            module = build(name, num_classes, **kw)
    except NotImplementedError:  # some compute their widths with tensors (torchvision's RegNets)
        module = build(name, num_classes, **kw).to("meta")
    module.eval()
    images = torch.empty(1, 3, size, size, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            outputs = Tapped(module, taps_of(module))(images)
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:  # whatever a foreign network says
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model {name!r} cannot take {size} x {size} images: {reason}") from error
    return Cost(
        name=name,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=counter.get_total_flops() // 2,
        taps={tap: (path, list(outputs.features[tap].shape[1:])) for tap, path in taps_of(module).items()},
    )
