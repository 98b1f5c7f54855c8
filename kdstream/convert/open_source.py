"""Where images come from: the table of sources, and the one that a text names; see :mod:`kdstream.convert.split`."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from kdstream.convert.from_dataset import from_datasets, is_dataset
from kdstream.convert.split import Source
from kdstream.errors import UserError
from kdstream.registry import Registry, nearest

SOURCES = Registry(
    "source",
    {
        "digits": "kdstream.convert.sources.digits:digits",
        "imagefolder": "kdstream.convert.sources.image_folders:imagefolder",
        "cifar10": "kdstream.convert.sources.cifar:cifar10",
        "cifar100": "kdstream.convert.sources.cifar:cifar100",
        "tars": "kdstream.convert.sources.tars:tars",
        "hf": "kdstream.convert.sources.hugging_face:hugging_face",
        "csv": "kdstream.convert.sources.image_table:csv_table",
        "imagenet": "kdstream.convert.sources.imagenet:imagenet",
        "cub200": "kdstream.convert.sources.cub200:cub200",
        "stanford_dogs": "kdstream.convert.sources.stanford_dogs:stanford_dogs",
        "cifar10c": "kdstream.convert.sources.cifar_c:cifar10c",
        "cifar100c": "kdstream.convert.sources.cifar_c:cifar100c",
    },
    may_be=lambda found: False,
)
"""kdstream's own sources: name -> function (place, splits) -> :class:`Source`."""
# A module of one's own has a dot in its name, or the place follows its function: `cvs:labels` is a misspelt csv:FILE.
_OWN = re.compile(r"(?P<path>(\w+\.)+\w+:\w+|\w+:\w+(?=:))(?P<colon>:)?(?P<place>.*)?", re.ASCII | re.S)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def open_source(text: str, splits: Sequence[str] | None = None) -> Source:
    """The source that a command line calls ``text``.

    Args:
        text: a name of :data:`SOURCES`, and what it reads: ``digits``, ``imagefolder:DIR``, ``csv:FILE``,
            ``cifar10[:DIR]``, ``imagenet:DIR``, ...; or
            ``my_pkg.mine:birds[:PLACE]``, a function of your own, or a class, that takes nothing, the place, or place
            and splits, and gives a :class:`Source`, a torch data set of (image, label), or several, by split.
        splits: these splits only. For a source without splits of its own, one name that it gets instead of "train".

    Raises:
        UserError: an unknown source, or one that cannot be read; unknown splits; a split without images.
    """
    kind, colon, place = text.partition(":")
    if kind not in SOURCES and (own := _OWN.fullmatch(text)) and not os.path.exists(text):
        kind, colon, place = own["path"], own["colon"] or "", own["place"] or ""
    elif kind not in SOURCES:
        hint = f"did you mean imagefolder:{text}?" if os.path.isdir(text) else nearest(kind, SOURCES)
        hint = f"did you mean csv:{text}?" if os.path.isfile(text) and text.endswith(".csv") else hint
        raise UserError(f"unknown source {text!r}: {hint}")
    if colon and not place:
        raise UserError(f"source {text!r}: nothing follows the colon")
    source = (
        SOURCES.find(kind)(place, splits) if kind in SOURCES else _own_source(text, SOURCES.find(kind), place, splits)
    )
    unknown = [name for name in splits or () if name not in source.splits]
    if unknown:
        raise UserError(f"source {text!r} has no split {unknown[0]!r}: found {', '.join(source.splits)}")
    for name, split in source.splits.items():
        if not len(split):
            raise UserError(f"split {name!r} of {text!r} holds no images")
    if splits is not None:
        chosen = {name: source.splits[name] for name in source.splits if name in splits}
        source = Source(source.name, source.classes, chosen, source.notes, source.root)
    return source


def is_source(text: str) -> bool:
    """Whether a text names a source, and not a folder or an address."""
    if "://" in text or os.path.exists(text):
        return False
    return text.partition(":")[0] in SOURCES or _OWN.fullmatch(text) is not None


def _own_source(text: str, function: Callable[..., Any], place: str, splits: Sequence[str] | None) -> Source:
    """What a function of the user's gives, as a source."""
    if inspect.isclass(function):
        given: tuple[Any, ...] = (place,) if place else ()
    else:
        takes = [p for p in inspect.signature(function).parameters.values() if p.kind in _POSITIONAL]
        given = (place, splits)[: len(takes)]
        if place and not takes:
            raise UserError(f"source {text!r}: the function takes no place, so nothing may follow its name")
    found = function(*given)
    if isinstance(found, Source):
        return found
    datasets = found if isinstance(found, dict) else {(splits or ["train"])[0]: found}
    if not datasets or not all(is_dataset(one) for one in datasets.values()):
        raise UserError(
            f"source {text!r} gave {type(found).__name__}, not a kdstream.Source or a data set of (image, label)"
        )
    return from_datasets(text, {str(name): one for name, one in datasets.items()})
