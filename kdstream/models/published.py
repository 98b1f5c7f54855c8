"""Trained networks that others published, by name: ``published:wrn_40_2@cifar100`` (the data: ``published.yaml``)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdstream.addresses import PUBLISHED, public
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.download import Unavailable, fetch, sha256
from kdstream.models.weights import check_state, read_file
from kdstream.registry import nearest
from kdstream.safe_yaml import parse_yaml

TOLERANCE = 0.5
"""Points by which a published accuracy may be missed in silence."""
SPLITS = ("test", "val")
"""What a split is called that a published accuracy can be compared on."""


@dataclass(frozen=True)
class Published:
    """Weights that somebody published.

    Attributes:
        name: ``NETWORK@DATA``.
        network: what :func:`kdstream.models.build` takes to build it, num_classes included.
        address: of the file.
        sha256: of the file (hex); None: nobody says (the file's name may).
        mean, std: by channel, in [0,1], that its images were standardised with.
        classes: names of its classes, in the order of the outputs; None: nobody says.
        top1: its accuracy as published, in percent.
        source: who published it.
        format: what the file holds.
    """

    name: str
    network: Mapping[str, Any]
    address: str
    sha256: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: list[str] | None
    top1: float
    source: str
    format: str


@functools.cache
def known() -> dict[str, Published]:
    """All of them, by name; not to be changed."""
    text = files("kdstream.models").joinpath("published.yaml").read_text(encoding="utf-8")
    found = {}
    for data, block in parse_yaml(text, "published.yaml:").items():
        for network, own in block["networks"].items():
            one = {**block, **own}
            spec = {"name": network, "num_classes": one["num_classes"], **one.get("options", {})}
            if "torchvision" in one:
                from kdstream.models.from_torchvision import weights_facts  # takes a second to import

                one |= weights_facts(network, one["torchvision"])
            found[f"{network}@{data}"] = Published(
                name=f"{network}@{data}",
                network=spec,
                address=one["address"],
                sha256=one.get("sha256"),
                mean=tuple(one["mean"]),
                std=tuple(one["std"]),
                classes=one.get("classes"),
                top1=one["top1"],
                source=one["source"],
                format=one["format"],
            )
    return found


def find(name: str) -> Published:
    """By ``published:NETWORK@DATA``.

    Raises:
        UserError: there is none of this name; the nearest that there is.
    """
    found = known().get(name.removeprefix(PUBLISHED))
    if found is None:
        hint = nearest(name.removeprefix(PUBLISHED), known())
        raise UserError(f"no published weights {name!r}: {hint} (kdstream models --published lists them)")
    return found


def read_published(wanted: Published) -> dict[str, Tensor]:
    """The state dict, on the CPU: downloaded once to torch.hub's folder, its checksum and its shapes checked.

    Raises:
        Unavailable: its address does not give it: no answer, another file, weights of another architecture.
        UserError: it cannot be kept, or what an earlier download left is damaged.
    """

    def read(path: Path, source: str) -> dict[str, Tensor]:
        if wanted.sha256 is not None and (found := sha256(path)) != wanted.sha256:
            raise UserError(
                f"{source} is another file than the one that was published: its SHA-256 begins with {found[:8]}, not "
                f"{wanted.sha256[:8]}"
            )
        state = read_file(path, source)
        with torch.device("meta"):
            check_state(build(**wanted.network), state, source)
        return state

    try:
        return fetch(wanted.address, read)
    except Unavailable as error:
        raise Unavailable(f"{PUBLISHED}{wanted.name}: {error}; give a file of these weights") from error


def facts(wanted: Published) -> dict[str, Any]:
    """What is to be known of it, in plain values."""
    return {
        "name": wanted.name,
        "network": dict(wanted.network),
        "address": public(wanted.address),
        "sha256": wanted.sha256,
        "mean": list(wanted.mean),
        "std": list(wanted.std),
        "top1": wanted.top1,
        "source": wanted.source,
        "format": wanted.format,
    }


def comparable(wanted: Published, num_classes: int) -> float | None:
    """Its accuracy as published (percent), for data of so many classes; None: it is for another number of them."""
    return wanted.top1 if num_classes == wanted.network["num_classes"] else None


def difference(wanted: Published, top1: float, split: str, num_classes: int) -> str | None:
    """What to say where a network is not as accurate as it was published to be; None: nothing, or no comparison.

    Args:
        wanted: what it is.
        top1: percent, as measured.
        split: what it was measured on.
        num_classes: of the data.
    """
    expected = comparable(wanted, num_classes) if split in SPLITS else None
    if expected is None or abs(top1 - expected) <= TOLERANCE:
        return None
    return (
        f"it gets {top1:.2f} % on the {split} split, {wanted.top1:.2f} % as published ({PUBLISHED}{wanted.name}): "
        "other images, another split, or images prepared otherwise than for its training?"
    )
