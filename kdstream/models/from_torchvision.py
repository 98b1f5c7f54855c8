"""torchvision's classification models by their own names, with taps for its ResNets, MobileNetV2 and transformers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models as torchvision_models

from kdstream.errors import UserError
from kdstream.models.taps import find_classifier
from kdstream.notes import note
from kdstream.registry import nearest

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def names() -> list[str]:
    """Names of all classification models that the installed torchvision has."""
    return torchvision_models.list_models(module=torchvision_models)


def build(name: str, num_classes: int, weights: Any = None, **kw: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A torchvision classifier of ``num_classes`` classes, and the arguments that rebuild its architecture.

    Args:
        name: one of :func:`names`.
        num_classes: C. If it is not the weights' own class count, the last linear layer is replaced by a new one.
        weights: "DEFAULT", "IMAGENET1K_V1", ... or a member of torchvision's weights enum: downloaded by torchvision
            to torch.hub's folder; the network gets their ``mean`` and ``std``. None: freshly initialised.
        kw: further arguments of torchvision's builder.

    Raises:
        UserError: unknown weights or arguments, weights that cannot be downloaded, or a network without a last
            linear layer where one must be replaced.
    """
    if "pretrained" in kw:
        raise UserError(f"model {name!r}: 'pretrained' is torchvision's old switch; use weights: DEFAULT")
    arguments = dict(kw)
    if weights is None:
        arguments["num_classes"] = num_classes
        if name in _WITH_AUXILIARY_HEADS:
            # Auxiliary heads answer with a tuple in train mode; init_weights=True is what silence means today.
            arguments = {"aux_logits": False, "init_weights": True, **arguments}
    else:
        arguments["weights"] = _weights(name, weights)
    try:
        module = torchvision_models.get_model(name, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name!r}: {error}") from error
    except OSError as error:  # URLError and HTTPError among them
        raise UserError(f"model {name!r}: cannot get the weights {weights}: {error}") from error
    if weights is not None:
        _fit_classes(name, module, num_classes)
        if name in _WITH_AUXILIARY_HEADS:
            kw = {**kw, "transform_input": module.transform_input}  # the weights switch it on
        preset = arguments["weights"].transforms()
        note(module, mean=tuple(preset.mean), std=tuple(preset.std))
    if isinstance(module, torchvision_models.ResNet):
        note(module, classifier_path="fc", taps=_resnet_taps(module))
    elif isinstance(module, torchvision_models.MobileNetV2):
        note(module, classifier_path="classifier.1", taps=_mobilenetv2_taps(module))
    elif isinstance(module, torchvision_models.VisionTransformer):
        note(module, classifier_path="heads.head", taps=_transformer_taps(module))
        module.num_prefix_tokens = 1
    return module, kw


def weights_classes(name: str, weights: Any) -> list[str]:
    """Names of the classes that torchvision's weights are for, in the order of the outputs.

    Raises:
        UserError: unknown weights.
    """
    return list(_weights(name, weights).meta["categories"])


def weights_facts(name: str, weights: Any) -> dict[str, Any]:
    """What torchvision says of its weights: ``address``, ``mean`` and ``std`` (by channel, for images in [0,1]), and
    ``classes``, their names in the order of the outputs.

    Raises:
        UserError: unknown weights.
    """
    found = _weights(name, weights)
    preset = found.transforms()
    facts = {"address": found.url, "mean": tuple(preset.mean), "std": tuple(preset.std)}
    return {**facts, "classes": list(found.meta["categories"])}


def _weights(name: str, weights: Any) -> Any:
    enum = torchvision_models.get_model_weights(name)
    wanted = getattr(weights, "name", weights)
    if not isinstance(wanted, str) or wanted not in enum.__members__:
        raise UserError(f"model {name!r} has no weights {weights!r}: {nearest(str(wanted), enum.__members__)}")
    return enum[wanted]


def _fit_classes(name: str, module: nn.Module, num_classes: int) -> None:
    path = find_classifier(module)
    old = None if path is None else module.get_submodule(path)
    if path is None or not isinstance(old, nn.Linear):
        raise UserError(f"model {name!r} has no linear classifier to replace: take it without weights")
    if old.out_features != num_classes:
        parent, _, leaf = path.rpartition(".")
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        setattr(module.get_submodule(parent), leaf, new)


def _resnet_taps(module: torchvision_models.ResNet) -> dict[str, str]:
    taps = {"stem": "relu"}
    for stage, blocks in enumerate((module.layer1, module.layer2, module.layer3, module.layer4), 1):
        last = len(blocks) - 1
        taps[f"block{stage}"] = f"layer{stage}"
        # A block has one ReLU module for all its ReLUs; the last call is the one after the sum.
        taps[f"block{stage}.pre"] = f"layer{stage}.{last}.relu:input"
    return {**taps, "map": "avgpool:input", "penultimate": "fc:input"}


def _mobilenetv2_taps(module: torchvision_models.MobileNetV2) -> dict[str, str]:
    """Blocks are the last maps at H/4, H/8, H/16, H/32; no ReLU follows these linear outputs: ``.pre`` is the same."""
    units = list(module.features)[1:-1]
    # A unit of stride 2 begins a new size; the first of them ends the stem's.
    begins = [number for number, unit in enumerate(units, start=1) if unit.stride == 2]
    ends = [number - 1 for number in [*begins[1:], len(units) + 1]]
    return {
        "stem": "features.0",
        **{f"block{block}{pre}": f"features.{end}" for block, end in enumerate(ends, start=1) for pre in ("", ".pre")},
        "map": "features",
        "penultimate": "classifier.1:input",
    }


def _transformer_taps(module: torchvision_models.VisionTransformer) -> dict[str, str]:
    """Tokens [N,L,D] after each block, the class token first; ``tokens.last`` after the final norm."""
    blocks = [name for name, _ in module.encoder.layers.named_children()]
    tokens = {f"tokens.{number}": f"encoder.layers.{name}" for number, name in enumerate(blocks, start=1)}
    return {**tokens, "tokens.last": "encoder.ln", "penultimate": "heads.head:input"}
