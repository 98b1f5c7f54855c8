"""coded: compressed versions of every image, and the rule by which the teacher stage chooses one.

Salamah, Hamidi & Yang, "A coded knowledge distillation framework for image classification based on adaptive JPEG
encoding" (the seed paper), section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdstream import jpeg
from kdstream.batch import Batch, Sample
from kdstream.errors import UserError
from kdstream.exact import exact
from kdstream.jpeg.reference import Subsampling, check_subsampling
from kdstream.registry import import_named, nearest
from kdstream.rng import keys, uniform
from kdstream.stream.coding_plan import ORIGINAL
from kdstream.stream.language import Call
from kdstream.stream.normalize import to_bytes
from kdstream.stream.stage import Stage

Choose = Callable[[Tensor, Tensor], Tensor]
"""(logits [N,1+V,C] with the original at 0, label [N]) -> int64 [N], the index of the version to use."""


def hkl(logits: Tensor, label: Tensor) -> Tensor:
    """The paper's selector, equations (3) and (4): among the versions that the teacher classifies correctly, the one
    whose output has the largest KL divergence from the output for the original.

    Args:
        logits: [N,V,C], the teacher's for each version at temperature 1; index 0 is the original, which competes too.
        label: int64 [N].

    Returns:
        int64 [N] in 0..V-1: the chosen version, the lowest index among equals; 0 where none is classified correctly
        (footnote 1).
    """
    log_p = torch.log_softmax(exact(logits), dim=-1)
    divergence = (log_p[:, :1].exp() * (log_p[:, :1] - log_p)).sum(-1)
    correct = logits.argmax(-1) == label[:, None]
    divergence = divergence.masked_fill(~correct.to(divergence.device), -torch.inf)
    best = divergence == divergence.max(dim=1, keepdim=True).values
    # max() of a mask as integers gives the first one; with no correct version all are -inf and the first is 0.
    order = torch.arange(logits.shape[1], 0, -1, device=best.device)
    return (best * order).argmax(dim=1).to(logits.device)


@dataclass(frozen=True)
class Random:
    """One version a sample, its quality drawn uniformly from low..high (both included), anew every epoch."""

    low: int
    high: int

    def __post_init__(self) -> None:
        for quality in (self.low, self.high):
            _check_quality(quality)
        if self.low > self.high:
            raise UserError(f"random({self.low}, {self.high}): the lower quality comes first")

    def qualities(self, key: Tensor) -> Tensor:
        """int64 [N,1] for keys [N]."""
        draw = uniform(key, 1, "coded.random")
        return self.low + (draw * (self.high - self.low + 1)).long()


def fixed(quality: int) -> Random:
    """Selector: every image at one JPEG quality, 0..100."""
    return Random(quality, quality)


def random(low: int, high: int) -> Random:
    """Selector: every view at a quality drawn uniformly from low..high."""
    return Random(low, high)


SELECTORS: dict[str, Callable[..., Any]] = {"hkl": hkl, "fixed": fixed, "random": random}
"""Those with a short name."""


def _check_quality(quality: Any) -> None:
    if isinstance(quality, bool) or not isinstance(quality, int) or not 0 <= quality <= 100:
        raise UserError(f"coded: JPEG quality {quality!r}; it is a whole number from 0 to 100")


def coded(selector: Any = "hkl", delta: int = 10, subsampling: str = "4:4:4", plan: str | Path | None = "off") -> Stage:
    """Give the teacher compressed versions to answer for.

    Before ``augment``, as in the paper, the raw image is compressed and every version gets the same augmented view;
    after it the view itself is compressed, a variant. The ``teacher`` stage later in the chain answers for the version
    that the selector chooses.

    Args:
        selector: ``"hkl"`` (the paper's; versions at qualities 0, delta, 2 delta, ... up to 100 plus the original),
            ``fixed(q)``, ``random(low, high)``, or your own function (logits [N,1+V,C], label [N]) -> int64 [N] over
            the same versions as hkl; in a recipe its dotted path ``my_pkg.mine:choose``.
        delta: step between qualities, 1..100: the paper's is 5, on ImageNet 10.
        subsampling: of the chroma, "4:4:4" or "4:2:0".
        plan: "off" selects anew for every augmented view, as the paper's own code does. "auto" selects once for every
            unaugmented image, keeps the choice beside the shards (:mod:`kdstream.stream.coding_plan`) and then makes
            that one version only; a path names such a plan. It is found again by all that it depends on: your own
            stages and selector count with their settings, their code and what they refer to by name
            (:mod:`kdstream.hashing`). Unaugmented is a view without the stages that are declared random, yours too.

    Raises:
        UserError: an unknown selector, delta or subsampling out of range.
    """
    if isinstance(delta, bool) or not isinstance(delta, int) or not 1 <= delta <= 100:
        raise UserError(f"coded: delta is {delta!r}; it is the step between qualities, a whole number from 1 to 100")
    check_subsampling(subsampling, "coded")
    plan = "off" if plan in (None, False) else plan  # YAML reads `off` as False
    if plan != "off" and isinstance(_resolve(selector), Random):
        raise UserError("coded: fixed and random qualities need no plan: leave plan out")
    settings = {"selector": _resolve(selector), "delta": delta, "subsampling": subsampling, "plan": plan}
    return Stage(_coded_batches, "batch", (), settings, _sample_form, role="coded")


def _resolve(selector: Any) -> Any:
    name, args, settings = (selector, (), {}) if not isinstance(selector, Call) else vars(selector).values()
    if not isinstance(name, str):
        if isinstance(name, Random) or callable(name):
            return name
        raise UserError(f"coded: selector is {name!r}; it is hkl, fixed(50), random(50, 100) or a function")
    if ":" in name:
        found = import_named(name, "selector", lambda found: any(found is ours for ours in SELECTORS.values()))
    else:
        found = SELECTORS.get(name)
    if found is None:
        raise UserError(f"coded: unknown selector {name!r}: {nearest(name, SELECTORS)}")
    if found in (fixed, random) or args or settings:
        try:
            found = found(*args, **settings)
        except TypeError as error:
            raise UserError(f"coded: selector {error}") from None
    return found


def _qualities(selector: Any, delta: int, key: Tensor) -> Tensor:
    """int64 [N,V] for keys [N]: the versions that the selector looks at."""
    if isinstance(selector, Random):
        return selector.qualities(key)
    return torch.arange(0, 101, delta, device=key.device).expand(len(key), -1)


def _versions(image: Tensor, qualities: Tensor, selector: Any, subsampling: Subsampling) -> Tensor:
    """uint8 [N,V,3,H,W]; where all samples have the same qualities the round trip shares its work."""
    shared = qualities if isinstance(selector, Random) and selector.low != selector.high else qualities[0]
    return jpeg.roundtrip(to_bytes(image), shared, subsampling)


def _rule(selector: Any, plan: Any) -> Choose | None:
    return None if isinstance(selector, Random) or isinstance(plan, Tensor) else selector


def planned(image: Tensor, index: Tensor, plan: Tensor, subsampling: Subsampling) -> tuple[Tensor, Tensor]:
    """The one version of each image that a plan names.

    Args:
        image: uint8 [N,3,H,W], or float in [0,1], which is rounded to bytes.
        index: int64 [N].
        plan: uint8 [n], see :mod:`kdstream.stream.coding_plan`.
        subsampling: of the chroma.

    Returns:
        uint8 [N,1,3,H,W] and its quality, int64 [N,1], -1 = the original.
    """
    choice = plan.to(index.device)[index].long()[:, None]
    original = choice == ORIGINAL
    image = to_bytes(image)
    version = jpeg.roundtrip(image, choice.masked_fill(original, 100), subsampling)
    return torch.where(original[..., None, None, None], image[:, None], version), choice.masked_fill(original, -1)


def _coded_batches(
    batches: Iterator[Batch], selector: Any, delta: int, subsampling: Subsampling, plan: Any
) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(plan, Tensor):
            plan = plan.to(batch.index.device)  # once
            versions, qualities = planned(batch.image, batch.index, plan, subsampling)
        else:
            qualities = _qualities(selector, delta, keys(batch))
            versions = _versions(batch.image, qualities, selector, subsampling)
        yield replace(batch, variants=versions, qualities=qualities, selector=_rule(selector, plan))


def _coded_samples(
    samples: Iterator[Sample], selector: Any, delta: int, subsampling: Subsampling, plan: Any
) -> Iterator[Sample]:
    for sample in samples:
        if isinstance(plan, Tensor):
            index = torch.tensor([sample["index"]])
            versions, qualities = planned(sample["image"][None], index, plan, subsampling)
            sample["variants"], sample["qualities"] = versions[0], qualities[0]
            yield sample
            continue
        qualities = _qualities(selector, delta, torch.tensor([sample["rng_key"]]))
        sample["variants"] = _versions(sample["image"][None], qualities, selector, subsampling)[0]
        sample["qualities"] = qualities[0]
        yield sample


def _with_rule(batches: Iterator[Batch], rule: Choose | None) -> Iterator[Batch]:
    for batch in batches:
        yield replace(batch, selector=rule)


def _sample_form(selector: Any, delta: int, subsampling: Subsampling, plan: Any) -> tuple[Stage, Stage]:
    # Whatever the round trip has to compile, it compiles here, once, and not in every reader process.
    jpeg.roundtrip(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [50], subsampling)
    settings = {"selector": selector, "delta": delta, "subsampling": subsampling, "plan": plan}
    return Stage(_coded_samples, "sample", (), settings), Stage(
        _with_rule, "batch", (), {"rule": _rule(selector, plan)}
    )


_coded_batches.__name__ = "coded"
