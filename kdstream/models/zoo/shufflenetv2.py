"""ShuffleNet V2 for small images: channel splits and shuffles (Ma et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images

_STEM = 24
_UNITS = (4, 8, 4)


class Unit(nn.Module):
    """One half of the channels untouched, the other through 1x1, 3x3 depthwise, 1x1; then a shuffle of both.

    The input must not be negative (within the network it comes from ReLUs): the last ReLU runs over both halves,
    which leaves the untouched one as it is and makes the joined pre-activation one tensor.
    """

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        untouched, out = x.chunk(2, 1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(out)))))
        out = self.bn3(self.conv3(out))
        return self.shuffle(self.relu2(torch.cat([untouched, out], 1)))


class DownUnit(nn.Module):
    """Two branches with stride 2, each half of the output's channels; then a shuffle."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.relu1(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return self.shuffle(self.relu2(torch.cat([left, right], 1)))


class ShuffleV2(nn.Module):
    """ShuffleNet V2, 1x, as the public CIFAR-100 distillation codes have it: 1x1 stem, total stride 8.

    State-dict keys are those of RepDistiller, so its checkpoints load as they are. Average pooling is global: at
    32 x 32 this is the 4 x 4 pooling of the original, and any H, W >= 1 works.

    Taps: ``stem``, ``block1..3``, ``block1.pre``, ... (untouched half and last BatchNorm's output, before ReLU and
    *before the shuffle*: its channels are ordered otherwise than the block's), ``penultimate`` [N,widths[3]].

    Args:
        num_classes: C.
        widths: channels of the three stages (even) and of the last convolution.

    Raises:
        UserError: not four such widths.
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int, widths: Sequence[int] = (116, 232, 464, 1024)):
        super().__init__()
        if len(widths) != 4 or min(widths) < 1 or any(width % 2 for width in widths[:3]):
            raise UserError(f"ShuffleV2 has three even widths and the last convolution's, not {list(widths)}")
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu1 = nn.ReLU()
        inputs = _STEM
        self.taps = {"stem": "relu1"}
        for stage, (width, units) in enumerate(zip(widths[:3], _UNITS, strict=True), 1):
            others = (Unit(width) for _ in range(units - 1))
            setattr(self, f"layer{stage}", nn.Sequential(DownUnit(inputs, width), *others))
            self.taps[f"block{stage}"] = f"layer{stage}"
            self.taps[f"block{stage}.pre"] = f"layer{stage}.{units - 1}.relu2:input"
            inputs = width
        self.taps["map"] = "avgpool:input"
        self.taps["penultimate"] = "linear:input"
        self.conv2 = nn.Conv2d(inputs, widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[3], num_classes)
        self.classifier_path = "linear"

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        check_images(x, self, self.conv1.in_channels)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.linear(self.avgpool(x).flatten(1))
