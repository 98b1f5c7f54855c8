"""MobileNetV2 for small images: inverted residuals with linear bottlenecks (Sandler et al. 2018)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images, he_fan_out_

_GROUPS = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels at width 1, units, stride of the first unit (Table 2 of the paper, the second group at full resolution)."""

_BLOCKS = (1, 2, 4, 6)
"""The groups, counted from 0, whose outputs are tapped."""


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, 3x3 depthwise, 1x1 without activation; a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        middle = inputs * expansion
        self.conv = nn.Sequential(
            *_conv(inputs, middle, 1),
            *_conv(middle, middle, 3, stride=stride, groups=middle),
            *_conv(middle, outputs, 1)[:2],
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 as the public CIFAR-100 distillation codes have it: half width, ReLU, total stride 16.

    State-dict keys are those of RepDistiller, so its checkpoints load as they are. Average pooling is global: at
    32 x 32 this is the 2 x 2 pooling of the original, and any H, W >= 1 works.

    Taps: ``stem``, ``block1..4`` (after the groups 2, 3, 5, 7), ``block1.pre``, ... (the same: no ReLU follows these
    linear outputs, and what RepDistiller and mdistiller take for their value before a ReLU is their own),
    ``penultimate`` [N,1280].

    Args:
        num_classes: C.
        width: factor on all channels but the last 1280, which only grow.
        expansion: T, from 1.

    Raises:
        UserError: a width that leaves a layer without channels, or an expansion below 1.
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""

    def __init__(self, num_classes: int, width: float = 0.5, expansion: int = 6):
        super().__init__()
        if int(16 * width) < 1:
            raise UserError(f"MobileNetV2 needs a width of 1/16 or more, not {width}")
        if not isinstance(expansion, int) or expansion < 1:
            raise UserError(f"MobileNetV2's expansion is a whole number from 1, not {expansion}")
        inputs = int(32 * width)
        last = max(1280, int(1280 * width))
        self.conv1 = nn.Sequential(*_conv(3, inputs, 3, stride=2))
        self.blocks = nn.ModuleList()
        for group, (channels, units, stride) in enumerate(_GROUPS):
            outputs, factor = int(channels * width), expansion if group else 1
            first = InvertedResidual(inputs, outputs, stride, factor)
            others = (InvertedResidual(outputs, outputs, 1, factor) for _ in range(units - 1))
            self.blocks.append(nn.Sequential(first, *others))
            inputs = outputs
        self.conv2 = nn.Sequential(*_conv(inputs, last, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))

        self.classifier_path = "classifier.0"
        self.taps = {
            "stem": "conv1",
            **{
                f"block{number}{pre}": f"blocks.{group}"
                for number, group in enumerate(_BLOCKS, start=1)
                for pre in ("", ".pre")
            },
            "map": "avgpool:input",
            "penultimate": "classifier.0:input",
        }
        he_fan_out_(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        first: Any = self.conv1[0]  # a convolution
        check_images(x, self, first.in_channels)
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        return self.classifier(self.avgpool(self.conv2(x)).flatten(1))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
