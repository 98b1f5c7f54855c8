"""What the ``spec`` in somebody's file may ask for: networks and arguments of an explicit list; all else is code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.models import MODELS, current, from_hf, from_timm, is_dotted
from kdstream.terminal import shown

MOST_CLASSES = 2**24
_DEEPEST = 8
"""Networks within networks: a joint network has a student, which is a plain one."""


@dataclass(frozen=True)
class _Kind:
    """What an argument may be: in words for messages, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _whole(low: int, high: int) -> _Kind:
    return _Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _real(low: float, high: float) -> _Kind:
    return _Kind(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def _list(item: _Kind, most: int = 64) -> _Kind:
    return _Kind(
        f"a list of at most {most}, each {item.words}",
        lambda value: isinstance(value, list) and len(value) <= most and all(map(item.holds, value)),
    )


def _or_none(kind: _Kind) -> _Kind:
    return _Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


def _square(most: int) -> _Kind:
    """A side, two sides, or one of these for each stage."""
    side = _whole(1, most)
    sides = _list(side)
    return _Kind(
        f"{side.words}, or a list of such",
        lambda value: side.holds(value) or sides.holds(value) or _list(sides).holds(value),
    )


def _one_of(*words: str) -> _Kind:
    return _Kind(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def _text(words: str, pattern: str) -> _Kind:
    return _Kind(words, lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None)


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _are_numbers(value: Any, depth: int = 3) -> bool:
    """Numbers, switches, or lists of these."""
    if isinstance(value, list):
        return depth > 0 and len(value) <= 64 and all(_are_numbers(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool) or (_is_number(value) and abs(value) <= _MOST)


_MOST = 2**16
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_COUNT = _whole(1, 2000)
_WIDTH = _whole(1, _MOST)
_SIZE = _whole(1, 4096)
_SHARE = _real(0, 1)
_FACTOR = _real(0, 64)
_PATH = _text("the path of a layer", r"[\w.]{0,200}")
_NUMBERS = _Kind(f"numbers up to {_MOST}, true or false, or lists of these", _are_numbers)
_WORD = _text("a word", r"\w{0,40}")
_SPEC = _Kind("a network", lambda value: isinstance(value, Mapping))
"""Checked by itself."""

_ZOO: Mapping[str, Mapping[str, _Kind]] = {
    "cifar_resnet": {"widths": _list(_WIDTH, 4)},
    "wrn": {"dropout": _SHARE},
    "vgg": {},
    "mobilenetv1": {"width": _FACTOR},
    "mobilenetv2": {"width": _FACTOR, "expansion": _whole(1, 64)},
    "shufflenetv1": {},
    "shufflenetv2": {"widths": _list(_WIDTH, 4)},
    "cifar_resnet50": {},
}
"""File of the zoo -> arguments of its factories."""

_HEAD = {
    "channels": _WIDTH,
    "width": _WIDTH,
    "kernels": _list(_whole(1, 31)),
    "mid_channels": _or_none(_WIDTH),
    "size": _or_none(_list(_SIZE, 2)),
    "bias": _FLAG,
}
_OURS: Mapping[str, Mapping[str, _Kind]] = {
    **{name: _ZOO[path.split(":")[0].rpartition(".")[2]] for name, path in MODELS.items()},
    **{path: _ZOO[path.split(":")[0].rpartition(".")[2]] for path in MODELS.values()},
    "kdstream.models.zoo.cifar_resnet:CifarResNet": {"depth": _COUNT, "widths": _list(_WIDTH, 4)},
    "kdstream.models.zoo.cifar_resnet:OptionAResNet": {"depth": _COUNT, "widths": _list(_WIDTH, 4)},
    "kdstream.models.zoo.wrn:WideResNet": {"depth": _COUNT, "width": _whole(1, 1024), "dropout": _SHARE},
    "kdstream.models.zoo.vgg:VGG": {"convolutions": _list(_COUNT)},
    "kdstream.models.zoo.cifar_resnet50:CifarBottleneckResNet": {"blocks": _list(_COUNT)},
    "kdstream.models.joint:JointNetwork": {
        "backbone": _SPEC,
        "path": _PATH,
        "side": _one_of("output", "input"),
        "head": _Kind("the settings of a ReusedHead", lambda value: _wrong(value, _HEAD) is None),
    },
    "kdstream.models.branches:Branched": {
        "base": _SPEC,
        "branches": _whole(2, 1000),
        "answer": _one_of("ensemble", "branch"),
    },
}
"""kdstream's own factories of networks -> their arguments."""

_TORCHVISION: Mapping[str, _Kind] = {
    **dict.fromkeys(("dropout", "dropout_aux", "attention_dropout", "mlp_dropout", "drop_rate"), _SHARE),
    **dict.fromkeys(("stochastic_depth_prob", "layer_scale", "squeeze_ratio"), _SHARE),
    **dict.fromkeys(("width_mult", "mlp_ratio", "expansion_ratio"), _FACTOR),
    **dict.fromkeys(("groups", "width_per_group", "round_nearest", "bn_size", "stem_width"), _SIZE),
    **dict.fromkeys(("zero_init_residual", "memory_efficient", "init_weights", "aux_logits"), _FLAG),
    **dict.fromkeys(("transform_input", "reduced_tail", "dilated", "progress"), _FLAG),
    "image_size": _SIZE,
    "input_size": _list(_SIZE, 2),
    "representation_size": _or_none(_WIDTH),
    "replace_stride_with_dilation": _or_none(_list(_FLAG, 3)),
    "inverted_residual_setting": _list(_list(_SIZE, 4)),
}
"""Arguments of torchvision's classifiers that are no code, no weights and no place."""

_TIMM_NUMBERS = (
    *("drop_rate", "drop_path_rate", "drop_block_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate"),
    *("patch_drop_rate", "in_chans", "embed_dim", "embed_dims", "depth", "depths", "dims", "num_heads", "mlp_ratio"),
    *("mlp_ratios", "qkv_bias", "proj_bias", "qk_norm", "head_dim", "init_values", "ls_init_value"),
    *("layer_scale_init_value", "layerscale_value", "class_token", "distilled", "reg_tokens", "no_embed_class"),
    *("pre_norm", "final_norm", "fc_norm", "use_fc_norm", "pool_include_prefix", "dynamic_img_size"),
    *("dynamic_img_pad", "strict_img_size", "always_partition", "use_abs_pos_emb", "use_rel_pos_bias"),
    *("use_shared_rel_pos_bias", "use_rot_pos_emb", "scale_mlp", "swiglu_mlp", "layers", "channels", "cardinality"),
    *("base_width", "stem_width", "output_stride", "avg_down", "down_kernel_size", "block_reduce_first"),
    *("zero_init_last", "replace_stem_pool", "stem_size", "fix_stem", "stem_chs", "num_features", "head_bias"),
    *("head_init_scale", "head_norm_first", "head_hidden_size", "conv_bias", "conv_mlp", "use_grn", "kernel_sizes"),
    *("patch_norm", "distillation", "num_init_features", "growth_rate", "block_config", "bn_size"),
    *("memory_efficient", "se_from_exp", "channel_multiplier", "depth_multiplier", "round_chs_multiple", "width"),
    *("widths", "num_blocks", "expand_ratio", "norm_eps", "bn_momentum", "bn_eps", "strides", "dilations", "ratio"),
    *("sr_ratios", "legacy", "fused_conv"),
)

_TIMM: Mapping[str, _Kind] = {
    **dict.fromkeys(_TIMM_NUMBERS, _NUMBERS),
    # Some networks (LeViT) list all pairs of places in the image or in a window, in plain Python.
    **dict.fromkeys(("img_size", "patch_size"), _or_none(_square(1024))),
    "window_size": _or_none(_square(64)),
    **dict.fromkeys(("act_layer", "norm_layer", "attn_layer", "aa_layer", "global_pool", "pool_type"), _or_none(_WORD)),
    **dict.fromkeys(
        ("weight_init", "stem_type", "pos_embed", "pad_type", "rel_pos_type", "rope_type"), _or_none(_WORD)
    ),
}
"""Arguments of timm's models that are no code, no weights and no place. The words are names of timm's own tables."""

_FETCH = re.compile(r"weights|pretrained|checkpoint|cache_dir")
"""In the name of an argument by which torchvision or timm would download weights, or read them from a file."""


def check_spec(spec: Mapping[str, Any], source: Path, trusted: bool = False) -> None:
    """Refuse a network that is not on the list, or an argument of it; nothing is imported and nothing built.

    Args:
        spec: as :func:`kdstream.models.build` leaves it in a network: name, num_classes, further arguments.
        source: the file that holds it, for messages.
        trusted: the user vouches for the code that it names. Even so no weights are fetched by it.

    Raises:
        UserError: code of its own without ``trusted``; arguments that a file may not set, or not to this.
    """
    if not trusted:
        _refuse_code(spec, source)
    _check(spec, source, trusted, _DEEPEST)


def runs_code(spec: Mapping[str, Any]) -> bool:
    """Whether it names, at any depth, a factory that is not on the list."""
    inner = (spec[key] for key in ("backbone", "base") if isinstance(spec.get(key), Mapping))
    return _is_code(str(spec.get("name"))) or any(map(runs_code, inner))


def _is_code(name: str) -> bool:
    return is_dotted(name) and current(name) not in _OURS


def _refuse_code(value: Any, source: Path, deepest: int = 4 * _DEEPEST) -> None:
    """Nothing anywhere in a spec may look like the path of an object, whatever would become of it."""
    if deepest == 0:
        raise UserError(f"{source}: its spec is nested too deeply")
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            _refuse_code(item, source, deepest - 1)
    elif isinstance(value, str) and _is_code(value):
        raise UserError(
            f"{source} names code of its own ({shown(value)}), which loading would run: refused; if you trust it, "
            "load_student(path, trust_code=True)"
        )


def _check(spec: Mapping[str, Any], source: Path, trusted: bool, deepest: int) -> None:
    name = spec.get("name")
    arguments = {key: value for key, value in spec.items() if key not in ("name", "num_classes")}
    if not isinstance(name, str) or len(name) > 200:
        raise UserError(f"{source}: a network within its spec has no name, but {shown(name)}")
    if deepest == 0:
        raise UserError(f"{source}: its spec nests more than {_DEEPEST} networks")
    classes = spec.get("num_classes", 1)
    if not _whole(1, MOST_CLASSES).holds(classes):
        raise UserError(
            f"{source}: num_classes of {shown(name)} must be a whole number from 1 to {MOST_CLASSES}, "
            f"not {shown(classes)}"
        )
    if _is_code(name):
        return  # trusted; what it takes is its own affair
    if name.startswith(from_hf.PREFIX):
        raise UserError(f"{source} would fetch a network of its own ({shown(name)}): refused")
    if current(name) in _OURS:
        kinds = _OURS[current(name)]
    elif name.startswith(from_timm.PREFIX):
        if not re.fullmatch(r"\w+(\.\w+)?", name.removeprefix(from_timm.PREFIX), re.ASCII):
            raise UserError(f"{source}: {shown(name)} is no name of a timm model")
        kinds = _TIMM
    else:
        kinds = _TORCHVISION
    fetching = [key for key in arguments if (kinds is _TIMM or kinds is _TORCHVISION) and _FETCH.search(key)]
    if fetching:
        raise UserError(f"{source} would fetch weights of its own ({shown(fetching[0])} of {name}): refused")
    wrong = None if trusted else _wrong(arguments, kinds)
    if wrong:
        raise UserError(f"{source}: {shown(name)} {wrong}")
    for key, kind in kinds.items():
        if kind is _SPEC:
            if not isinstance(arguments.get(key), Mapping):
                raise UserError(f"{source}: {shown(name)} has no {key}, the network that it is made of")
            _check(arguments[key], source, trusted, deepest - 1)


def _wrong(arguments: Any, kinds: Mapping[str, _Kind]) -> str | None:
    """What is wrong with arguments, in words that follow the name of what takes them."""
    if not isinstance(arguments, Mapping):
        return f"has no arguments but {shown(arguments)}"
    for key, value in arguments.items():
        if key not in kinds:
            return (
                f"has an argument that a file may not set, {shown(key)}: refused; if you trust it, "
                "load_student(path, trust_code=True)"
            )
        if not kinds[key].holds(value):
            return f"has {key}={shown(value)}, which must be {kinds[key].words}"
    return None
