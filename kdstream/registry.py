"""From a name to an object: short names of a table, or the dotted path of anybody's own code.

A dotted path makes Python import, and so run, the module that it names: who runs a recipe must trust it. What is called
by such a name is narrowed down nevertheless, so that a recipe reads as what it does: never the standard library or a
built-in object, and nothing else of kdstream and of the packages for other work (:data:`TOOLS`) than what the recipe
may name there.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from kdstream.errors import UserError

MOST_NAMES = 60
"""So many names at most does a message list: a module may hold thousands."""
LONGEST_NAME = 100
"""What is longer is no misspelt name."""
# fmt: off
TOOLS = frozenset({
    "torch", "numpy", "scipy", "pandas", "sklearn", "numba", "kornia", "webdataset", "PIL", "cv2", "yaml", "rich",
    "pydantic", "pydantic_core", "accelerate", "safetensors", "huggingface_hub", "tensorboard", "onnx", "onnxruntime",
    "matplotlib", "pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel", "pytest", "_pytest", "hypothesis",
    "IPython", "ipykernel", "joblib", "dill", "cloudpickle", "fsspec", "s3fs", "gcsfs", "boto3", "botocore", "requests",
    "urllib3", "httpx", "aiohttp", "paramiko", "fabric", "invoke", "sh", "plumbum", "pexpect", "ptyprocess", "psutil",
    "docker", "cffi",
})
# fmt: on
"""Packages whose functions load, write, fetch or start something: no stages, networks or selectors."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message about ``name``: the nearest known name, or all of them when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if len(name) <= LONGEST_NAME else []
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join([*known[:MOST_NAMES], *(['...'] if known[MOST_NAMES:] else [])]) or 'none'}"


def import_object(path: str, what: str) -> Any:
    """The object at ``package.module:attribute``.

    Args:
        path: dotted path with a colon before the attribute.
        what: the kind of thing that is looked up, for messages ("stage", "objective", ...).

    Raises:
        UserError: the module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise UserError(f"{what} {path[:LONGEST_NAME]!r} is no dotted path: write package.module:name")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{what} {path!r}: cannot import module {module_name!r} ({error}); run from the folder that holds it "
            "or install it"
        ) from error
    except (Exception, SystemExit) as error:  # whatever its code does
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{what} {path!r}: module {module_name!r} fails when it is imported ({said})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = (name for name in vars(found) if not name.startswith("_")) if hasattr(found, "__dict__") else ()
            raise UserError(f"{what} {path!r}: {module_name} has no {attribute!r}; {nearest(part, names)}")
        found = getattr(found, part)
    return found


def import_named(path: str, what: str, may_be: Callable[[Any], bool]) -> Any:
    """The object that a recipe names by dotted path; nothing but its module is run.

    Args:
        path, what: see :func:`import_object`.
        may_be: whether an object is of the kind that is looked up, wherever it comes from.

    Raises:
        UserError: as :func:`import_object`; an object of the standard library or a built-in one, found there or through
            a module that imports it; another one of kdstream or of :data:`TOOLS` than ``may_be`` knows.
    """
    standard = (
        f"{what} {path[:LONGEST_NAME]!r}: Python's standard library has no {what}s: name one of a module of yours"
    )
    if _top(path.partition(":")[0]) in _STANDARD:
        raise UserError(standard)  # before the import, which may do something already
    found = import_object(path, what)
    if any(part.startswith("__") for part in path.partition(":")[2].split(".")):
        raise UserError(f"{what} {path!r}: what Python keeps under such a name is no {what}")
    if may_be(found):
        return found
    if not callable(found):
        raise UserError(f"{what} {path!r} is not a function or class, but of type {type(found).__name__}")
    origin = _origin(found)
    if origin in _STANDARD:
        raise UserError(standard)
    if origin == "kdstream" or origin in TOOLS:
        raise UserError(f"{what} {path!r}: {origin} has no {what} of that name")
    return found


_STANDARD = sys.stdlib_module_names | {"builtins", ""}


def _top(module: str) -> str:
    return module.partition(".")[0]


def _origin(found: Any) -> str:
    """The top package in which an object's code stands; empty for what has none."""
    if inspect.ismodule(found):
        return _top(found.__name__)
    while isinstance(found, functools.partial) or hasattr(found, "__wrapped__") or inspect.ismethod(found):
        found = getattr(found, "func", None) or getattr(found, "__wrapped__", None) or found.__func__
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        found = type(found)
    return _top(getattr(found, "__module__", None) or "")


def is_network_class(found: Any) -> bool:
    """Whether it is a class of torch modules: a network, or a term of a loss."""
    from torch import nn  # slow to import

    return inspect.isclass(found) and issubclass(found, nn.Module)


class Registry(Mapping[str, str]):
    """Short names of one kind of object. Objects are imported when they are asked for, not before.

    Args:
        what: the kind, as messages call it ("objective", "stage", "model").
        table: short name -> dotted path ``package.module:attribute``.
        may_be: see :func:`import_named`; what the table names, it may be in any case.
    """

    def __init__(self, what: str, table: Mapping[str, str], may_be: Callable[[Any], bool] = is_network_class):
        self.what = what
        self._table = dict(table)
        self._may_be = may_be

    def __getitem__(self, name: str) -> str:
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def find(self, name: str) -> Any:
        """The object called ``name``: a short name of the table, or a dotted path with a colon.

        Raises:
            UserError: an unknown name; the message proposes the nearest one. What :func:`import_named` refuses.
        """
        if name in self._table.values():
            return import_object(name, self.what)
        if ":" in name:
            return import_named(name, self.what, self._may_be)
        if name not in self._table:
            raise UserError(f"unknown {self.what} {name[:LONGEST_NAME]!r}: {nearest(name, self._table)}")
        return import_object(self._table[name], self.what)
