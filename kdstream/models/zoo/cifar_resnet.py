"""ResNets for 32 x 32 images: three stages of basic blocks (He et al. 2016, section 4.2), shortcuts of both kinds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images, he_fan_out_


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (``downsample``); [N,inputs,H,W] -> [N,width,H/stride,W/stride]."""

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        # A module of its own, so that its input (the sum) can be tapped.
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.downsample(x))


class PadShortcut(nn.Module):
    """Option A of the paper: every ``stride``-th pixel, zero channels before and after; no parameters."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.before = (width - inputs) // 2
        self.after = width - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class CifarResNet(nn.Module):
    """ResNet-D with D = 6n + 2 layers, n basic blocks in each of three stages with strides 1, 2, 2.

    Where a block changes the shape, its shortcut is a 1x1 convolution with BatchNorm (option B of the paper).
    State-dict keys are those of the public CIFAR-100 teachers (RepDistiller), so their checkpoints load as they are.
    Average pooling is global: at 32 x 32 this is the 8 x 8 pooling of the original, and any H, W >= 1 works.

    Taps: ``stem``, ``block1..3`` (after the last ReLU of the stage), ``block1.pre``, ... (the sum before that ReLU),
    ``penultimate`` [N,widths[3]].

    Args:
        depth: 8, 14, 20, ...
        num_classes: C.
        widths: channels of the stem and of the three stages.

    Raises:
        UserError: a depth that is not 6n + 2, or not four widths.
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""
    classifier_path = "fc"

    def __init__(self, depth: int, num_classes: int, widths: Sequence[int] = (16, 16, 32, 64)):
        super().__init__()
        if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
            raise UserError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, ...), not {depth}")
        if len(widths) != 4 or min(widths) < 1:
            raise UserError(f"a CIFAR ResNet has four positive widths (stem and three stages), not {list(widths)}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = self._stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        setattr(self, self.classifier_path, nn.Linear(widths[3], num_classes))

        self.taps = {"stem": "relu"}
        for stage in (1, 2, 3):
            self.taps[f"block{stage}"] = f"layer{stage}"
            self.taps[f"block{stage}.pre"] = f"layer{stage}.{blocks - 1}.relu2:input"
        self.taps["map"] = "avgpool:input"
        self.taps["penultimate"] = f"{self.classifier_path}:input"
        self._initialise()

    def _stage(self, inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        changes = stride != 1 or inputs != width
        first = BasicBlock(inputs, width, stride, self._shortcut(inputs, width, stride) if changes else nn.Identity())
        return nn.Sequential(first, *(BasicBlock(width, width, 1, nn.Identity()) for _ in range(blocks - 1)))

    @staticmethod
    def _shortcut(inputs: int, width: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def _initialise(self) -> None:
        he_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        check_images(x, self, self.conv1.in_channels)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return getattr(self, self.classifier_path)(self.avgpool(x).flatten(1))


class OptionAResNet(CifarResNet):
    """The same with shortcuts without parameters (option A of the paper, which shrinks no width).

    State-dict keys and initialisation are those of akamaster/pytorch_resnet_cifar10, so its checkpoints load as they
    are.
    """

    classifier_path = "linear"

    @staticmethod
    def _shortcut(inputs: int, width: int, stride: int) -> nn.Module:
        if width < inputs:
            raise UserError(f"a shortcut by zero padding cannot shrink the width from {inputs} to {width}")
        return PadShortcut(inputs, width, stride)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # counts the incoming connections


resnet8 = partial(CifarResNet, 8)
resnet14 = partial(CifarResNet, 14)
resnet20 = partial(CifarResNet, 20)
resnet26 = partial(CifarResNet, 26)
resnet32 = partial(CifarResNet, 32)
resnet44 = partial(CifarResNet, 44)
resnet56 = partial(CifarResNet, 56)
resnet110 = partial(CifarResNet, 110)
resnet8x4 = partial(CifarResNet, 8, widths=(32, 64, 128, 256))
resnet32x4 = partial(CifarResNet, 32, widths=(32, 64, 128, 256))

akamaster_resnet20 = partial(OptionAResNet, 20)
akamaster_resnet32 = partial(OptionAResNet, 32)
akamaster_resnet44 = partial(OptionAResNet, 44)
akamaster_resnet56 = partial(OptionAResNet, 56)
akamaster_resnet110 = partial(OptionAResNet, 110)
