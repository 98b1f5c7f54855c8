"""The student that is deployed: ``student.safetensors`` beside a ``student.json`` that rebuilds the network."""

from __future__ import annotations

import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import Tensor, nn

from kdstream.atomic import write_atomic
from kdstream.batch import SMALLEST_STD
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.bounded import build_within
from kdstream.models.given import class_of, is_given
from kdstream.models.specs import check_spec, runs_code
from kdstream.models.weights import check_place, load_state, read_safetensors
from kdstream.notes import About, architecture, note
from kdstream.terminal import shown

FORMAT = 1
DESCRIPTION = "deployed"
"""Where a checkpoint holds the network that would be exported: ``about`` as in student.json, and ``state``."""
LARGEST_SIDE = 65535
"""Pixels: the largest of a JPEG file."""
_LARGEST_JSON = 16 << 20
_LARGEST_FLOAT = 3.4e38
_ATTRIBUTES: tuple[Literal["classes", "mean", "std", "image_size"], ...] = ("classes", "mean", "std", "image_size")


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
        mean: mean of each of the three channels of what the network takes, for images in [0,1].
        std: standard deviation of each, likewise; one below 1e-6 is written as 1e-6, which training divides by then.
        image_size: pixels, H = W, or (H, W); at most 65535.
        extra: anything else worth keeping (plain JSON): accuracy, recipe, ...

    Returns:
        The path of ``student.json``.

    Raises:
        UserError: the network has no spec, the number of class names is not its class count, mean, std or image_size
            are out of range, or ``extra`` is not plain JSON: nothing is written then; or the folder cannot be written
            to.
    """
    about = describing(module, classes, mean, std, image_size, extra)
    state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{architecture(module)} cannot be exported: its state {key!r} is no tensor")
    # clone: safetensors refuses tensors that share memory (tied weights).
    weights = safetensors.torch.save({key: value.detach().cpu().contiguous().clone() for key, value in state.items()})
    about["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    try:
        text = (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError, of half a character in a class name, among them
        raise UserError(f"what is saved with a student must be plain JSON: {error}") from error
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "student.safetensors", weights)
        write_atomic(folder / "student.json", text)
    except OSError as error:
        raise UserError(f"{folder}: cannot write the student there: {error.strerror}") from error
    return folder / "student.json"


def describing(
    module: nn.Module,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    image_size: int | Sequence[int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``student.json`` says of a network, but for the sum of its weights (which is a row of zeros here); see
    :func:`save_student`.

    Raises:
        UserError: no spec; class names, mean, std or image_size that cannot be.
    """
    spec = getattr(module, "spec", None)
    if not isinstance(spec, dict):
        raise UserError(
            f"{type(module).__name__} cannot be exported: it has no 'spec' to rebuild it; build it with "
            "kdstream.models.build, by dotted path where it is your own"
        )
    about = {
        "format": FORMAT,
        "spec": spec,
        "classes": None if classes is None else [str(name) for name in classes],
        "mean": None if mean is None else _floats(mean),
        "std": None if std is None else [SMALLEST_STD if 0 <= s < SMALLEST_STD else s for s in _floats(std)],
        "image_size": _pixels(image_size),
        "weights_sha256": "0" * 64,
        "extra": dict(extra or {}),
    }
    if is_given(spec["name"]):
        about["rebuild"] = f"only with the class {class_of(spec)}: load_student(folder, module=...)"
    wrong = _wrong(about)
    if wrong:
        raise UserError(wrong)
    return about


def load_student(path: str | PathLike[str], trust_code: bool = False, module: nn.Module | None = None) -> nn.Module:
    """Rebuild a saved student: on the CPU, in eval mode, images [N,3,H,W] -> logits [N,C].

    The network gets the attribute ``about`` (the content of ``student.json``), and from it ``classes``, ``mean``,
    ``std`` and ``image_size``, save those that the network has for itself (a vision transformer's ``image_size``).

    Args:
        path: the folder, ``student.json`` or ``student.safetensors``.
        trust_code: allow a network that is not on the list of :mod:`kdstream.models.specs`: its factory is imported
            and so executed.
        module: the network that the weights are for, which gets them; nothing is built then.

    Raises:
        UserError: files missing, damaged or not of one export; a network or arguments that are not on the list without
            ``trust_code``; a ``module`` that the weights do not fit, or none where only its class can rebuild it.
    """
    return read_export(path, lambda spec: trust_code, module)


def read_export(
    path: str | PathLike[str], trusts: Callable[[Mapping[str, Any]], bool], module: nn.Module | None = None
) -> nn.Module:
    """As :func:`load_student`; ``trusts`` is asked whether the code that the ``spec`` names may be run."""
    check_place(path)
    description, weights = _files(Path(path))
    about = _read_json(description)
    trusted = admitted(about["spec"], trusts, description, module)
    data = _read(weights)
    if hashlib.sha256(data).hexdigest() != about["weights_sha256"]:
        raise UserError(
            f"{weights} is not the file that {description.name} describes: damaged, or of another export; "
            "copy or export both again"
        )
    return rebuilt(about, read_safetensors(data, str(weights)), trusted, description, weights, module)


def admitted(
    spec: Mapping[str, Any],
    trusts: Callable[[Mapping[str, Any]], bool],
    description: Path,
    module: nn.Module | None = None,
) -> bool:
    """Whether the user trusts the code that a ``spec`` names; where there is a ``module``, nothing is built by it.

    Raises:
        UserError: it may not be built; ``description`` is the file that holds it.
    """
    if module is not None:
        return False
    if is_given(spec["name"]):
        raise UserError(
            f"{description} is of {class_of(spec)}, which was given as an object: it cannot be rebuilt without its "
            "class; in Python, load_student(folder, module=...) puts the weights into such a network"
        )
    trusted = trusts(spec)
    check_spec(spec, description, trusted)
    return trusted


def rebuilt(
    about: About,
    state: Mapping[str, Tensor],
    trusted: bool,
    description: Path,
    weights: Path,
    module: nn.Module | None = None,
) -> nn.Module:
    """The network that a description is of, with its weights, after :func:`admitted`; the files are for messages.

    Raises:
        UserError: see :func:`load_student`.
    """
    spec = about["spec"]
    if module is not None:
        note(module, spec=spec)
    elif trusted and runs_code(spec):
        module = build(**spec)
    else:
        module = build_within(spec, state, str(description), str(weights))
    load_state(module, state, str(weights))
    return describe(module, about).eval()


def describe(module: nn.Module, about: About) -> nn.Module:
    """Give a network the attribute ``about``, and from it ``classes``, ``mean``, ``std`` and ``image_size`` (None where
    it says nothing), save those that the network has for itself. Returns the network."""
    known: About = {"classes": None, "mean": None, "std": None, "image_size": None, **about}
    note(module, about=known)
    for name in _ATTRIBUTES:
        if not hasattr(module, name):
            setattr(module, name, known[name])
    return module


def _files(path: Path) -> tuple[Path, Path]:
    if path.suffix in (".json", ".safetensors") and not path.is_dir():
        return path.with_suffix(".json"), path.with_suffix(".safetensors")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a folder with student.json, or that file")
    return path / "student.json", path / "student.safetensors"


def _read(path: Path, most: int | None = None) -> bytes:
    try:
        if not path.is_file() and path.exists():  # a pipe would wait for ever
            raise UserError(f"{path} is no ordinary file")
        with path.open("rb") as file:
            data = file.read(-1 if most is None else most + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a student is student.json and student.safetensors together") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if most is not None and len(data) > most:
        raise UserError(f"{path} is no student's: it is larger than {most >> 20} MB")
    return data


def _read_json(path: Path) -> About:
    """The content of a ``student.json``, every field of it as :func:`save_student` writes it."""
    data = _read(path, _LARGEST_JSON)
    try:
        about = json.loads(data, object_pairs_hook=_once)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:  # no JSON, not UTF-8, a number of thousands of digits
        raise UserError(f"{path} is no JSON, or truncated: {' '.join(str(error).split())}") from None
    return checked(about, path)


def checked(about: Any, path: Path) -> About:
    """A description, every field of which is as :func:`save_student` writes it.

    Raises:
        UserError: it is none; ``path`` names the file.
    """
    spec = about.get("spec") if isinstance(about, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str) or "num_classes" not in spec:
        raise UserError(f"{path} does not describe a student: it has no spec with name and num_classes")
    version = about.get("format")
    if type(version) is not int or version != FORMAT:
        raise UserError(
            f"{path} has format {shown(version)}, this kdstream reads format {FORMAT}; update kdstream or "
            "export the student again"
        )
    wrong = _wrong(about)
    if wrong:
        raise UserError(f"{path}: {wrong}; export the student again")
    return about


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice: readers would not agree which one counts."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise UserError(f"the key {shown(key)} stands there twice")
        made[key] = value
    return made


def _wrong(about: Mapping[str, Any]) -> str | None:
    """What is wrong with a description's fields besides format and spec, in words; None: nothing."""
    classes, number = about.get("classes"), about["spec"]["num_classes"]
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            return "classes must be a list of names"
        if len(classes) != number:
            return f"{len(classes)} class names for a network of {shown(number)} classes"
    for key in ("mean", "std"):
        values = about.get(key)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_finite, values)):
            return f"{key} must be three finite numbers, one by channel, not {shown(values)}"
        if key == "std" and min(values) <= 0:
            return f"std must be above 0, not {shown(values)}"
    size = about.get("image_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if size is not None and not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides):
        return f"image_size must be a number of pixels from 1 to {LARGEST_SIDE}, or [height, width], not {shown(size)}"
    if not re.fullmatch("[0-9a-f]{64}", str(about.get("weights_sha256"))):
        return f"weights_sha256 must be 64 hexadecimal digits, not {shown(about.get('weights_sha256'))}"
    if not isinstance(about.get("extra", {}), dict):
        return f"extra must be an object, not {shown(about['extra'])}"
    return None


def _is_finite(value: Any) -> bool:
    """Whether it is a number, and one in single precision too."""
    return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT


def _floats(values: Sequence[float] | Tensor) -> list[float]:
    return [float(value) for value in values]


def _pixels(size: int | Sequence[int] | None) -> int | list[int] | None:
    if size is None:
        return None
    return [operator.index(side) for side in size] if isinstance(size, Sequence | Tensor) else operator.index(size)
