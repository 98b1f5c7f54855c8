"""Networks by name: kdstream's zoo, torchvision's and timm's classifiers, or anybody's own factory by dotted path."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdstream.errors import UserError
from kdstream.models.given import copy_of, is_given
from kdstream.notes import classifier_path_of, note, spec_of
from kdstream.registry import Registry, nearest

if TYPE_CHECKING:
    from torch import nn

_ZOO = {
    "cifar_resnet": (
        *("resnet8", "resnet14", "resnet20", "resnet26", "resnet32", "resnet44", "resnet56", "resnet110"),
        *("resnet8x4", "resnet32x4"),
        *("akamaster_resnet20", "akamaster_resnet32", "akamaster_resnet44", "akamaster_resnet56"),
        "akamaster_resnet110",
    ),
    "wrn": (
        *("wrn_10_1", "wrn_16_1", "wrn_28_1", "wrn_40_1", "wrn_64_1"),
        *("wrn_10_2", "wrn_16_2", "wrn_28_2", "wrn_40_2", "wrn_16_4", "wrn_40_4", "wrn_28_10"),
    ),
    "vgg": ("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    "mobilenetv2": ("MobileNetV2",),
    "shufflenetv1": ("ShuffleV1",),
    "shufflenetv2": ("ShuffleV2",),
    "cifar_resnet50": ("ResNet50",),
    "mobilenetv1": ("MobileNetV1",),
}
"""File -> the names of its factories."""

MODELS = Registry(
    "model", {name: f"kdstream.models.zoo.{file}:{name}" for file, names in _ZOO.items() for name in names}
)
"""kdstream's own networks: short name -> factory, called as ``factory(num_classes=..., **kw)``."""


def build(name: str, num_classes: int, **kw: Any) -> nn.Module:
    """A freshly initialised network, images [N,3,H,W] -> logits [N,num_classes].

    The network carries three attributes more than its class gives it:

    - ``spec``: a dict of plain JSON values such that ``build(**spec)`` gives the same architecture;
    - ``taps``: tap name -> module path, see :mod:`kdstream.models.taps`;
    - ``classifier_path``: module path of its last linear layer, None where it has none. (Not ``classifier``: many
      networks have a submodule of that name.)

    Args:
        name: a name of :data:`MODELS`, a torchvision classification model, ``timm:NAME`` for a model of timm's,
            ``hf:OWNER/NAME`` for an image classifier of transformers (:mod:`kdstream.models.from_hf`), or
            ``package.module:factory``.
        num_classes: C, at least 1.
        kw: passed on to the factory; plain JSON values, nested specs included. torchvision models also take
            ``weights`` ("DEFAULT", "IMAGENET1K_V1", ...), timm's and transformers' ``pretrained`` (true), which the
            libraries download.
            Those are not part of ``spec``; the network gets the weights' ``mean`` and ``std`` (by channel, for images
            in [0,1]) as attributes.

    Raises:
        UserError: an unknown name or argument, an argument that is not plain JSON, a factory that gives no module.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise UserError(f"model {name!r}: num_classes must be a positive whole number, not {num_classes!r}")
    name = current(name)
    if is_given(name):
        module = copy_of(name, num_classes)
        recorded = {key: value for key, value in spec_of(module).items() if key not in ("name", "num_classes")}
        name = spec_of(module)["name"]
    elif name.startswith("timm:"):
        from kdstream.models import from_timm

        module, recorded = from_timm.build(name, num_classes, **kw)
    elif name.startswith("hf:"):
        from kdstream.models import from_hf

        module, recorded = from_hf.build(name, num_classes, **kw)
    elif name in MODELS or is_dotted(name):
        module = _from_factory(name, num_classes, kw)
        recorded = kw
    else:
        # torchvision takes a second to import: only those wait who need it.
        from kdstream.models import from_torchvision

        names = from_torchvision.names()
        if name not in names:
            there = f"{name!r} here is a folder, whose weights are ./{name}; " if Path(name).is_dir() else ""
            raise UserError(f"unknown model {name!r}: {there}{_proposal(name, names)}")
        module, recorded = from_torchvision.build(name, num_classes, **kw)
    note(module, spec=_plain(name, {"name": name, "num_classes": num_classes, **recorded}))
    if not hasattr(module, "classifier_path"):
        from kdstream.models.taps import find_classifier

        note(module, classifier_path=find_classifier(module, num_classes))
    if not hasattr(module, "taps"):
        path = classifier_path_of(module)
        note(module, taps={"penultimate": f"{path}:input"} if path else {})
    return module


def current(name: str) -> str:
    """Today's name of a network: kdstream's own files lay in ``kdstream.models`` once, and old exports say so."""
    module, colon, factory = name.partition(":")
    room, _, file = module.rpartition(".")
    moved = room == "kdstream.models" and file in _ZOO
    return f"{room}.zoo.{file}{colon}{factory}" if moved else name


def is_dotted(name: str) -> bool:
    """Whether a model's name is the dotted path of somebody's own factory, which is imported and so executed."""
    return ":" in name and not name.startswith(("timm:", "hf:")) and not is_given(name)


def _from_factory(name: str, num_classes: int, kw: dict[str, Any]) -> nn.Module:
    from torch import nn

    _plain(name, kw)
    factory = MODELS.find(name)
    if not callable(factory):
        raise UserError(f"model {name!r} is not a function or class, so it cannot be called with num_classes")
    try:
        inspect.signature(factory).bind(num_classes=num_classes, **kw)
    except TypeError as error:
        raise UserError(f"model {name!r}: {error}") from error
    module = factory(num_classes=num_classes, **kw)
    if not isinstance(module, nn.Module):
        raise UserError(f"model {name!r} gave {type(module).__name__}, not a torch.nn.Module")
    return module


def _plain(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(spec, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model {name!r}: arguments must be plain JSON (numbers, texts, lists, dicts), so that a saved student "
            f"can be rebuilt: {error}"
        ) from error


def _proposal(name: str, torchvision_names: list[str]) -> str:
    proposal = nearest(name, [*MODELS, *torchvision_names])
    if proposal.startswith("did you mean"):
        return proposal
    return (
        f"known: {', '.join(MODELS)}, torchvision's classification models (resnet18, ...), timm's (timm:NAME), "
        "transformers' (hf:OWNER/NAME), package.module:factory"
    )
