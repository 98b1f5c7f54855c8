"""What kdstream notes on a network beside its weights. Any ``nn.Module`` may carry it: it is read and written here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack

Spec = dict[str, Any]
"""``name``, ``num_classes`` and more plain JSON values, such that ``build(**spec)`` gives the architecture again."""


class About(TypedDict, total=False):
    """What is known of a trained network: the content of its ``student.json``, or as much of it as its weights tell."""

    format: int
    spec: Spec
    classes: list[str] | None
    """Names of the C classes, in the order of the logits."""
    mean: list[float] | None
    """By channel, of the images in [0,1] that it was trained on."""
    std: list[float] | None
    image_size: int | list[int] | None
    """Pixels: height and width, or one number for both."""
    weights_sha256: str
    rebuild: str
    """How, in words, where ``spec`` does not say it."""
    extra: dict[str, Any]
    note: str | None
    """What a user should know of its classes, in one line."""
    published: dict[str, Any]
    """Where its weights were published, and with which accuracy: :func:`kdstream.models.published.facts`."""


class Notes(TypedDict, total=False):
    """The attributes that kdstream gives to networks, see :func:`kdstream.models.build` and ``load_teacher``."""

    spec: Spec
    taps: dict[str, str]
    classifier_path: str | None
    about: About
    classes: list[str] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def note(network: nn.Module, **notes: Unpack[Notes]) -> None:
    """Write them on the network."""
    for name, value in notes.items():
        setattr(network, name, value)


def spec_of(network: nn.Module) -> Spec:
    """How it was built; empty where nobody says."""
    return getattr(network, "spec", {})


def architecture(network: nn.Module) -> str:
    """Its name for :func:`kdstream.models.build`, else that of its class."""
    return spec_of(network).get("name", type(network).__name__)


def taps_of(network: nn.Module) -> dict[str, str]:
    """Tap name -> module path, of the taps that it has names for."""
    return getattr(network, "taps", {})


def classifier_path_of(network: nn.Module) -> str | None:
    """Module path of its last linear layer; None where it has none, or where nobody says."""
    return getattr(network, "classifier_path", None)


def about_of(network: nn.Module) -> About:
    """What is known of a trained network; empty for others."""
    nothing: About = {}
    return getattr(network, "about", nothing)
