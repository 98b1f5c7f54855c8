"""Networks that are given as objects: for as long as one is in use, a recipe may name it like any other network."""

from __future__ import annotations

import contextlib
import copy
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdstream.errors import UserError
from kdstream.notes import note, spec_of

if TYPE_CHECKING:
    from torch import nn

PREFIX = "object:"
"""Of the names of such networks."""
_GIVEN: dict[str, nn.Module] = {}
"""Name -> network, of those in use."""


def is_given(name: str) -> bool:
    """Whether a network's name is that of an object."""
    return name.startswith(PREFIX)


def class_of(spec: Mapping[str, Any]) -> str:
    """The class of such a network, by its ``spec``."""
    return str(spec["name"]).removeprefix(PREFIX).partition("#")[0]


@contextlib.contextmanager
def given(network: nn.Module) -> Iterator[str]:
    """While this is open, :func:`kdstream.models.build` gives copies of ``network`` by the name that this yields.

    The name is of the network's class, its weights and its code, so that what is kept under it is found by the same
    network in another process; where something of it has no such name, nothing is found again.
    """
    from kdstream.hashing import Unnamed, digest  # torch, for which names of networks do not wait

    kind = type(network)
    title = f"{PREFIX}{kind.__module__}.{kind.__qualname__.rpartition('<locals>.')[2]}"
    try:
        mark = digest(network)[:12]
    except Unnamed:
        mark = f"unnamed-{uuid.uuid4().hex[:12]}"
    name = f"{title}#{mark}"
    _GIVEN[name] = network
    try:
        yield name
    finally:
        _GIVEN.pop(name, None)


def copy_of(name: str, num_classes: int) -> nn.Module:
    """A copy of the network of that name, with a ``spec``: its own, or one that says that it was an object.

    Raises:
        UserError: no network of that name is in use; it is for another number of classes, or cannot be copied.
    """
    from torch import nn

    from kdstream.models.taps import find_classifier

    if name not in _GIVEN:
        raise UserError(f"{name} was given to kdstream.distill as an object, in another process or call: give it again")
    network, what = _GIVEN[name], name.removeprefix(PREFIX).partition("#")[0]
    known = spec_of(network)
    path = find_classifier(network, num_classes)
    layer = None if path is None else network.get_submodule(path)
    count = known.get("num_classes", layer.out_features if isinstance(layer, nn.Linear) else num_classes)
    if count != num_classes:
        raise UserError(f"{what} is for {count} classes, the data has {num_classes}")
    try:
        made = copy.deepcopy(network).cpu()
    except Exception as error:  # their own __deepcopy__ and __reduce__ may raise anything
        raise UserError(f"{what} cannot be copied: {' '.join(str(error).split())}") from error
    # What nothing may be found by says so in the spec, which names of kept work look at.
    title = name if "#unnamed-" in name else name.partition("#")[0]
    note(made, spec=known or {"name": title, "num_classes": num_classes})
    return made.train()
