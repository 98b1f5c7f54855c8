"""VGG with BatchNorm and one linear layer, for small images (Simonyan and Zisserman 2015, in RepDistiller's form)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images, he_fan_out_

_WIDTHS = (64, 128, 256, 512, 512)
_POOL_BEFORE_BLOCK4 = 64
"""From this size on there is a fourth pooling."""


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with BatchNorm and ReLU, 2x2 max pooling between, global average pooling, linear.

    Between the last two blocks there is no pooling at 32 x 32. The public code pools there at 64 x 64 only; here all
    images whose shorter side has 64 pixels or more are pooled, so that 224 x 224 costs what it should.
    torchvision's networks of the same names have three linear layers: ``build("torchvision.models:vgg16", C)``.
    State-dict keys are those of the public CIFAR-100 teachers (RepDistiller), so their checkpoints load as they are.

    Taps, before the pooling: ``stem`` (64 channels) and ``block1..4`` after the last ReLU of the block, ``block1.pre``,
    ... before it, ``penultimate`` [N,512].

    Args:
        convolutions: how many each block has (five numbers).
        num_classes: C.

    Raises:
        UserError: not five positive numbers; when called, images smaller than 8 x 8.
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""
    block0: nn.Sequential
    relu0: nn.ReLU
    block1: nn.Sequential
    relu1: nn.ReLU
    block2: nn.Sequential
    relu2: nn.ReLU
    block3: nn.Sequential
    relu3: nn.ReLU
    block4: nn.Sequential
    relu4: nn.ReLU

    def __init__(self, convolutions: Sequence[int], num_classes: int):
        super().__init__()
        if len(convolutions) != len(_WIDTHS) or min(convolutions) < 1:
            raise UserError(f"a VGG has five blocks of one or more convolutions, not {list(convolutions)}")
        inputs = 3
        for block, (count, width) in enumerate(zip(convolutions, _WIDTHS, strict=True)):
            setattr(self, f"block{block}", _block(inputs, width, count))
            # Outside of the block, so that what stands before it can be tapped.
            setattr(self, f"relu{block}", nn.ReLU())
            inputs = width
        self.maxpool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, num_classes)

        self.classifier_path = "classifier"
        self.taps = {"stem": "relu0"}
        for block in (1, 2, 3, 4):
            self.taps |= {f"block{block}": f"relu{block}", f"block{block}.pre": f"block{block}"}
        self.taps["map"] = "avgpool:input"
        self.taps["penultimate"] = "classifier:input"
        he_fan_out_(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        first: Any = self.block0[0]  # a convolution
        check_images(x, self, first.in_channels, smallest=8)
        large = min(x.shape[2:]) >= _POOL_BEFORE_BLOCK4
        x = self.maxpool(self.relu0(self.block0(x)))
        x = self.maxpool(self.relu1(self.block1(x)))
        x = self.maxpool(self.relu2(self.block2(x)))
        x = self.relu3(self.block3(x))
        if large:
            x = self.maxpool(x)
        x = self.relu4(self.block4(x))
        return self.classifier(self.avgpool(x).flatten(1))


def _block(inputs: int, width: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(inputs if i == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


vgg8 = partial(VGG, (1, 1, 1, 1, 1))
vgg11 = partial(VGG, (1, 1, 2, 2, 2))
vgg13 = partial(VGG, (2, 2, 2, 2, 2))
vgg16 = partial(VGG, (2, 2, 3, 3, 3))
vgg19 = partial(VGG, (2, 2, 4, 4, 4))
