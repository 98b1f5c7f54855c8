"""mixup and cutmix: each image and its neighbour in the batch become two mixtures of both, and so do their labels.

Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization" (arXiv:1710.09412); Yun et al. 2019, "CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features" (arXiv:1905.04899); the alternation of
both, and the share that is corrected where a box is cut off at the border, as in timm's ``Mixup``.

Partners are neighbours in the global batch, whose order is a random permutation of the data set. The slices of the
processes begin at even places where a chain has such a stage (:attr:`kdstream.stream.plan.Plan.group`), so that no pair
is parted, and what is drawn for a pair comes from the key of its first sample: the mixtures are the same for any number
of processes. (Only where stages drop samples, those left over form other pairs in each slice.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.rng import keys, uniform
from kdstream.stream.normalize import to_unit
from kdstream.stream.stage import Stage, given


def mixup(alpha: float = 1.0, p: float = 1.0) -> Stage:
    """Weighted means: x <- lam x + (1 - lam) x', lam drawn from Beta(alpha, alpha) for each pair.

    Images become float in [0,1]. See :func:`mix` for labels, versions and the teacher.

    Args:
        alpha: > 0; small: one of the two dominates.
        p: share of the pairs that are mixed.

    Raises:
        UserError: a setting out of range.
    """
    return _stage("mixup", {"alpha": alpha}, p, 0.0, mixup=alpha)


def cutmix(alpha: float = 1.0, p: float = 1.0) -> Stage:
    """A box of each image is replaced by that of the other; 1 - lam is its share of the area.

    The box has the image's aspect ratio, sides of sqrt(1 - lam) of the image's with lam from Beta(alpha, alpha), and a
    centre drawn uniformly; where the border cuts it, lam is corrected. See :func:`mix` for labels, versions and the
    teacher.

    Args:
        alpha: > 0.
        p: share of the pairs that are mixed.

    Raises:
        UserError: a setting out of range.
    """
    return _stage("cutmix", {"alpha": alpha}, p, 1.0, cutmix=alpha)


def mix(mixup: float = 0.8, cutmix: float = 1.0, p: float = 1.0, switch: float = 0.5) -> Stage:
    """:func:`mixup` or :func:`cutmix`, drawn for each pair; the defaults are DeiT's (Touvron et al. 2021).

    ``Batch.soft`` carries the mixed labels, and ``Batch.label`` the class that has the largest share of them (the
    image's own among equals). Versions that ``coded`` has made are mixed like their images; the teacher answers for the
    mixture, and ``hkl`` takes versions for which it names the class of the largest share. timm draws lam once a batch
    by default, here each pair has its own (timm's mode "pair"). The last image of a batch of odd size stays as it is.

    Args:
        mixup, cutmix: their alphas.
        p: share of the pairs that are mixed.
        switch: share of these that cutmix gets.

    Raises:
        UserError: a setting out of range.
    """
    return _stage("mix", {"mixup": mixup, "cutmix": cutmix}, p, switch, mixup=mixup, cutmix=cutmix)


def check_number(stage: str, what: str, value: Any, least: float, most: float) -> None:
    """That a stage's setting is a number in least..most.

    Raises:
        UserError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{stage}: {what} is {value!r}; it is a number from {least:g} to {most:g}")


def _stage(name: str, alphas: Mapping[str, float], p: float, switch: float, **drawn: float) -> Stage:
    for what, value in alphas.items():
        check_number(name, what, value, 1e-3, 1e3)
    check_number(name, "p", p, 0, 1)
    check_number(name, "switch", switch, 0, 1)
    settings = {"name": name, "mixup": 0.0, "cutmix": 0.0, "p": p, "switch": switch, **drawn}
    return Stage(_mixing, "batch", (), settings, role="mix", random=True)


def _mixing(
    batches: Iterator[Batch],
    name: str,
    mixup: float,
    cutmix: float,
    p: float,
    switch: float,
    num_classes: int = given,
) -> Iterator[Batch]:
    for batch in batches:
        if batch.teacher is not None:
            raise UserError(f"{name} must come before teacher, which answers for the mixture that the student sees")
        height, width = batch.image.shape[-2:]
        lam, inside = shares(keys(batch), height, width, name, mixup, cutmix, p, switch)
        yield mixed(batch, lam, inside, num_classes, only_boxes=switch == 1.0)


_mixing.__name__ = "mix"


def partners(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Each one's neighbour, int64 [count]: 1, 0, 3, 2, ...; an odd one out is its own."""
    place = torch.arange(count, device=device)
    return (place ^ 1).clamp(max=count - 1)


def shares(
    key: Tensor, height: int, width: int, name: str, mixup: float, cutmix: float, p: float, switch: float
) -> tuple[Tensor, Tensor]:
    """What is drawn for every sample, the same for both of a pair.

    Args:
        key: int64 [N], the samples' random keys, pairs side by side.
        height, width: of the images.
        name: of the draw.
        mixup, cutmix, p, switch: see :func:`mix`.

    Returns:
        The image's own share of its mixture, float32 [N] in 0..1, and where a box of its partner replaces it, bool
        [N,1,H,W].
    """
    from scipy.special import betaincinv  # slow to import, and only this stage needs it

    count = len(key)
    first = key[torch.arange(count, device=key.device) // 2 * 2]
    draws = uniform(first, 5, name).cpu()
    cuts = draws[:, 0] < switch
    chosen = (draws[:, 1] < p) & (partners(count) != torch.arange(count))
    middle = draws[:, 2].double() + 2.0**-25  # of the interval that a draw stands for: neither 0 nor 1
    lam = torch.ones(count, dtype=torch.float64)
    for alpha, rows in ((mixup, chosen & ~cuts), (cutmix, chosen & cuts)):
        if alpha and rows.any():
            lam[rows] = torch.from_numpy(betaincinv(alpha, alpha, middle[rows].numpy()))
    sides = (1 - lam).sqrt()[:, None] * torch.tensor([height, width])
    sides = sides.long() * (chosen & cuts)[:, None]
    centres = (draws[:, 3:5] * torch.tensor([height, width])).long()
    low = (centres - sides // 2).clamp(min=0)
    high = torch.minimum(centres + (sides + 1) // 2, torch.tensor([height, width]))
    area = (high - low).prod(dim=1)
    lam = torch.where(cuts, 1 - area / (height * width), lam).float().to(key.device)
    low, high = low.to(key.device), high.to(key.device)
    rows = torch.arange(height, device=key.device)[None]
    columns = torch.arange(width, device=key.device)[None]
    in_rows = (rows >= low[:, :1]) & (rows < high[:, :1])
    in_columns = (columns >= low[:, 1:]) & (columns < high[:, 1:])
    return lam, (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def mixed(batch: Batch, lam: Tensor, inside: Tensor, num_classes: int, only_boxes: bool = False) -> Batch:
    """A batch of mixtures with its mixed labels.

    Args:
        batch: images uint8 or float in [0,1], pairs side by side.
        lam, inside: see :func:`shares`.
        num_classes: C.
        only_boxes: no image is a weighted mean: the pixels keep their type.
    """
    partner = partners(len(batch), batch.label.device)
    weight = torch.where(inside.flatten(1).any(1), 1.0, lam)[:, None, None, None]

    def view(images: Tensor) -> Tensor:
        if not only_boxes:
            images = to_unit(images)
        other = images[partner]
        means = images if only_boxes else images * weight + other * (1 - weight)
        return torch.where(inside, other, means)

    soft = batch.soft
    if soft is None:
        soft = torch.nn.functional.one_hot(batch.label, num_classes).float()
    soft = soft * lam[:, None] + soft[partner] * (1 - lam[:, None])
    largest, classes = soft.max(dim=1)
    own = soft.gather(1, batch.label[:, None])[:, 0]
    label = torch.where(own >= largest, batch.label, classes)
    return replace(batch.map_views(view), label=label, soft=soft)


def mixes(stages: Any) -> list[str]:
    """Names of the stages of a chain that mix images."""
    return [stage.setting("name") for stage in stages if stage.role == "mix"]
