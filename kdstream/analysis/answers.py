"""Answers: what one pass over images tells of a network's logits, alone and beside those of its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kdstream.analysis.accuracy import Score
from kdstream.analysis.peakiness import Moments, Tally
from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.exact import exact, exact_device

LOGITS = (-5.0, 5.0, 50)
"""Ends and bins of the histogram of standardised logits; what is beyond the ends counts in the outermost bins."""


@torch.no_grad()
def look_at(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    device: torch.device | str,
    teacher: Callable[[Tensor], Tensor] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Everything that is told of a network's answers at temperature 1, in plain JSON values.

    Args:
        network: images [n,3,H,W], as the batches have them -> logits [n,C]; on ``device``, in eval mode.
        batches: of two images at least, in all.
        classes: C names.
        device: of images and networks.
        teacher: as ``network``, for the same images.
        advance: told how many more images are done.

    Returns:
        ``samples``; ``top1``, ``top5``, ``loss``, ``calibration_error``, ``per_class`` as
        :class:`kdstream.analysis.accuracy.Accuracy` has them; ``entropy``, ``probability``, ``covariance``,
        ``entropy_histogram`` as :class:`kdstream.analysis.peakiness.Answers`, with the deviations over images
        ``entropy_std``, ``probability_std``; ``logit_histogram``: shares of an image's logits, standardised over its
        classes, in the bins of :data:`LOGITS`. With a teacher the means over images of what :func:`agreement` gives.

    Raises:
        UserError: a network for another number of classes, or whose answers are not finite; fewer than two images.
    """
    score, tally = Score(classes, device), Tally(len(classes), torch.device(device))
    agreed = Moments(3, device)
    low, high, bins = LOGITS
    histogram = torch.zeros(bins, dtype=torch.int64, device=device)
    for batch in batches:
        logits = network(batch.image).float()
        score.add(logits, batch.label)
        tally.add(logits, batch.label)
        place = (_standardised(logits) - low) / (high - low) * bins
        histogram += torch.bincount(place.nan_to_num().long().clamp(0, bins - 1).flatten(), minlength=bins)
        if teacher is not None:
            agreed.add(agreement(logits, teacher(batch.image).float()))
        advance(len(batch))
    if int(score.confusion.sum()) < 2:
        raise UserError("deviations need two images or more")
    right, answers = score.result(), tally.result()
    beside = dict(zip(("pearson", "spearman", "logit_difference"), agreed.mean.tolist(), strict=True))
    found = {
        "samples": right.samples,
        "top1": right.top1,
        "top5": right.top5,
        "loss": right.loss,
        "calibration_error": right.calibration_error,
        "per_class": right.per_class,
        "entropy": answers.entropy_mean,
        "entropy_std": answers.entropy_std,
        "probability": answers.probability_mean,
        "probability_std": answers.probability_std,
        "covariance": answers.covariance,
        "entropy_histogram": list(answers.entropy_histogram),
        "logit_histogram": (histogram / histogram.sum()).tolist(),
        **(beside if teacher is not None else {}),
    }
    if not all(math.isfinite(value) for value in found.values() if isinstance(value, float)):
        raise UserError("the network's answers are not all finite numbers: its weights are damaged or for other images")
    return found


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """How far two networks agree on each image.

    Args:
        student, teacher: logits, float [n,C].

    Returns:
        float64 [n,3]: Pearson's coefficient of the two rows of logits; Spearman's, which is that of their ranks (equal
        logits stand in the order of their classes) and the same for probabilities; the mean over the classes of
        |z_c - v_c|. A row of equal logits correlates with none: 0.
    """
    student, teacher = exact(student), exact(teacher)
    one, other = (logits.argsort(dim=1, stable=True).argsort(dim=1) for logits in (student, teacher))
    pairs = ((student, teacher), (exact(one), exact(other)))
    coefficients = [(_standardised(a) * _standardised(b)).mean(1).nan_to_num() for a, b in pairs]
    return torch.stack([*coefficients, (student - teacher).abs().mean(1)], dim=1).to(exact_device(student.device))


def _standardised(values: Tensor) -> Tensor:
    """Rows of mean 0 and deviation 1 (NaN where all values are equal)."""
    centred = values - values.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt()
