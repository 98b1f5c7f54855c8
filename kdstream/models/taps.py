"""Taps: intermediate features of any network, taken by module path and without editing the network.

A tap is a name (``stem``, ``block1``, ``block1.pre``, ``map`` for the one whose average the classifier reads,
``penultimate`` for what it reads, ...) for a module path: ``layer1.2`` is the
output of that module, ``layer1.2.relu2:input`` its (first) input. ``block*`` and ``block.last`` stand for the blocks
that a network has (:mod:`kdstream.tap_names`).
"""

from __future__ import annotations

import difflib
import sys
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdstream.batch import Outputs, logits_of
from kdstream.errors import UserError
from kdstream.notes import architecture, classifier_path_of, taps_of
from kdstream.tap_names import spelled_out

_INPUT = ":input"


class Tapped(nn.Module):
    """A network that answers with :class:`kdstream.batch.Outputs`: logits and the requested features only.

    The plain network stays usable, at :attr:`module`: its forward hooks keep something only during a call of this
    wrapper, nothing is kept afterwards, and they go when the wrapper goes. (They are set once and not at every call
    because torch.compile wants it so.) One thread at a time. ``torch.compile(Tapped(net))`` and
    ``Tapped(torch.compile(net))`` give the same; the second compiles anew what was compiled before.

    Where a module runs several times in one pass, its last call counts. ``penultimate`` is flattened to [N,D]; all
    other features come in the shape and dtype that the network gives them (under autocast: the autocast dtype).
    A network without an attribute ``inplace = False`` may change its tensors in place (torchvision's ReLUs and sums
    do), so its tapped values are copied as soon as they exist.

    Args:
        module: the network, images -> logits [N,C].
        taps: names of ``module.taps``, groups of them among these, or {any name: module path}.

    Raises:
        UserError: a tap or module path that the network does not have; the message lists or proposes the right ones.
    """

    module: nn.Module

    def __init__(self, module: nn.Module, taps: Iterable[str] | Mapping[str, str] = ()):
        super().__init__()
        self.module = module
        self._paths = _paths(module, taps)
        self._sink = _Sink(copies=getattr(module, "inplace", True))
        handles = [_listen(module, name, path, self._sink) for name, path in self._paths.items()]
        weakref.finalize(self, _remove, handles).atexit = False
        if handles and _is_compiled(module):
            # Compiled code would not notice hooks that are set after its first call.
            sys.modules["torch._dynamo"].reset()

    @property
    def paths(self) -> dict[str, str]:
        """Tap name -> module path, of the requested taps."""
        return dict(self._paths)

    @property
    def classifier(self) -> nn.Linear:
        """The network's last linear layer.

        Raises:
            UserError: the network has none.
        """
        found = hasattr(self.module, "classifier_path")  # None where the network has none, or several
        path = classifier_path_of(self.module) if found else find_classifier(self.module)
        if path is None:
            raise UserError(f"{architecture(self.module)} has no linear classifier")
        layer: Any = self.module.get_submodule(path)  # whatever the network itself calls so
        return layer

    def forward(self, images: Tensor) -> Outputs:
        """Images [N,3,H,W] -> logits [N,C] and features {tap: [N,...]}."""
        found: dict[str, Any] = {}
        self._sink.found = found
        try:
            answer = self.module(images)
        finally:
            self._sink.found = None
        return Outputs(_logits(answer, self.module), {name: self._feature(name, found) for name in self._paths})

    def _feature(self, name: str, found: dict[str, Any]) -> Tensor:
        path = self._paths[name]
        if name not in found:
            raise UserError(
                f"tap {name!r}: the network's forward pass does not call the module at {path!r} (or it was replaced "
                "after the tap was set)"
            )
        value = found[name]
        if not isinstance(value, Tensor):
            raise UserError(f"tap {name!r}: {path!r} gives {type(value).__name__}, not a tensor")
        return value.flatten(1) if name == "penultimate" else value


class _Sink:
    """Where the hooks of one wrapper put what they see; ``found`` is None outside of its calls."""

    def __init__(self, copies: bool):
        self.copies = copies
        self.found: dict[str, Any] | None = None

    def put(self, name: str, value: Any) -> None:
        if self.found is not None:
            self.found[name] = value.clone() if self.copies and isinstance(value, Tensor) else value


# Functions of the module, bound by ``partial``: so networks with hooks can be copied and pickled, sinks and all.
def _keep_output(sink: _Sink, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
    sink.put(name, output)


def _keep_input(sink: _Sink, name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    sink.put(name, args[0] if args else next(iter(kwargs.values()), None))


def _listen(module: nn.Module, name: str, path: str, sink: _Sink) -> RemovableHandle:
    target = module.get_submodule(path.removesuffix(_INPUT))
    if path.endswith(_INPUT):
        return target.register_forward_pre_hook(partial(_keep_input, sink, name), with_kwargs=True)
    return target.register_forward_hook(partial(_keep_output, sink, name))


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile, which imports its compiler when it is first used, was used on it or on a part of it."""
    if "torch._dynamo" not in sys.modules:
        return False
    wrapper = sys.modules["torch._dynamo"].OptimizedModule
    return any(
        isinstance(part, wrapper) or getattr(part, "_compiled_call_impl", None) is not None for part in module.modules()
    )


def find_classifier(module: nn.Module, num_classes: int | None = None) -> str | None:
    """Path of the last linear layer, of those with ``num_classes`` outputs if there are any; None: no linear layer."""
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    fitting = [name for name, layer in linear.items() if layer.out_features == num_classes]
    paths = fitting or list(linear)
    return paths[-1] if paths else None


def _paths(module: nn.Module, taps: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(taps, Mapping):
        paths = dict(taps)
    else:
        known = taps_of(module)
        paths = {}
        asked = [taps] if isinstance(taps, str) else taps
        for name in (tap for group in asked for tap in spelled_out(group, known)):
            if name not in known:
                raise UserError(
                    f"unknown tap {name!r}: taps of {architecture(module)} are {', '.join(known) or 'none'}"
                )
            paths[name] = known[name]
    for name, path in paths.items():
        _check(module, name, path.removesuffix(_INPUT))
    return paths


def _check(module: nn.Module, name: str, path: str) -> None:
    try:
        module.get_submodule(path)
    except AttributeError:
        close = difflib.get_close_matches(
            path, [known for known, _ in module.named_modules() if known], n=1, cutoff=0.5
        )
        top = ", ".join(child for child, _ in module.named_children()) or "none"
        proposal = f"did you mean {close[0]!r}?" if close else f"its top modules are {top}"
        raise UserError(f"tap {name!r}: {architecture(module)} has no module {path!r}; {proposal}") from None


def _logits(answer: Any, module: nn.Module) -> Tensor:
    logits = logits_of(answer)
    if not isinstance(logits, Tensor):
        raise UserError(f"{architecture(module)} answers with {type(answer).__name__}, not with a tensor of logits")
    return logits
