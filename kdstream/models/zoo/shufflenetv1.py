"""ShuffleNet for small images: grouped 1x1 convolutions and channel shuffles (Zhang et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdstream.models.zoo.parts import check_images

_STEM = 24
_STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels, units."""
_GROUPS = 3


class Unit(nn.Module):
    """1x1, shuffle, 3x3 depthwise, 1x1; added to its input, or (stride 2) beside the pooled input.

    Every convolution has BatchNorm; the first two ReLU as well, and so has the unit's output.

    Args:
        inputs: channels.
        outputs: channels; with stride 2, the pooled input's among them.
        stride: 1 or 2.
        groups_in: of the first convolution.
        groups_out: of the last convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups_in: int, groups_out: int):
        super().__init__()
        branch = outputs - inputs if stride == 2 else outputs
        middle = branch // 4
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=groups_in, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(groups_in) if groups_in > 1 else nn.Identity()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=groups_out, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        # A module of its own, so that its input can be tapped.
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + x if self.pool is None else torch.cat([out, self.pool(x)], 1))


class ShuffleV1(nn.Module):
    """ShuffleNet 1x with 3 groups, as the public CIFAR-100 distillation codes have it: 1x1 stem, total stride 8.

    State-dict keys are those of RepDistiller, so its checkpoints load as they are. Average pooling is global: at
    32 x 32 this is the 4 x 4 pooling of the original, and any H, W >= 1 works.

    Taps: ``stem``, ``block1..3`` (after the last ReLU of the stage), ``block1.pre``, ... (before it), ``penultimate``
    [N,960].

    Args:
        num_classes: C.
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU()
        inputs = _STEM
        self.taps = {"stem": "relu"}
        for stage, (width, units) in enumerate(_STAGES, 1):
            # Too few channels to be worth groups (section 3.2 of the paper).
            first = Unit(inputs, width, 2, 1 if inputs == _STEM else _GROUPS, _GROUPS)
            others = (Unit(width, width, 1, _GROUPS, _GROUPS) for _ in range(units - 1))
            setattr(self, f"layer{stage}", nn.Sequential(first, *others))
            self.taps[f"block{stage}"] = f"layer{stage}"
            self.taps[f"block{stage}.pre"] = f"layer{stage}.{units - 1}.relu3:input"
            inputs = width
        self.taps["map"] = "avgpool:input"
        self.taps["penultimate"] = "linear:input"
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, num_classes)
        self.classifier_path = "linear"

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        check_images(x, self, self.conv1.in_channels)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))
