"""MobileNetV1 for ImageNet: a chain of depthwise separable convolutions (Howard et al. 2017, Table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images, he_fan_out_

_UNITS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)
"""Channels at width 1 and stride of each depthwise separable unit."""

_BLOCKS = (3, 5, 11, 13)
"""The last units at total strides 4, 8, 16, 32, counted from 1: 0 is the stem."""


class MobileNetV1(nn.Module):
    """MobileNetV1: 4,231,976 parameters at 1000 classes, ReLU after every convolution.

    State-dict keys are those of the widespread PyTorch version (``model.0.0.weight``, ..., ``fc.weight``), which
    mdistiller uses too. Average pooling is global: at 224 x 224 this is the 7 x 7 pooling of the original, and any
    H, W >= 1 works.

    Taps: ``stem`` (H/2), ``block1..4`` (the last units at H/4, H/8, H/16, H/32: 128, 256, 512, 1024 channels),
    ``block1.pre``, ... (before their last ReLU), ``penultimate`` [N,1024].

    Args:
        num_classes: C.
        width: factor on all channels (the paper's alpha: 1, 0.75, 0.5, 0.25).

    Raises:
        UserError: a width that leaves a layer without channels.
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""

    def __init__(self, num_classes: int, width: float = 1.0):
        super().__init__()
        inputs = int(32 * width)
        if inputs < 1:
            raise UserError(f"MobileNetV1 needs a width of 1/32 or more, not {width}")
        units = [nn.Sequential(*_conv(3, inputs, 3, stride=2))]
        for channels, stride in _UNITS:
            outputs = int(channels * width)
            units.append(
                nn.Sequential(*_conv(inputs, inputs, 3, stride=stride, groups=inputs), *_conv(inputs, outputs, 1))
            )
            inputs = outputs
        self.model = nn.Sequential(*units, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(inputs, num_classes)

        self.classifier_path = "fc"
        self.taps = {"stem": "model.0"}
        for block, unit in enumerate(_BLOCKS, start=1):
            self.taps[f"block{block}"] = f"model.{unit}"
            self.taps[f"block{block}.pre"] = f"model.{unit}.5:input"
        self.taps["map"] = f"model.{len(units) - 1}"
        self.taps["penultimate"] = "fc:input"
        he_fan_out_(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        check_images(x, self, 3)
        return self.fc(self.model(x).flatten(1))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
