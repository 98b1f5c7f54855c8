"""Where images come from: the table of sources, and the one that a text names; see :mod:`kdstream.convert.split`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

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


def open_source(text: str, splits: Sequence[str] | None = None) -> Source:
    """The source that a command line calls ``text``.

    Args:
        text: a name of :data:`SOURCES`, and what it reads: ``digits``, ``imagefolder:DIR``, ``csv:FILE``,
            ``cifar10[:DIR]``, ``imagenet:DIR``, ...; or
            ``my_pkg.mine:birds[:PLACE]``, a function (place, splits) -> :class:`Source` of your own.
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
    source = SOURCES.find(kind)(place, splits)
    if not isinstance(source, Source):
        raise UserError(f"source {text!r}: {kind} gave {type(source).__name__}, not a kdstream.Source")
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
