"""Accuracy and loss of a network over a whole split, every sample exactly once on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.exact import exact, exact_device
from kdstream.models.taps import Tapped
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
        network: images float [N,3,H,W] -> logits [N,C], or an object that has ``logits``.
        stream: of evaluation (``train=False``), standardised images on the network's device.
        reduce: sums a tensor over all processes.
        advance: told how many samples this process has finished.
        confusion: int64 [C,C], on the network's device: this process's samples are added to it by class (row) and most
            probable class (column).

    Returns:
        loss (mean cross-entropy), top1, top5 (percent; top5 = top-C where there are fewer classes), count.

    Raises:
        UserError: data that makes no batch; an answer that is no tensor of logits.
    """
    was_training = network.training
    network.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=exact_device(stream.device))
    for batch in validation_batches(stream):
        sums += batch_sums(network, batch, confusion)
        advance(len(batch))
    network.train(was_training)
    loss, first, five, count = reduce(sums).tolist()
    return {"loss": loss / count, "top1": 100 * first / count, "top5": 100 * five / count, "count": count}


def batch_sums(network: nn.Module, batch: Batch, confusion: Tensor | None = None) -> Tensor:
    """Over a batch: the cross-entropy, how often the first and one of the first five classes is right, the count; [4]
    float64. For ``confusion`` see :func:`evaluate`."""
    logits = Tapped(network)(batch.image).logits.float()
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    top = best == batch.label[:, None]
    if confusion is not None:
        pairs = batch.label * len(confusion) + best[:, 0]
        confusion += torch.bincount(pairs, minlength=confusion.numel()).view_as(confusion)
    loss = nn.functional.cross_entropy(logits, batch.label, reduction="sum")
    parts = (loss, top[:, 0].sum(), top.any(dim=1).sum(), torch.full((), len(batch), device=logits.device))
    return torch.stack([exact(part) for part in parts])


def validation_batches(stream: Stream) -> Iterator[Batch]:
    """The stream's batches; what is wrong with them is said to be about the validation set."""
    try:
        yield from stream
    except UserError as error:
        data = stream.dataset
        raise UserError(f"validation set ({data.split} of {data.path}), eval_stream: {error}") from error
