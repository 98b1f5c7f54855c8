"""timm's models by their own names (``timm:deit_tiny_patch16_224``), with taps derived from what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.notes import note
from kdstream.registry import nearest
from kdstream.tap_names import TWO_HEADS

PREFIX = "timm:"

_NOT_OURS = ("checkpoint_path", "cache_dir", "features_only", "out_indices", "exportable", "scriptable")
"""Arguments of timm's that change what a model is, or where its weights come from, as ``pretrained_...`` do."""

_PRE_ACTIVATION = ("act3", "act2")
"""Names of the activation after the sum, in timm's ResNet blocks: bottlenecks, basic blocks."""


def build(name: str, num_classes: int, pretrained: bool = False, **kw: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A timm classifier of ``num_classes`` classes, and the arguments that rebuild its architecture.

    Taps, as far as the network has them (each is checked on shapes before it is offered):

    - ``stem``: the last feature map at half of the image's size; ``block1``, ``block2``, ...: the maps of timm's
      ``feature_info`` after it, in convolutional networks mostly at 1/4, 1/8, 1/16, 1/32; [N,C,H,W].
    - ``block1.pre``, ...: before the last activation, in ResNets (the sum) and MobileNetV1.
    - ``tokens.1``, ``tokens.2``, ...: output of each transformer block, [N,L,D]; ``tokens.last``: after the final norm,
      where there is one. L counts the class token and the like too: the first ``module.num_prefix_tokens``.
    - ``penultimate``: what the linear classifier takes, [N,D].
    - ``logits.label``, ``logits.teacher``: of networks with two heads (DeiT's and LeViT's distilled ones), whose logits
      are the mean of both: the heads of the class token and of the distillation token, [N,C]. ``penultimate`` is what
      the first takes.

    Args:
        name: with the prefix, ``timm:resnet50``; a tag (``timm:resnet50.a1_in1k``) chooses among pretrained weights.
        num_classes: C. If it is not the weights' own class count, timm gives the network a new classifier.
        pretrained: take timm's weights; it downloads them. The network gets their ``mean`` and ``std``.
        kw: further arguments of the model.

    Raises:
        UserError: timm is not installed; an unknown name or argument; weights that cannot be downloaded; a model
            that gives no logits.
    """
    timm = _timm(name)
    short = name.removeprefix(PREFIX)
    if not timm.is_model(short) or ":" in short:
        raise UserError(f"unknown model {name!r}: {nearest(name, [PREFIX + known for known in timm.list_models()])}")
    wrong = [key for key in kw if key in _NOT_OURS or key.startswith("pretrained_")]
    if wrong:
        raise UserError(
            f"model {name!r}: {wrong[0]!r} is no argument of the network; weights are a file, or pretrained"
        )
    if not isinstance(pretrained, bool):
        raise UserError(f"model {name!r}: pretrained is true or false, not {pretrained!r}; a tag is part of the name")
    module = _create(timm, name, short, num_classes, pretrained, kw)
    if pretrained:
        mean, std = (tuple(_config(module)[key]) for key in ("mean", "std"))
        note(module, mean=mean, std=std)
    with torch.device("meta"):  # shapes only
        twin = _create(timm, name, short, num_classes, False, kw)
    path, taps = _describe(name, twin, num_classes)
    note(module, classifier_path=path, taps=taps)
    return module, kw


def weights_classes(name: str) -> tuple[int, list[str] | None]:
    """How many classes timm's weights of this name are for, and their names where timm knows them (ImageNet's: the
    codes of WordNet, as folders are called).

    Raises:
        UserError: as :func:`build`; or there are no such weights.
    """
    found = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    if found is None:
        raise UserError(f"model {name!r}: timm has no pretrained weights of that name")
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": found.num_classes})
    names = ImageNetInfo(subset).label_names() if subset else None
    return int(found.num_classes), names if names and len(names) == found.num_classes else None


def installed() -> bool:
    """Whether timm can be imported."""
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"model {name!r} needs timm: pip install timm ({error})") from error
    return timm


def _create(
    timm: ModuleType, name: str, short: str, num_classes: int, pretrained: bool, kw: Mapping[str, Any]
) -> nn.Module:
    try:
        return timm.create_model(short, pretrained=pretrained, num_classes=num_classes, **kw)
    except Exception as error:  # downloads alone raise errors of three libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"cannot get pretrained weights: {reason}" if pretrained else reason
        raise UserError(f"model {name!r}: {what}") from error


def _describe(name: str, twin: nn.Module, num_classes: int) -> tuple[str | None, dict[str, str]]:
    """Path of the linear classifier and taps, from the shapes of one pass of a twin on the meta device."""
    head = _config(twin).get("classifier")  # two paths in networks with two heads
    wanted = [head] if isinstance(head, str) else list(head or ())
    heads = [path for path in wanted if _has(twin, path)]
    listed = [entry for entry in _features(twin) if isinstance(entry.get("module"), str)]
    paths = [entry["module"] for entry in listed if _has(twin, entry["module"])]
    final = ["norm"] if _has(twin, "norm") else []
    outputs, inputs, logits = _shapes(twin, {*paths, *final}, set(heads))
    if logits is not None and logits != (2, num_classes):
        raise UserError(f"model {name!r} gives {list(logits)} for 2 images, not logits [2,{num_classes}]")

    taps: dict[str, str] = {}
    if listed and len(paths) == len(listed):
        shapes = [outputs.get(path) for path in paths]
        if all(_is_map(shape, entry["num_chs"]) for shape, entry in zip(shapes, listed, strict=True)):
            taps = _map_taps(twin, listed)
        elif len({entry["reduction"] for entry in listed}) == 1 and all(
            _is_tokens(shape, entry["num_chs"]) for shape, entry in zip(shapes, listed, strict=True)
        ):
            taps = {f"tokens.{number}": path for number, path in enumerate(paths, start=1)}
            last, before = outputs.get("norm"), shapes[-1]
            follows = last and before and len(last) == 3 and last[2] == before[2]
            taps["tokens.last"] = "norm" if follows else paths[-1]
    path = None
    if heads and len(heads) == len(wanted):
        layer = twin.get_submodule(heads[0])
        path = heads[0] if isinstance(layer, nn.Linear) and len(heads) == 1 else None
        width = inputs.get(heads[0])
        if width is not None and (len(width) == 2 or width[2:] == (1, 1)):
            taps["penultimate"] = f"{heads[0]}:input"
        if len(heads) == 2 and width is not None:
            taps |= dict(zip(TWO_HEADS, heads, strict=True))
    return path, taps


def _config(module: nn.Module) -> dict[str, Any]:
    """What timm says of a network: its classifier's path, and what its weights were trained on."""
    return getattr(module, "pretrained_cfg", {})


def _features(twin: nn.Module) -> list[dict[str, Any]]:
    """timm's list of the network's features; some networks have it wrapped."""
    info = getattr(twin, "feature_info", None)
    return list(getattr(info, "info", info) or [])


def _has(module: nn.Module, path: str) -> bool:
    try:
        return bool(path) and isinstance(module.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def _shapes(
    twin: nn.Module, listen: set[str], heads: set[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], tuple[int, ...] | None]:
    """Shapes of what modules give (``listen``) and take (``heads``), and of the logits, for two images."""
    outputs: dict[str, tuple[int, ...]] = {}
    inputs: dict[str, tuple[int, ...]] = {}
    hooks = [twin.get_submodule(path).register_forward_hook(_note_output(outputs, path)) for path in listen]
    hooks += [twin.get_submodule(path).register_forward_pre_hook(_note_input(inputs, path)) for path in heads]
    try:
        with torch.no_grad():
            logits = twin.eval()(torch.empty(2, *_image_shape(twin), device="meta"))
    except (RuntimeError, NotImplementedError, TypeError):  # it computes with values: no tap is certain
        return {}, {}, None
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, inputs, tuple(logits.shape) if isinstance(logits, Tensor) else ()


def _note_output(into: dict[str, tuple[int, ...]], path: str) -> Any:
    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        into[path] = tuple(output.shape) if isinstance(output, Tensor) else ()

    return note


def _note_input(into: dict[str, tuple[int, ...]], path: str) -> Any:
    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        into[path] = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()

    return note


def _image_shape(twin: nn.Module) -> tuple[int, int, int]:
    """What the network takes: its patches' image size where it is fixed, else timm's default."""
    size = getattr(getattr(twin, "patch_embed", None), "img_size", None)
    if isinstance(size, tuple) and len(size) == 2:
        return (3, *size)
    return _config(twin).get("input_size") or (3, 224, 224)


def _is_map(shape: tuple[int, ...] | None, channels: int) -> bool:
    return shape is not None and len(shape) == 4 and shape[1] == channels


def _is_tokens(shape: tuple[int, ...] | None, channels: int) -> bool:
    return shape is not None and len(shape) == 3 and shape[2] == channels


def _map_taps(twin: nn.Module, listed: list[dict[str, Any]]) -> dict[str, str]:
    early = [entry["module"] for entry in listed if entry["reduction"] <= 2]
    later = [entry["module"] for entry in listed if entry["reduction"] > 2]
    taps = {"stem": early[-1]} if early else {}
    if early and early[-1].startswith("blocks.") and _has(twin, "bn1"):
        taps["stem"] = "bn1"  # the EfficientNet family: the stem proper, not the first group of blocks
    for number, path in enumerate(later, start=1):
        taps[f"block{number}"] = path
        pre = _pre_activation(twin, path)
        if pre is not None:
            taps[f"block{number}.pre"] = pre
    if _has(twin, "global_pool"):
        taps["map"] = "global_pool:input"
    return taps


def _pre_activation(twin: nn.Module, path: str) -> str | None:
    """What enters the activation that ends a stage of a ResNet or of MobileNetV1; the stage's own output, which no
    activation follows, of MobileNetV2."""
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
    from timm.models.resnet import BasicBlock, Bottleneck

    children = list(twin.get_submodule(path).named_children())
    if not children:
        return None
    last, block = children[-1]
    if isinstance(block, (BasicBlock, Bottleneck)):
        return next(f"{path}.{last}.{name}:input" for name in _PRE_ACTIVATION if hasattr(block, name))
    if isinstance(block, DepthwiseSeparableConv) and block.has_pw_act and not block.has_skip:
        return f"{path}.{last}.bn2.act:input"
    if isinstance(block, InvertedResidual):
        return path
    return None
