"""Weights from files and addresses: kdstream's own and others' published ones, read without executing anything."""

from __future__ import annotations

import functools
import re
import reprlib
import zipfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from kdstream.addresses import is_url, public
from kdstream.errors import UserError
from kdstream.models import MODELS, build, from_timm
from kdstream.models.download import fetch
from kdstream.notes import architecture, classifier_path_of

_WRAPPERS = ("model", "state_dict", "net", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel (and Tapped), torch.compile
_COUNTER = "num_batches_tracked"  # BatchNorm's; absent from files of torch < 0.4.1, and of no effect
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|\?xml)", re.IGNORECASE)
_TORCHVISION_CANDIDATES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"),
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0", "densenet121", "vit_b_16"),
)
_TIMM_CANDIDATES = (
    *("timm:deit_tiny_patch16_224", "timm:deit_small_patch16_224", "timm:deit_base_patch16_224"),
    *("timm:deit3_small_patch16_224", "timm:deit3_base_patch16_224", "timm:mobilenetv1_100", "timm:mobilenetv2_100"),
)
_RENAMED = (
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),  # DeiT III: the authors' files -> timm
    # DenseNet: torchvision's files -> its own network, as torchvision does it itself
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
)
"""Keys in files that others published -> keys of the networks that they are for."""


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU.

    Reads safetensors, a saved state dict, or one inside a dict under ``model``, ``state_dict``, ``net`` or
    ``model_state_dict``; removes the prefixes of DistributedDataParallel and torch.compile. Pickled objects are
    refused (``torch.load(weights_only=True)``), never executed.

    Args:
        path: a file, a folder with kdstream's ``student.safetensors``, or an http(s) address: downloaded once to
            torch.hub's folder.

    Raises:
        UserError: no such file, not a weights file, truncated, holds no state dict or carries a pickled object.
    """
    check_place(path)
    if is_url(path):
        return fetch(str(path), read_file)
    path = Path(path)
    if (path / "student.safetensors").is_file():
        path = path / "student.safetensors"
    return read_file(path, str(path))


def check_place(weights: object) -> None:
    """That it is a text or a path, whatever may be there.

    Raises:
        UserError: it is something else, as a number.
    """
    if not isinstance(weights, str | PathLike):
        kind = type(weights).__name__
        raise UserError(f"weights are the name of a folder, a file or an address, as text; this is of type {kind}")


def read_file(path: Path, source: str) -> dict[str, Tensor]:
    """As :func:`read_weights`, from a local file; ``source`` is what messages call it."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would wait for ever
            raise UserError(f"{source} is no ordinary file; give a file of weights")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; give a file of weights") from None
    except IsADirectoryError:
        raise UserError(f"{source} is a folder without student.safetensors; give a file of weights") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from error
    if not head:
        raise UserError(f"{source} is empty; download or save it again")
    if _WEB_PAGE.match(head):
        raise UserError(f"{source} is a web page (HTML), not weights: the download went wrong; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{source} is a Git LFS pointer, not weights; fetch the file itself with 'git lfs pull'")
    # A safetensors file starts with the length of a JSON header, 8 bytes, and the header.
    if Path(source).suffix == ".safetensors" or head[8:9] == b"{":
        return _strip(read_safetensors(path.read_bytes(), source))
    return _strip(_state_dict(_from_pickle(path, head, source), source))


def read_safetensors(data: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes; ``source`` is what messages call it.

    Raises:
        UserError: not the bytes of a whole safetensors file.
    """
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # whatever the bytes provoke, the answer is the same
        raise UserError(f"{source} is no safetensors file, or truncated or damaged: {_line(error)}") from error


def load_weights(module: nn.Module, path: str | PathLike[str]) -> None:
    """Load a file that :func:`read_weights` reads into ``module``; nothing is loaded unless everything fits.

    Missing ``num_batches_tracked`` entries are tolerated.

    Raises:
        UserError: see :func:`read_weights`; and another class count, or another architecture: the message says what
            differs and, where it can, which architecture the file is for.
    """
    load_state(module, read_weights(path), public(str(path)))


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict as :func:`load_weights` does; ``source`` is what messages call it."""
    state = check_state(module, state, source)
    whole = module.state_dict()  # with the versions of its layers, which some (torchvision's MNASNet) ask for
    whole.update({key: value for key, value in state.items() if key in whole})
    module.load_state_dict(whole)


def check_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """That a state dict is for this network, which may be on the meta device; nothing is loaded.

    Returns:
        The state dict, with the keys that the network has.

    Raises:
        UserError: as :func:`load_weights`.
    """
    own = module.state_dict()
    state = _renamed(state, own)
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in own and not key.endswith(_COUNTER)]
    other = [key for key in own if key in state and own[key].shape != state[key].shape]
    if other and not missing and not unexpected:
        _check_classes(module, own, state, other, source)
    if missing or unexpected or other:
        shapes = [f"{key} is {list(state[key].shape)} instead of {list(own[key].shape)}" for key in other]
        differences = [
            *_count(missing, "missing"),
            *_count(unexpected, "unexpected"),
            *_count(shapes, "of another shape", shown=2),
        ]
        name = architecture(module)
        likely = recognise(state)
        hint = f"; it looks like {likely}" if likely not in (None, name) else _together(state)
        raise UserError(f"{source} is for another architecture than {name}: {', '.join(differences)}{hint}")
    for key in own:
        if key in state and own[key].is_floating_point() and not state[key].is_floating_point():
            raise UserError(f"{source} has {key} as {state[key].dtype}, which are no weights; give them as floats")
    return state


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The name for :func:`kdstream.models.build` of the network that has exactly these weights; None: none known.

    Candidates are kdstream's own networks, the usual ones of torchvision and, where it is installed, of timm.
    """
    matrices = [value for value in state.values() if value.ndim == 2]
    if not matrices:
        return None
    timm = _TIMM_CANDIDATES if from_timm.installed() else ()
    for name in (*MODELS, *_TORCHVISION_CANDIDATES, *timm):
        own = _candidate(name, len(matrices[-1]) or 1)
        if _shapes(_renamed(state, own)) == _shapes(own):
            return name
    return None


@functools.lru_cache(maxsize=256)
def _candidate(name: str, num_classes: int) -> Mapping[str, Tensor]:
    """A network's state dict on the meta device: shapes only, no memory, no initialisation."""
    with torch.device("meta"):
        return build(name, num_classes).state_dict()


def count_classes(state: Mapping[str, Tensor], name: str, **kw: Any) -> int | None:
    """For how many classes the weights are, if they are the network's that ``build(name, ..., **kw)`` gives.

    Returns:
        None where the network has no linear classifier, or the weights have none at its place, or the network takes
        data to build (torchvision's RegNets).
    """
    try:
        with torch.device("meta"):
            module = build(name, 2, **kw)
    except NotImplementedError:
        return None
    weight = _renamed(state, module.state_dict()).get(f"{classifier_path_of(module)}.weight")
    return None if weight is None or weight.ndim != 2 else len(weight)


_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_HARMLESS = (
    *("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"),
    *(f"torch.{kind}Storage" for kind in _STORAGES),
)
"""What torch's own files of weights name."""


_SETTINGS = (
    "; RepDistiller's *_last.pth files hold their settings, its ckpt_epoch_*.pth files do not: take one of those"
)


def _from_pickle(path: Path, head: bytes, source: str) -> Any:
    if head.startswith(b"PK"):
        _check_zip(path, source)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes provoke, the answer is one of these
        text = _line(error)
        unsafe = re.search(r"GLOBAL (\S+)", text)
        # A name cut off in the middle is no object, but the end of the file.
        if unsafe and not any(name.startswith(unsafe[1].rstrip(".")) for name in _HARMLESS):
            raise UserError(
                f"{source} carries a pickled object ({unsafe[1]}), which could run code: refused; save the weights "
                "alone, torch.save(model.state_dict(), ...), or as safetensors"
                + (_SETTINGS if unsafe[1] == "argparse.Namespace" else "")
            ) from error
        if head.startswith((b"PK", b"\x80")):  # torch's zip files; pickles, torch's format before 1.6
            raise UserError(f"{source} is truncated or damaged; download or save it again") from error
        raise UserError(
            f"{source} is no file of weights: neither safetensors nor what torch.save writes; give a file of one of "
            "these"
        ) from error


def _check_zip(path: Path, source: str) -> None:
    """That a zip file as torch writes it does not unpack to far more than it is: torch stores without compressing."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # whatever the bytes provoke, the answer is the same
        raise UserError(f"{source} is truncated or damaged; download or save it again") from error
    if unpacked > 16 * size + 2**24:
        raise UserError(f"{source} has {size} bytes and unpacks to {unpacked}: refused; save the weights again")


def _check_tensors(state: Mapping[str, Tensor], source: str) -> None:
    """That tensors from a pickle are plain ones and have as many numbers as they claim: not one, repeated for ever."""
    for key, value in state.items():
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta:
            raise UserError(f"{source}: {_some([key], 1)} is no plain tensor; save the weights as plain tensors")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{source}: {_some([key], 1)} claims {value.numel()} numbers and has fewer; save it anew")


def _state_dict(data: Any, source: str) -> dict[str, Tensor]:
    for _ in range(4):  # a file may nest, {"model": {"state_dict": ...}}, and a hostile one may nest without end
        if not isinstance(data, Mapping):
            break
        if data and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in data.items()):
            _check_tensors(data, source)
            return dict(data)
        inner = [data[key] for key in _WRAPPERS if isinstance(data.get(key), Mapping)]
        if not inner:
            break
        data = inner[0]
    held = f"a dict of {_some(map(_key, data), 5)}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
    raise UserError(
        f"{source} holds no weights but {held}; expected a state dict, alone or under {', '.join(_WRAPPERS)}"
    )


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` with published keys renamed to those of ``own``, where it has not the old but the new in that shape."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        new = key
        if key not in own:
            for pattern, replacement in _RENAMED:
                other = pattern.sub(replacement, key)
                if other in own and other not in state and own[other].shape == value.shape:
                    new = other
        renamed[new] = value
    return renamed


def _together(state: Mapping[str, Tensor]) -> str:
    """A hint where a file has two networks."""
    if not all(any(key.startswith(f"{role}.") for key in state) for role in ("student", "teacher")):
        return ""
    return "; it holds a student and a teacher together: give a file of one of them (mdistiller's student_best)"


def _check_classes(
    module: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], other: list[str], source: str
) -> None:
    path = classifier_path_of(module)
    weight = f"{path}.weight"
    if weight not in other or not set(other) <= {weight, f"{path}.bias"}:
        return
    if own[weight].shape[1:] == state[weight].shape[1:]:
        raise UserError(f"{source} is for {len(state[weight])} classes, the data has {len(own[weight])}")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items() if not key.endswith(_COUNTER)}


def _count(items: list[str], what: str, shown: int = 3) -> list[str]:
    if not items:
        return []
    number = "1 key is" if len(items) == 1 else f"{len(items)} keys are"
    return [f"{number} {what} ({_some(items, shown)})"]


def _key(key: Any) -> str:
    """A key of any kind, for a message; a hostile one could be endless."""
    return key if isinstance(key, str) else reprlib.repr(key)


def _some(items: Iterable[str], shown: int) -> str:
    items = [item if len(item) <= 200 else f"{item[:200]}..." for item in items]
    items = [item if item.isprintable() else ascii(item) for item in items]
    return ", ".join([*items[:shown], "..."] if len(items) > shown else items)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
