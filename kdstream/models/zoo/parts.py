"""What the zoo's networks share: the check of their input and He's initialisation."""

from __future__ import annotations

from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.notes import architecture


def check_images(images: Tensor, module: nn.Module, channels: int, smallest: int = 1) -> None:
    """Refuse images that a network cannot take; shapes only, so it costs nothing and torch.compile folds it away.

    Args:
        images: what the network is called with.
        module: the network, for the message.
        channels: what its first convolution takes.
        smallest: pixels of the shorter side, at least.

    Raises:
        UserError: not [N,channels,H,W], or H or W below ``smallest``.
    """
    if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < smallest:
        size = f" of at least {smallest} x {smallest} pixels" if smallest > 1 else ""
        raise UserError(f"{architecture(module)} takes images [N,{channels},H,W]{size}, not {list(images.shape)}")


def he_fan_out_(module: nn.Module, linear_std: float | None = None) -> None:
    """He et al. 2015 with the outgoing connections: convolutions N(0, 2 / (kh kw outputs)), their biases 0; norms 1, 0.

    Args:
        linear_std: linear layers get N(0, linear_std^2) and bias 0; None leaves torch's initialisation.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return  # only the shapes are asked for; torch works long on numbers that are nowhere
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear) and linear_std is not None:
            nn.init.normal_(layer.weight, 0, linear_std)
            nn.init.zeros_(layer.bias)
