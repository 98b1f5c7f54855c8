"""Published settings by name: for a term of a loss, or for a whole loss (the data: ``presets.yaml``)."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from kdstream.errors import UserError
from kdstream.safe_yaml import parse_yaml


class Preset(NamedTuple):
    """A published loss.

    Attributes:
        family: who and what, "ttm/wttm+crd".
        name: data set and, where it matters, teacher-student, "cifar100/resnet32x4-resnet8x4".
        source: paper and table, or code, and what is not published.
        loss: term -> settings, its outer ``weight`` among them where it is given.
    """

    family: str
    name: str
    source: str
    loss: dict[str, dict[str, Any]]


@functools.cache
def presets() -> dict[str, Preset]:
    """All presets, by full name ``family/name``; not to be changed."""
    text = files("kdstream.objectives").joinpath("presets.yaml").read_text(encoding="utf-8")
    blocks = parse_yaml(text, "presets.yaml:")
    found: dict[str, Preset] = {}
    for block in blocks:
        for name, own in block["presets"].items():
            full = f"{block['family']}/{name}"
            if full in found:
                raise ValueError(f"presets.yaml: {full} stands there twice")
            loss = _laid_over(block.get("loss", {}), own)
            found[full] = Preset(block["family"], name, block["source"], loss)
    return found


def term_presets(term: str) -> dict[str, list[str]]:
    """The short names of a term's presets -> the full names that they may stand for."""
    short: dict[str, list[str]] = {}
    for full, preset in presets().items():
        if preset.family.partition("/")[2] == term and term in preset.loss:
            short.setdefault(preset.name, []).append(full)
    return short


def term_settings(term: str, name: Any) -> dict[str, Any]:
    """A term's settings by the name of a preset.

    Args:
        term: the term's short name.
        name: a preset of the term (``cifar100/resnet32x4-resnet8x4``), or the full name of a loss that has the term.

    Returns:
        A new mapping: setting -> value, with ``weight`` where it is published.

    Raises:
        UserError: no such preset, several of that name that differ, or a term that has none.
    """
    where, short = f"loss.{term}", term_presets(term)
    full = [full for full, preset in presets().items() if term in preset.loss]
    if not full:
        having = sorted({term for preset in presets().values() for term in preset.loss})
        raise UserError(f"{where}: has no presets; those that have: {', '.join(having)}")
    if not isinstance(name, str) or (name not in short and name not in full):
        rest = f"...; all: kdstream objectives {term}" if short else "..."
        hint = _hint(str(name), [*short, *full]) or f"known: {_few(sorted(short) or full, rest)}"
        raise UserError(f"{where}: unknown preset {name!r}: {hint}")
    meant = [name] if name in full else short[name]
    settings = presets()[meant[0]].loss[term]
    if any(presets()[other].loss[term] != settings for other in meant[1:]):
        raise UserError(f"{where}: preset {name!r} is published with different values: choose {' or '.join(meant)}")
    return dict(settings)


def _hint(name: str, known: Iterable[str]) -> str:
    """The tail of a message: the known names under ``name``, or the one that is near; empty if there is neither."""
    known = list(known)
    if inside := _under(name, known):
        return f"choose {_few(inside)}"
    # What stands elsewhere, as a family without this term, is no misspelling.
    close = [] if _under(name, presets()) else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""


def _whole_hint(name: str) -> str:
    """As :func:`_hint` for a whole loss: a preset of a family, a family of those who published several, or who did."""
    families = sorted({preset.family for preset in presets().values()})
    if inside := _under(name, families):
        return f"choose one of {', '.join(f'{family}/...' for family in inside)}"
    owners = sorted({family.partition("/")[0] for family in families})
    return _hint(name, presets()) or f"known: {', '.join(f'{owner}/...' for owner in owners)}"


def _under(name: str, known: Iterable[str]) -> list[str]:
    place = name.rstrip("/.")
    return [other for other in known if other.startswith(f"{place}/")]


def _few(names: Sequence[str], rest: str = "...") -> str:
    """The first names, and ``rest`` for those after them."""
    return ", ".join([*names[:5], *([rest] if names[5:] else [])])


def expanded(loss: Mapping[Any, Any]) -> dict[Any, Any]:
    """A recipe's loss with its presets written out.

    ``preset`` beside the terms names a whole loss: its terms come first, and what the recipe says goes before, setting
    by setting (``crd: 0.5`` changes the weight alone). ``preset`` among a term's settings names settings of the term;
    those beside it go before.

    Args:
        loss: term -> weight or settings.

    Returns:
        The same without ``preset``. What is no preset is passed on as it is.

    Raises:
        UserError: an unknown preset, see :func:`term_settings`.
    """
    own = {term: _with_preset(term, spec) for term, spec in loss.items() if term != "preset"}
    if "preset" not in loss:
        return own
    name = loss["preset"]
    if not isinstance(name, str) or name not in presets():
        raise UserError(f"loss: unknown preset {name!r}: {_whole_hint(str(name))}")
    return _laid_over(presets()[name].loss, own)


def _with_preset(term: Any, spec: Any) -> Any:
    if not (isinstance(spec, Mapping) and "preset" in spec):
        return spec
    rest = {key: value for key, value in spec.items() if key != "preset"}
    return {**term_settings(str(term), spec["preset"]), **rest}


def _laid_over(base: Mapping[str, Any], over: Mapping[Any, Any]) -> dict[Any, Any]:
    """Two losses as one: term -> settings, those of ``over`` before those of ``base``."""
    return {term: {**_settings(base.get(term)), **_settings(over.get(term))} for term in dict.fromkeys([*base, *over])}


def _settings(spec: Any) -> dict[str, Any]:
    """Settings, where there is only a weight, or nothing."""
    if spec is None:
        return {}
    return dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
