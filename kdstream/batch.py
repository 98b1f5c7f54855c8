"""The nouns that stream, models and objectives share, so that none of them needs to import another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Sample = dict[str, Any]
"""One sample on the host: webdataset's dict (``__key__``, ``jpg``/``png``/..., ``cls``: bytes as they stand in the
shard) plus ``index`` (int, its fixed position in the data set) and ``rng_key`` (int, see :attr:`Batch.rng_key`).
``decode`` adds ``image`` (uint8 tensor [3,H,W], RGB) and ``label`` (int). A sample that has ``variants``
(uint8 [V,3,H,W]) carries compressed versions of its image."""

SMALLEST_STD = 1e-6
"""A channel's standard deviation below this one (all images alike) counts as this one, wherever images are standardised
and wherever that is undone or passed on."""


@dataclass(repr=False)
class Outputs:
    """What a network answers: teacher, student and recorded teacher all speak this.

    Attributes:
        logits: float [N,C], before any softmax.
        features: tap name (``block1``, ``penultimate``, ``block2.pre``, ...) -> tensor with N first. Holds the
            requested taps only.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Outputs({_told({'logits': self.logits, **self.features})})"

    def map(self, fn: Callable[[Tensor], Tensor]) -> Outputs:
        """Outputs with ``fn`` applied to the logits and to every feature."""
        return Outputs(fn(self.logits), {name: fn(value) for name, value in self.features.items()})

    def detach(self) -> Outputs:
        """The same values without gradient history."""
        return self.map(Tensor.detach)


@dataclass
class Files:
    """Image files of a batch that its device shall decode; they stay in main memory, wherever the batch goes.

    Attributes:
        data: uint8, the files' bytes one after another.
        where: for each file, which sample of the batch it is of, its first byte and its length.
        names: what to call each in messages.
    """

    data: Tensor
    where: list[tuple[int, int, int]]
    names: list[str]


@dataclass(repr=False)
class Batch:
    """N samples on one device, on their way from the reader to the student.

    Attributes:
        image: [N,3,H,W]; uint8 from the reader, uint8 or float in [0,1] after augmentation, float and
            standardised after ``normalize`` (the last stage).
        label: int64 [N], class numbers.
        index: int64 [N], the samples' fixed positions in the data set.
        variants: uint8 [N,V,3,H,W] (float in [0,1] where a stage made it so): compressed versions of ``image``,
            or None.
        quality: int64 [N], the JPEG quality of the version that the teacher saw, -1 = the original; or None.
        teacher: the teacher's answer, detached, or None.
        rng_key: int64 [N], random keys derived from (seed, epoch, index). Every random draw of a stage comes from
            these (:func:`kdstream.rng.uniform`), hence the same epoch always gives the same views, whatever
            the number of processes and workers. None: the index serves as key.
        qualities: int64 [N,V], the JPEG quality of each version in ``variants``; None without versions.
        selector: how the ``teacher`` stage chooses among the versions; set by ``coded`` together with ``variants``.
        soft: float [N,C], shares of the classes in a mixed image, which sum to 1; ``label`` is the class of the largest
            then. None where images are whole.
        pixels: uint8 [sum of 3*H*W], images of different sizes one after another, each [3,H,W]; ``image`` is
            [N,3,0,0] then, until a stage has cut views of one size out of them. None where that is done.
        places: for each image: where it begins in ``pixels`` (-1: it is among ``files``), H, W, and the box to be cut:
            top, left, height, width. Plain numbers, so that no accelerator is asked for them.
        files: images that are not in ``pixels``, as files, or None.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    variants: Tensor | None = None
    quality: Tensor | None = None
    teacher: Outputs | None = None
    rng_key: Tensor | None = None
    qualities: Tensor | None = None
    selector: Callable[..., Tensor] | None = None
    soft: Tensor | None = None
    pixels: Tensor | None = None
    places: list[tuple[int, ...]] | None = None
    files: Files | None = None

    @property
    def target(self) -> Tensor:
        """What a label loss learns: ``label``, or ``soft`` where images are mixed; ``F.cross_entropy`` takes either."""
        return self.label if self.soft is None else self.soft

    def __len__(self) -> int:
        return len(self.label)

    def __repr__(self) -> str:
        """What it holds: shapes, types, device; no values."""
        held = {
            name: value for name, value in vars(self).items() if value is not None and name not in ("places", "files")
        }
        return f"Batch({_told(held)}, on {self.label.device})"

    def map_tensors(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """A batch with ``fn`` applied to every tensor that it holds."""
        changed: dict[str, Any] = {
            name: fn(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        if self.teacher is not None:
            changed["teacher"] = self.teacher.map(fn)
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on ``device``."""
        return self.map_tensors(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, which makes copies to a GPU asynchronous."""
        return self.map_tensors(Tensor.pin_memory)

    def map_views(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Apply ``fn`` to the images and, identically, to every compressed version.

        ``fn`` takes and returns [N,3,H,W]; what it draws at random must be drawn outside of it, once a sample, so
        that all versions of a sample are changed alike.
        """
        variants = self.variants
        if variants is not None:
            variants = torch.stack([fn(variants[:, v]) for v in range(variants.shape[1])], dim=1)
        return replace(self, image=fn(self.image), variants=variants)


def _told(held: Mapping[str, Any]) -> str:
    """Tensors by type and shape, ``image=uint8[64,3,32,32]``; everything else by its own repr."""
    return ", ".join(
        f"{name}={str(value.dtype).removeprefix('torch.')}{list(value.shape)}".replace(", ", ",")
        if isinstance(value, Tensor)
        else f"{name}={value!r}"
        for name, value in held.items()
    )


def logits_of(answer: Any) -> Any:
    """The logits [N,C] of what a network answers: that itself, or its ``logits`` (transformers, auxiliary heads)."""
    return getattr(answer, "logits", answer)
