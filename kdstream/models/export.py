"""The student that is deployed: ``student.safetensors`` beside a ``student.json`` that rebuilds the network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from kdstream.atomic import write_atomic
from kdstream.errors import UserError
from kdstream.models import build, from_timm
from kdstream.models.weights import check_place, load_state, read_safetensors
from kdstream.registry import import_object

FORMAT = 1
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_OURS = re.compile(r"kdstream\.(models|objectives)(\.\w+)*:\w+")
_ATTRIBUTES = ("classes", "mean", "std", "image_size")


def save_student(
    folder: str | PathLike[str],
    module: nn.Module,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    image_size: int | Sequence[int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``student.safetensors`` and ``student.json`` to ``folder``; each appears whole or not at all.

    Args:
        folder: made where it does not exist.
        module: the plain network with its ``spec``, as :func:`kdstream.models.build` gives it.
        classes: C class names, in the order of the logits.
        mean: per-channel mean of what the network takes, for images in [0,1].
        std: per-channel standard deviation, likewise.
        image_size: pixels, H = W, or (H, W).
        extra: anything else worth keeping (plain JSON): accuracy, recipe, ...

    Returns:
        The path of ``student.json``.

    Raises:
        UserError: the network has no spec, the number of class names is not its class count, or ``extra`` is not
            plain JSON: nothing is written then; or the folder cannot be written to.
    """
    spec = getattr(module, "spec", None)
    if not isinstance(spec, dict):
        raise UserError(
            f"{type(module).__name__} cannot be exported: it has no 'spec' to rebuild it; build it with "
            "kdstream.models.build, by dotted path where it is your own"
        )
    if classes is not None and len(classes) != spec["num_classes"]:
        raise UserError(f"{len(classes)} class names for a network of {spec['num_classes']} classes")
    state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{spec['name']} cannot be exported: its state {key!r} is no tensor")
    # clone: safetensors refuses tensors that share memory (tied weights).
    weights = safetensors.torch.save({key: value.detach().cpu().contiguous().clone() for key, value in state.items()})
    about = {
        "format": FORMAT,
        "spec": spec,
        "classes": None if classes is None else [str(name) for name in classes],
        "mean": _floats(mean),
        "std": _floats(std),
        "image_size": image_size if image_size is None or isinstance(image_size, int) else [int(n) for n in image_size],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(about, indent=2, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"what is saved with a student must be plain JSON: {error}") from error
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "student.safetensors", weights)
        write_atomic(folder / "student.json", (text + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot write the student there: {error.strerror}") from error
    return folder / "student.json"


def load_student(path: str | PathLike[str], trust_code: bool = False) -> nn.Module:
    """Rebuild a saved student: on the CPU, in eval mode, images [N,3,H,W] -> logits [N,C].

    The network gets the attribute ``about`` (the content of ``student.json``), and from it ``classes``, ``mean``,
    ``std`` and ``image_size``, save those that the network has for itself (a vision transformer's ``image_size``).

    Args:
        path: the folder, ``student.json`` or ``student.safetensors``.
        trust_code: allow a network of a factory outside kdstream, which is imported and so executed.

    Raises:
        UserError: files missing, damaged or not of one export; a network by dotted path without ``trust_code``.
    """
    check_place(path)
    description, weights = _files(Path(path))
    about = _read_json(description)
    spec = about["spec"]
    if not trust_code:
        _refuse_code(spec, description)
    data = _read(weights)
    if hashlib.sha256(data).hexdigest() != about.get("weights_sha256"):
        raise UserError(
            f"{weights} is not the file that {description.name} describes: damaged, or of another export; "
            "copy or export both again"
        )
    module = build(**spec)
    load_state(module, read_safetensors(data, str(weights)), str(weights))
    return describe(module, about).eval()


def describe(module: nn.Module, about: Mapping[str, Any]) -> nn.Module:
    """Give a network the attribute ``about``, and from it ``classes``, ``mean``, ``std`` and ``image_size`` (None where
    it says nothing), save those that the network has for itself. Returns the network."""
    module.about = {**dict.fromkeys(_ATTRIBUTES), **about}
    for name in _ATTRIBUTES:
        if not hasattr(module, name):
            setattr(module, name, module.about[name])
    return module


def _files(path: Path) -> tuple[Path, Path]:
    if path.suffix in (".json", ".safetensors") and not path.is_dir():
        return path.with_suffix(".json"), path.with_suffix(".safetensors")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a folder with student.json, or that file")
    return path / "student.json", path / "student.safetensors"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a student is student.json and student.safetensors together") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(_read(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no JSON, or truncated: {error}") from error
    spec = about.get("spec") if isinstance(about, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str) or "num_classes" not in spec:
        raise UserError(f"{path} does not describe a student: it has no spec with name and num_classes")
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {about.get('format')!r}, this kdstream reads format {FORMAT}; update kdstream or "
            "export the student again"
        )
    return about


def _refuse_code(value: Any, source: Path) -> None:
    """Refuse a spec that names, anywhere, an object that is not one of kdstream's own factories."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            # build looks a model's name with this prefix up among timm's models, and imports nothing by it.
            if not (key == "name" and isinstance(item, str) and item.startswith(from_timm.PREFIX)):
                _refuse_code(item, source)
    elif isinstance(value, list):
        for item in value:
            _refuse_code(item, source)
    elif isinstance(value, str) and _DOTTED.fullmatch(value) and not _is_ours(value):
        raise UserError(
            f"{source} names code of its own ({value}), which loading would run: refused; if you trust it, "
            "load_student(path, trust_code=True)"
        )


def _is_ours(path: str) -> bool:
    # The second test keeps out what our modules merely import (torch's and the standard library's functions).
    return bool(_OURS.fullmatch(path)) and str(getattr(import_object(path, "model"), "__module__", "")).startswith(
        "kdstream."
    )


def _floats(values: Sequence[float] | Tensor | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
