"""ResNets for 32 x 32 images: three stages of basic blocks (He et al. 2016, section 4.2, with 1x1 shortcuts)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from kdstream.errors import UserError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; [N,inputs,H,W] -> [N,width,H/stride,W/stride]."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )
        # A module of its own, so that its input (the sum) can be tapped.
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.downsample(x))


class CifarResNet(nn.Module):
    """ResNet-D with D = 6n + 2 layers, n basic blocks in each of three stages with strides 1, 2, 2.

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

    def __init__(self, depth: int, num_classes: int, widths: Sequence[int] = (16, 16, 32, 64)):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
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
        self.fc = nn.Linear(widths[3], num_classes)

        self.classifier_path = "fc"
        self.taps = {"stem": "relu"}
        for stage in (1, 2, 3):
            self.taps[f"block{stage}"] = f"layer{stage}"
            self.taps[f"block{stage}.pre"] = f"layer{stage}.{blocks - 1}.relu2:input"
        self.taps["penultimate"] = "fc:input"

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, width, stride)
        return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


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
