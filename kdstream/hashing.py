"""What decides a result has one name: networks, settings, functions, objects and the user's own code.

A name is the same in every process and on every machine, and another one for whatever may give another result. What
is ours or installed counts by its dotted path. The user's own code counts as Python compiled it, so that comments and
layout do not matter, and with all that it refers to by name: defaults, closures, globals, functions that it calls.
Another version of Python compiles otherwise: what was kept under the old name is then made anew. What code reaches in
other ways (files that it reads, ``eval``, attributes looked up by text) is not seen.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from kdstream.errors import UserError


def weights_hash(module: nn.Module) -> str:
    """SHA-256 (hex) over the names and bytes of all parameters and buffers, in state-dict order."""
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def network_name(network: nn.Module, weights: str | None = None) -> str:
    """What decides a network's answers: the hash of its weights, and more where they do not say it.

    Args:
        network: of :func:`kdstream.models.build`, which notes in ``spec`` how it was built, or any other.
        weights: its :func:`weights_hash`, where that is known.
    """
    weights = weights or weights_hash(network)
    spec = getattr(network, "spec", None)
    told = isinstance(spec, dict) and set(spec) <= {"name", "num_classes"}
    if told and not any(_is_own(type(module).__module__) for module in network.modules()):
        return weights
    return f"{weights}-{digest((spec, network), strict=False)[:16]}"


class Unnamed(UserError):
    """Something has no name that another process would find again."""


def digest(value: Any, strict: bool = True) -> str:
    """SHA-256 (hex) of everything that decides what a value does.

    Plain values, tensors, arrays and containers count by their contents (the order of a mapping too), functions and
    classes by path and, the user's own, by their code, other objects by their class and their state: what pickle would
    store. An object with a method ``named_by()`` counts by what that returns.

    Args:
        value: anything.
        strict: False = what has no name counts by its type.

    Raises:
        Unnamed: a generator, an open file or another thing without a lasting state is part of it.
    """
    try:
        text = _Describer(strict).describe(value)
    except RecursionError:
        raise Unnamed("it is nested too deeply to be named") from None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def name_of(value: Any) -> str:
    """A name for people and programs: the path of a function or of an object's class, and 12 digits of its digest.

    Raises:
        Unnamed: see :func:`digest`.
    """
    named = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return f"{_path(named)}#{digest(value)[:12]}"


def is_own(thing: Any) -> bool:
    """Whether a function, a class, an object or the module of this name is the user's own: not kdstream's, not
    installed."""
    if isinstance(thing, str):
        return _is_own(thing)
    if isinstance(thing, FunctionType):
        return _is_own(str(thing.__globals__.get("__name__")))
    return _is_own(thing.__module__ if hasattr(thing, "__qualname__") else type(thing).__module__)


_STDLIB = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
_OURS = {"kdstream", "torch", "torchvision", "numpy", "PIL", "webdataset", "kornia", "accelerate"}


def _is_own(module_name: str | None) -> bool:
    if module_name is None or module_name.partition(".")[0] in _OURS:
        return False
    top = module_name.partition(".")[0]
    module = sys.modules.get(module_name) or sys.modules.get(top)
    file = getattr(module, "__file__", None) or getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return top not in sys.builtin_module_names and top not in sys.stdlib_module_names
    path = Path(file)
    installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return not installed and not any(folder in path.parents for folder in _STDLIB)


def _path(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", "")
    return f"{getattr(thing, '__module__', None) or 'builtins'}:{name}"


_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented), torch.dtype)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_UNSEEN = {"__weakref__", "__dict__", "_abc_impl"}


class _Describer:
    """Writes values down as text that is equal where they are."""

    def __init__(self, strict: bool):
        self.strict = strict
        self.seen: dict[int, tuple[int, Any]] = {}  # keeps them alive: a number must not be given twice
        self.open: set[int] = set()  # containers that are being written
        self.where: list[str] = []

    def describe(self, value: Any) -> str:
        kind = type(value)
        if kind in _PLAIN:
            return f"{kind.__name__} {value!r}"
        if kind in (list, tuple, dict, OrderedDict, MappingProxyType, set, frozenset, torch.Size):
            return self.container(value)
        if isinstance(value, _LOCKS):
            return "lock"
        number = self.seen.get(id(value))
        if number is not None:
            return f"again {number[0]}"
        self.seen[id(value)] = len(self.seen), value
        if hasattr(kind, "named_by"):
            return f"{_path(kind)} by {self.describe(value.named_by())}"
        if isinstance(value, torch.Tensor | np.ndarray | np.generic):
            return self.numbers(value)
        if isinstance(value, enum.Enum):
            return f"{self.describe(kind)} {value.name} {self.describe(value.value)}"
        if isinstance(value, type):
            return self.of_class(value)
        if isinstance(value, FunctionType):
            return self.function(value)
        if isinstance(value, CodeType):
            return self.code(value)
        if isinstance(value, MethodType):
            return f"method {self.describe(value.__func__)} of {self.describe(value.__self__)}"
        if isinstance(value, classmethod | staticmethod):
            return f"{kind.__name__} {self.describe(value.__func__)}"
        if isinstance(value, property):
            return f"property {self.describe((value.fget, value.fset, value.fdel))}"
        if isinstance(value, ModuleType):
            return self.module(value, ())
        if isinstance(value, nn.Module):
            return self.network(value)
        return self.object(value)

    def inner(self, what: str, value: Any) -> str:
        """The same for a part, which messages name."""
        self.where.append(what)
        text = self.describe(value)
        self.where.pop()
        return text

    def unnamed(self, value: Any) -> str:
        if not self.strict:
            return f"unnamed {_path(type(value))}"
        place = " of ".join(reversed(self.where))
        is_a = f"a {type(value).__qualname__}, which has no name that another process would find again"
        raise Unnamed(f"{place} is {is_a}" if place else f"it is {is_a}")

    def container(self, value: Any) -> str:
        if id(value) in self.open:
            return "within itself"
        self.open.add(id(value))
        kind = type(value).__name__
        if isinstance(value, set | frozenset):
            # Each by itself: the order in which they come is another one in every process.
            parts = sorted(_Describer(self.strict).describe(item) for item in value)
        elif isinstance(value, list | tuple):
            parts = [self.describe(item) for item in value]
        else:
            parts = [f"{self.describe(key)}: {self.inner(f'item {key!r}', item)}" for key, item in value.items()]
        self.open.discard(id(value))
        return f"{kind}[{', '.join(parts)}]"

    def numbers(self, value: Any) -> str:
        try:
            if isinstance(value, torch.Tensor):
                data = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
                content, form = data.view(torch.uint8).numpy().tobytes(), f"{value.dtype} {list(value.shape)}"
            elif value.dtype.hasobject:
                return f"array {value.shape} {self.describe(np.asarray(value).ravel().tolist())}"
            else:
                content, form = np.ascontiguousarray(value).tobytes(), f"{value.dtype!r} {list(value.shape)}"
        except (RuntimeError, TypeError, NotImplementedError):  # sparse, quantised, on no device
            return self.unnamed(value)
        return f"{_path(type(value))} {form} {hashlib.sha256(content).hexdigest()}"

    def of_class(self, kind: type) -> str:
        if not _is_own(kind.__module__):
            return f"class {_path(kind)}"
        parts = [f"class {_path(kind)}", *(self.describe(base) for base in kind.__bases__)]
        for name, value in sorted(vars(kind).items()):
            special = name.startswith("__") and name.endswith("__")
            if name in _UNSEEN or (special and not callable(value)) or type(value).__name__ == "member_descriptor":
                continue
            if issubclass(kind, enum.Enum) and not isinstance(value, FunctionType):
                continue  # members count by their values
            parts.append(f"{name} = {self.inner(f'attribute {name} of {_path(kind)}', value)}")
        return "; ".join(parts)

    def function(self, function: FunctionType) -> str:
        if hasattr(function, "_torchdynamo_orig_callable"):
            return f"compiled {self.describe(function._torchdynamo_orig_callable)}"
        parts = [f"function {_path(function)}"]
        path = _path(function)
        if is_own(function):
            parts.append(self.code(function.__code__))
            parts.append(self.inner(f"a default of {path}", (function.__defaults__, function.__kwdefaults__)))
            parts += self.references(function, path)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not set yet
                continue
            parts.append(f"{name} = {self.inner(f'variable {name} of {path}', value)}")
        if vars(function):
            parts.append(self.inner(f"an attribute of {path}", vars(function)))
        return "; ".join(parts)

    def code(self, code: CodeType) -> str:
        """What is run, without names of files, line numbers and documentation."""
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0xFF)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        steps = []
        for step in dis.get_instructions(code):
            constant = step.opcode in dis.hasconst
            if constant and isinstance(step.argval, CodeType):  # never "again": constants may be shared or not
                operand = self.code(step.argval)
            else:
                operand = self.describe(step.argval) if constant else str(step.arg)
            steps.append(f"{step.opname} {operand}")
        table = getattr(code, "co_exceptiontable", b"")
        return f"code {shape} {names} {table.hex()} [{', '.join(steps)}]"

    def references(self, function: FunctionType, path: str) -> Iterator[str]:
        """The globals and the imported modules that a function's code names."""
        codes = list(_codes(function.__code__))
        names = sorted({name for code in codes for name in code.co_names})
        loaded = {
            str(step.argval)
            for code in codes
            for step in dis.get_instructions(code)
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        }
        for name in sorted(loaded & set(function.__globals__)):
            value = function.__globals__[name]
            self.where.append(f"{name}, which {path} uses,")
            text = self.module(value, names) if isinstance(value, ModuleType) else self.describe(value)
            self.where.pop()
            yield f"{name} = {text}"
        for name in sorted({name for code in codes for name in _imports(code)}):
            package = function.__globals__.get("__package__") or ""
            try:
                found = importlib.import_module(importlib.util.resolve_name(name, package))
            except (ImportError, ValueError):
                continue  # the code says itself what it does without it
            yield f"import {name} = {self.module(found, names)}"

    def module(self, module: ModuleType, names: Any) -> str:
        """A module: by its name; the user's own, by those of its contents that ``names`` name, else by its file."""
        name = module.__name__
        if not _is_own(name):
            return f"module {name}"
        if not names:
            try:
                return f"module {name} {hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()}"
            except OSError:
                return self.unnamed(module)
        mark = id(module)
        if mark in self.open:
            return f"module {name}"
        self.open.add(mark)
        parts = []
        for attribute in sorted(set(names) & set(vars(module))):
            value = vars(module)[attribute]
            self.where.append(f"{name}.{attribute}")
            text = self.module(value, names) if isinstance(value, ModuleType) else self.describe(value)
            self.where.pop()
            parts.append(f"{attribute} = {text}")
        self.open.discard(mark)
        return f"module {name} [{', '.join(parts)}]"

    def network(self, network: nn.Module) -> str:
        if hasattr(network, "_orig_mod"):
            return f"compiled {self.describe(network._orig_mod)}"
        parts = [f"weights {weights_hash(network)}"]
        torchs = vars(nn.Module())
        for name, module in network.named_modules():
            own = {key: value for key, value in vars(module).items() if key not in torchs}
            parts.append(f"{name}: {self.describe(type(module))} {self.inner(name or 'the network', own)}")
        return "; ".join(parts)

    def object(self, value: Any) -> str:
        """Any other object: its class, and what pickle would store of it."""
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            made = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except Exception:  # their own __reduce__ or __getstate__ may raise anything
            return self.unnamed(value)
        if isinstance(made, str):
            wrapped = getattr(value, "__wrapped__", None)
            around = "" if wrapped is None else f" around {self.describe(wrapped)}"
            return f"{getattr(value, '__module__', None) or 'builtins'}:{made}{around}"
        make, args, *rest = made
        state, items, pairs = (*rest, None, None, None)[:3]
        parts = [self.describe(type(value)), self.describe(make), self.describe(args)]
        name = f"the state of {_path(type(value))}"
        parts += [self.inner(name, part) for part in (state, list(items or ()), list(pairs or ()))]
        return f"object({'; '.join(parts)})"


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _codes(value)


def _imports(code: CodeType) -> Iterator[str]:
    """The modules that it imports, relative ones with their dots."""
    level = 0
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            yield "." * level + str(step.argval)
        elif step.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and isinstance(step.argval, int):
            level = step.argval  # loaded shortly before the module's name
