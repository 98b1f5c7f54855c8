"""Accuracy and loss of a network over a whole split, every sample exactly once on any number of processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdstream.stream.stream import Stream


@torch.no_grad()
def evaluate(
    network: nn.Module,
    stream: Stream,
    reduce: Callable[[Tensor], Tensor],
    advance: Callable[[int], None],
    confusion: Tensor | None = None,
) -> dict[str, float]:
    """Evaluate.

    Args:
        network: images float [N,3,H,W] -> logits [N,C].
        stream: of evaluation (``train=False``), standardised images on the network's device.
        reduce: sums a tensor over all processes.
        advance: told how many samples this process has finished.
        confusion: int64 [C,C], on the network's device: this process's samples are added to it by class (row) and most
            probable class (column).

    Returns:
        loss (mean cross-entropy), top1, top5 (percent; top5 = top-C where there are fewer classes), count.
    """
    was_training = network.training
    network.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=stream.device)
    for batch in stream:
        logits = network(batch.image).float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        top = best == batch.label[:, None]
        if confusion is not None:
            pairs = batch.label * len(confusion) + best[:, 0]
            confusion += torch.bincount(pairs, minlength=confusion.numel()).view_as(confusion)
        loss = nn.functional.cross_entropy(logits, batch.label, reduction="sum")
        parts = (loss, top[:, 0].sum(), top.any(dim=1).sum(), torch.full((), len(batch), device=stream.device))
        sums += torch.stack([part.double() for part in parts])
        advance(len(batch))
    network.train(was_training)
    loss, first, five, count = reduce(sums).tolist()
    return {"loss": loss / count, "top1": 100 * first / count, "top5": 100 * five / count, "count": count}
