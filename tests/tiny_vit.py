"""A vision transformer of three layers, for tests of what needs tokens: ``build("tiny_vit:TinyViT", 10, width=24)``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyViT(nn.Module):
    """Images [N,3,16,16] -> logits; a class token and 4 x 4 patches. Taps: ``tokens.1..3``, ``tokens.last``."""

    inplace = False

    def __init__(self, num_classes: int, width: int = 24, depth: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.taps = {f"tokens.{i + 1}": f"blocks.{i}" for i in range(depth)} | {"tokens.last": "norm"}
        self.classifier_path = "head"

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])
