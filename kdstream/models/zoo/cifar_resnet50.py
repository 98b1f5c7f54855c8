"""ResNet-50 for small images: ImageNet's bottleneck blocks and widths behind a 3x3 stem (He et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images, he_fan_out_

_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to 4 width, and a shortcut; [N,inputs,H,W] -> [N,4*width,H/stride,W/stride]."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        # A module of its own, so that its input (the sum) can be tapped.
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + self.shortcut(x))


class CifarBottleneckResNet(nn.Module):
    """Four stages of bottleneck blocks with strides 1, 2, 2, 2 behind a 3x3 stem with stride 1 and no pooling.

    State-dict keys are those of the public CIFAR-100 teachers (RepDistiller), so their checkpoints load as they are.
    Average pooling is global; any H, W >= 1 works.

    Taps: ``stem``, ``block1..4`` (after the last ReLU of the stage), ``block1.pre``, ... (the sum before that ReLU),
    ``penultimate`` [N,2048].

    Args:
        blocks: how many each stage has (four numbers).
        num_classes: C.

    Raises:
        UserError: not four positive numbers.
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, blocks: Sequence[int], num_classes: int):
        super().__init__()
        if len(blocks) != len(_WIDTHS) or min(blocks) < 1:
            raise UserError(f"a bottleneck ResNet has four stages of one or more blocks, not {list(blocks)}")
        inputs = _WIDTHS[0]
        self.conv1 = nn.Conv2d(3, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.taps = {"stem": "relu"}
        for stage, (count, width) in enumerate(zip(blocks, _WIDTHS, strict=True), 1):
            first = Bottleneck(inputs, width, 1 if stage == 1 else 2)
            inputs = _EXPANSION * width
            setattr(
                self, f"layer{stage}", nn.Sequential(first, *(Bottleneck(inputs, width, 1) for _ in range(count - 1)))
            )
            self.taps[f"block{stage}"] = f"layer{stage}"
            self.taps[f"block{stage}.pre"] = f"layer{stage}.{count - 1}.relu3:input"
        self.taps["map"] = "avgpool:input"
        self.taps["penultimate"] = "linear:input"
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, num_classes)
        self.classifier_path = "linear"
        he_fan_out_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        check_images(x, self, self.conv1.in_channels)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.avgpool(x).flatten(1))


ResNet50 = partial(CifarBottleneckResNet, (3, 4, 6, 3))
