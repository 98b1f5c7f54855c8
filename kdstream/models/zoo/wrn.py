"""Wide residual networks for 32 x 32 images: pre-activation blocks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images, he_fan_out_


class Block(nn.Module):
    """BN - ReLU - 3x3 convolution, twice, and a shortcut; [N,inputs,H,W] -> [N,width,H/stride,W/stride].

    Where the width changes, the shortcut is a 1x1 convolution of the *activated* input; elsewhere the raw input.
    """

    def __init__(self, inputs: int, width: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = None
        if inputs != width:
            self.convShortcut = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(active)))
        out = self.conv2(self.dropout(out))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """``blocks`` blocks, of which the first has the stride."""

    def __init__(self, inputs: int, width: int, blocks: int, stride: int, dropout: float):
        super().__init__()
        first = Block(inputs, width, stride, dropout)
        self.layer = nn.Sequential(first, *(Block(width, width, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-depth-width with depth = 6n + 4: n blocks in each of three stages with strides 1, 2, 2.

    Sizes without a name of their own: ``build("kdstream.models.zoo.wrn:WideResNet", C, depth=22, width=8)``.
    State-dict keys are those of the public CIFAR-100 teachers (RepDistiller), so their checkpoints load as they are.
    Average pooling is global: at 32 x 32 this is the 8 x 8 pooling of the original, and any H, W >= 1 works.

    Taps: ``stem`` (the first convolution, without norm and ReLU), ``block1..3`` (sums, signed), ``block1.pre``,
    ... (those sums after the BatchNorm that follows them, before its ReLU), ``penultimate`` [N,64*width].

    Args:
        depth: 10, 16, 22, 28, ...
        width: k; the stages have 16k, 32k and 64k channels. k = 1 has no shortcut convolution in the first stage.
        num_classes: C.
        dropout: probability in [0, 1), before the second convolution of every block.

    Raises:
        UserError: a depth that is not 6n + 4, a width below 1, or a dropout outside [0, 1).
    """

    inplace = False
    """No operation changes a tapped tensor in place, so :class:`kdstream.models.taps.Tapped` need not copy."""

    def __init__(self, depth: int, width: int, num_classes: int, dropout: float = 0.0):
        super().__init__()
        if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
            raise UserError(f"a wide ResNet has 6n + 4 layers (10, 16, 22, ...), not {depth}")
        if not isinstance(width, int) or width < 1:
            raise UserError(f"a wide ResNet's width is a whole number from 1, not {width}")
        if not 0 <= dropout < 1:
            raise UserError(f"a wide ResNet's dropout is a probability in [0, 1), not {dropout}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, blocks, 1, dropout)
        self.block2 = Stage(16 * width, 32 * width, blocks, 2, dropout)
        self.block3 = Stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)

        self.classifier_path = "fc"
        self.taps = {
            "stem": "conv1",
            "block1": "block1",
            "block1.pre": "block2.layer.0.bn1",
            "block2": "block2",
            "block2.pre": "block3.layer.0.bn1",
            "block3": "block3",
            "block3.pre": "bn1",
            "map": "avgpool:input",
            "penultimate": "fc:input",
        }
        he_fan_out_(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N,3,H,W] -> logits [N,C]."""
        check_images(x, self, self.conv1.in_channels)
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.avgpool(self.relu(self.bn1(x))).flatten(1))


wrn_10_1 = partial(WideResNet, 10, 1)
wrn_16_1 = partial(WideResNet, 16, 1)
wrn_28_1 = partial(WideResNet, 28, 1)
wrn_40_1 = partial(WideResNet, 40, 1)
wrn_64_1 = partial(WideResNet, 64, 1)
wrn_10_2 = partial(WideResNet, 10, 2)
wrn_16_2 = partial(WideResNet, 16, 2)
wrn_28_2 = partial(WideResNet, 28, 2)
wrn_40_2 = partial(WideResNet, 40, 2)
wrn_16_4 = partial(WideResNet, 16, 4)
wrn_40_4 = partial(WideResNet, 40, 4)
wrn_28_10 = partial(WideResNet, 28, 10)
