"""The methods of a comparison: an objective's or a preset's name, plain or coded, with its published settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.loss import OBJECTIVES
from kdstream.objectives.presets import Preset, presets
from kdstream.registry import nearest
from kdstream.terminal import quoted

LABELS = "labels only"
"""What every method has to beat."""
KD = "kd"
CODED = "coded:"
"""Before a method's name: with the coded teacher. A ``c`` is short for it where no objective has that name."""
_PHOTOGRAPHS = ("imagenet", "imagenet1pct", "cub200", "stanford_dogs")
"""Data sets of the presets that hold photographs; the others are CIFAR."""
_OF_LABELS = ("ce", "label_smoothing", "confidence_penalty", "one", "dml", "simkd", "ijckd")
"""Objectives that hold the labels' cross-entropy themselves, or do without."""


@dataclass(frozen=True)
class Method:
    """One of those that are compared.

    Attributes:
        name: for people, and of its folders.
        loss: term -> settings, nothing left to a preset.
        coded: whether the teacher sees coded images.
        source: where the settings come from.
    """

    name: str
    loss: dict[str, Any]
    coded: bool
    source: str

    @property
    def uses_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return parse_loss(self.loss).uses_teacher


def find_methods(names: Sequence[str], teacher: str, student: str, photographs: bool) -> list[Method]:
    """Labels only, KD, and those that are asked for, each once.

    Args:
        names: see :func:`find_method`.
        teacher, student: names of the networks: where settings were published for this pair, they are taken.
        photographs: settings for ImageNet and the like go before those for CIFAR.

    Raises:
        UserError: an unknown method; nothing to compare but labels.
    """
    found = {LABELS: Method(LABELS, {"ce": 1.0}, False, "cross-entropy, no teacher")}
    for name in (KD, *names):
        method = find_method(name, teacher, student, photographs)
        if not any((method.loss, method.coded) == (other.loss, other.coded) for other in found.values()):
            found.setdefault(method.name, method)
    return list(found.values())


def find_method(name: str, teacher: str, student: str, photographs: bool) -> Method:
    """A method by its name.

    Of an objective, or of a sum of several that somebody published (``dkd+cmkd``), the settings are those published for
    this pair of networks; else those for such images and any pair; else for such images and another pair; else any. An
    objective of which nothing is published has its defaults, with weight 1 beside the labels' cross-entropy.

    Args:
        name: an objective (``dkd``, or ``my_losses:Hint``), a published loss (``dkd+cmkd``,
            ``ttm/wttm/cifar100/vgg13-vgg8``), ``labels``; after ``coded:``, or a ``c`` where that is no other
            objective's name: with the coded teacher (``ckd``, ``cat``; ``cc`` is an objective, ``ccc`` its coded form).
        teacher, student, photographs: see :func:`find_methods`.

    Raises:
        UserError: no such method.
    """
    asked = name.strip()
    if asked in ("labels", "ce", LABELS):
        return Method(LABELS, {"ce": 1.0}, False, "cross-entropy, no teacher")
    coded, plain = asked.startswith(CODED), asked.removeprefix(CODED)
    if not coded and not _known(asked) and asked.startswith("c") and _known(asked[1:]):
        coded, plain = True, asked[1:]
    if not _known(plain):
        words = [*OBJECTIVES, *(f"c{one}" for one in OBJECTIVES), *_published()]
        raise UserError(
            f"--methods: no method {quoted(asked)}: {nearest(plain, words)}; kdstream objectives lists them"
        )
    preset = _best(plain, (teacher, student), photographs)
    if preset is not None:
        loss = {term: dict(settings) for term, settings in preset.loss.items()}
        source = f"{preset.family}/{preset.name}" + _of_others(preset, (teacher, student))
    else:
        alone = plain in _OF_LABELS
        loss = {plain: {"weight": 1.0}} if alone else {"ce": {"weight": 1.0}, plain: {"weight": 1.0}}
        source = "defaults: nothing published" + ("" if alone else ", weight 1 beside the labels")
    method = Method(f"c{plain}" if coded and plain in OBJECTIVES else asked, loss, coded, source)
    if coded and not method.uses_teacher:
        raise UserError(f"--methods: {quoted(asked)}: {plain} looks at no teacher, so there is no coded form of it")
    return method


def _published() -> set[str]:
    """The names under which losses are published: the method's, with who, with the data set."""
    found = set()
    for full, preset in presets().items():
        found |= {full, preset.family, preset.family.partition("/")[2]}
    return found


def _known(name: str) -> bool:
    return name in OBJECTIVES or ":" in name or name in _published()


def _best(name: str, pair: tuple[str, str], photographs: bool) -> Preset | None:
    """The preset that fits best; the first of those that fit as well."""
    found = presets()
    if name in found:
        return found[name]
    mine = [one for one in found.values() if name in (one.family, one.family.partition("/")[2])]

    def fit(preset: Preset) -> tuple[bool, ...]:
        data, _, networks = preset.name.partition("/")
        same_images = (data in _PHOTOGRAPHS) == photographs
        return (not (same_images and _is_pair(networks, pair)), not (same_images and not networks), not same_images)

    return min(mine, key=fit, default=None)


def _is_pair(networks: str, pair: tuple[str, str]) -> bool:
    return networks in ("-".join(pair), pair[1])


def _of_others(preset: Preset, pair: tuple[str, str]) -> str:
    networks = preset.name.partition("/")[2]
    return ", of other networks" if "-" in networks and not _is_pair(networks, pair) else ""
