"""A stage is a callable from an iterator to an iterator: decorators that give it settings, and chains of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, overload

from kdstream.errors import UserError
from kdstream.hashing import digest, is_own


@dataclass(frozen=True)
class Given:
    """Default of a stage's parameter that the stream fills in when the user does not; see :data:`given`."""

    name: str | None = None

    def __call__(self, name: str) -> Given:
        """The same under another name: ``mean=given("teacher_mean")``."""
        return Given(name)


given: Any = Given()
"""Default value of a stage parameter that the stream knows: ``def mine(batches, seed=given): ...``. The parameter's
name says what is wanted: ``seed``, ``dataset`` (the open shards), ``num_classes``, ``mean``, ``std`` and whatever else
was handed to the :class:`~kdstream.stream.stream.Stream` as ``given``."""

Function = Callable[..., Iterator[Any]]
"""What a stage is made of: takes an iterator first, then the stage's settings; a generator function, usually."""
Role = Literal["box", "coded", "mix", "teacher", "normalize"]
"""What kdstream's own stages are recognised by, whatever a stage of the user's is called; a "box" cuts every image to
its setting ``size``, both sides."""


@dataclass
class Stage:
    """A function over an iterator, with its settings.

    Made by :func:`stage` and :func:`batch_stage`. Calling it with an iterator runs it; calling it with anything else
    gives a copy with those settings; ``a | b`` chains.

    Attributes:
        function: see :data:`Function`.
        scope: "sample" = over samples, in the reader processes; "batch" = over batches, on the accelerator.
        args, settings: bound arguments.
        sample_form: for a batch stage that can also run on samples, where a later stage of the chain needs the
            result on the host: takes the same settings, returns (sample stage, batch stage that completes it).
        role: see :data:`Role`; None for a stage of the user's, and for those of ours that nobody looks for.
        random: what it does to a sample is drawn at random, which a coding plan leaves out.
    """

    function: Function
    scope: Literal["sample", "batch"]
    args: tuple[Any, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sample_form: Callable[..., tuple[Stage, Stage]] | None = None
    role: Role | None = None
    random: bool = False

    def __post_init__(self) -> None:
        self.__doc__ = self.function.__doc__

    def __reduce__(self) -> tuple[Any, ...]:
        # A decorated function's name leads to the stage, so pickle cannot find it: spawned readers look it up there.
        function = self.function
        name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
        rest = (self.scope, self.args, dict(self.settings), self.sample_form, self.role, self.random)
        return (_restore, (module, name, *rest)) if name.isidentifier() else (Stage, (function, *rest))

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        if args and isinstance(args[0], Iterator):
            return self._run(*args, **settings)
        configured = replace(self, args=self.args + args, settings={**self.settings, **settings})
        try:
            inspect.signature(self.function).bind(None, *configured.args, **configured.settings)
        except TypeError as error:
            known = ", ".join(list(inspect.signature(self.function).parameters)[1:]) or "none"
            raise UserError(f"stage {self.name}: {error}; its settings: {known}") from None
        return configured

    def _run(self, iterator: Iterator[Any], *args: Any, **settings: Any) -> Iterator[Any]:
        made = self.function(iterator, *self.args, *args, **{**self.settings, **settings})
        if not isinstance(made, Iterable):
            raise UserError(
                f"stage {self.name} returns {'nothing' if made is None else f'a {type(made).__name__}'}, and no "
                "iterator: a stage is a generator; it yields what it passes on"
            )
        return iter(made)

    def _bound(self, defaults: bool) -> dict[str, Any]:
        """All settings by name, whether they were given so or by position."""
        try:
            signature = inspect.signature(self.function)
            bound = signature.bind_partial(None, *self.args, **self.settings)
        except (TypeError, ValueError):  # some functions written in C do not tell
            return {"args": self.args, **dict(sorted(self.settings.items()))}
        if defaults:
            bound.apply_defaults()
        named: dict[str, Any] = {}
        for position, (key, value) in enumerate(bound.arguments.items()):
            kind = signature.parameters[key].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                named |= dict(sorted(value.items()))
            elif position:
                named[key] = value
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                named[key] = value[1:]  # without the iterator
        return named

    def setting(self, name: str) -> Any:
        """The value of a setting, whether it was given by name, by position or not at all."""
        return self._bound(defaults=True)[name]

    def named_by(self) -> Any:
        """What decides what the stage does, for :func:`kdstream.hashing.digest`."""
        named = (self.function, self.scope, self._bound(defaults=True), self.sample_form)
        # Whether coding plans leave it out decides a result too, but is settled for our own, which keep their names.
        return (*named, "random") if self.random and is_own(self.function) else named

    def __str__(self) -> str:
        """The stage with its settings, as text that is another one wherever they are.

        Raises:
            kdstream.hashing.Unnamed: settings, or the user's own code, that have no lasting name.
        """
        settings = self._bound(defaults=False)
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items() if _is_plain(value))
        if not is_own(self.function) and all(map(_is_plain, settings.values())):
            return f"{self.name}({shown})"
        return f"{getattr(self.function, '__module__', '')}:{self.name}({shown})#{digest(self)[:12]}"

    def bind(self, known: Mapping[str, Any]) -> Stage:
        """The stage with every parameter whose default is :data:`given` filled in.

        Raises:
            UserError: nothing of that name is known.
        """
        signature = inspect.signature(self.function)
        bound = signature.bind_partial(None, *self.args, **self.settings).arguments
        filled = dict(self.settings)
        for parameter in signature.parameters.values():
            if not isinstance(parameter.default, Given) or parameter.name in bound:
                continue
            wanted = parameter.default.name or parameter.name
            if wanted not in known:
                raise UserError(
                    f"stage {self.name} needs {parameter.name!r}, which this stream does not know: "
                    f"write {self.name}({parameter.name}=...) or give the stream {wanted}"
                )
            filled[parameter.name] = known[wanted]
        return replace(self, settings=filled)

    def __or__(self, other: Any) -> Chain:
        return Chain((self,)) | other


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return type(value) in (str, int, float, bool)


def _restore(module: str, name: str, *rest: Any) -> Stage:
    found = getattr(importlib.import_module(module), name)
    return Stage(found.function if isinstance(found, Stage) else found, *rest)


@overload
def stage(function: Function, /, *, random: bool = False, role: Role | None = None) -> Stage: ...
@overload
def stage(*, random: bool = False, role: Role | None = None) -> Callable[[Function], Stage]: ...
def stage(
    function: Function | None = None, /, *, random: bool = False, role: Role | None = None
) -> Stage | Callable[[Function], Stage]:
    """Decorator, ``@stage`` or ``@stage(random=True)``: a generator over samples (dicts) becomes a stage that runs on
    the host, in the reader processes.

    It sees the samples of one batch at a time, so that the result does not depend on the number of readers: it may
    change samples, drop them or add some, but knows nothing of other batches. Random draws come from
    :func:`kdstream.rng.uniform` and the sample's ``rng_key``.

    Args:
        function: takes an iterator of samples first, then its settings.
        random: what it does to a sample is drawn at random: a coding plan, made once for views without such, leaves
            it out.
        role: of kdstream's own stages, see :data:`Role`.
    """
    made = partial(_made, "sample", random, role)
    return made if function is None else made(function)


@overload
def batch_stage(function: Function, /, *, random: bool = False, role: Role | None = None) -> Stage: ...
@overload
def batch_stage(*, random: bool = False, role: Role | None = None) -> Callable[[Function], Stage]: ...
def batch_stage(
    function: Function | None = None, /, *, random: bool = False, role: Role | None = None
) -> Stage | Callable[[Function], Stage]:
    """Decorator, ``@batch_stage`` or ``@batch_stage(random=True)``: a generator over
    :class:`~kdstream.batch.Batch` becomes a stage that runs on the accelerator.

    It must yield one batch for each that it takes. Random draws come from
    :func:`kdstream.rng.uniform` and the batch's ``rng_key``.

    Args:
        function: takes an iterator of batches first, then its settings.
        random, role: see :func:`stage`.
    """
    made = partial(_made, "batch", random, role)
    return made if function is None else made(function)


def _made(scope: Literal["sample", "batch"], random: bool, role: Role | None, function: Function) -> Stage:
    if not callable(function):
        raise UserError(f"{function!r} is no function to make a stage of; settings go by name: @stage(random=True)")
    return Stage(function, scope, role=role, random=random)


def as_stages(thing: Any) -> tuple[Stage, ...]:
    """A stage, a chain, or any callable from iterator to iterator (webdataset's filters) as stages."""
    if isinstance(thing, Chain):
        return thing.stages
    if isinstance(thing, Stage):
        return (thing,)
    if callable(thing):
        return (Stage(thing, "sample"),)
    raise UserError(f"{thing!r} is not a stage: a stage is a callable from an iterator to an iterator")


@dataclass(frozen=True)
class Chain:
    """Stages in order."""

    stages: tuple[Stage, ...] = ()

    def __or__(self, other: Any) -> Chain:
        return Chain(self.stages + as_stages(other))

    def __str__(self) -> str:
        """What the chain does, as text; see :meth:`Stage.__str__`."""
        return " | ".join(map(str, self.stages))

    def __call__(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for step in self.stages:
            iterator = step(iterator)
        return iterator

    @property
    def roles(self) -> list[Role | None]:
        """The role of every stage, in order."""
        return [step.role for step in self.stages]

    def bind(self, known: Mapping[str, Any]) -> Chain:
        """Every stage with what the stream knows; see :meth:`Stage.bind`."""
        return Chain(tuple(step.bind(known) for step in self.stages))

    def split(self) -> tuple[Chain, Chain]:
        """The part for the reader processes and the part for the accelerator.

        A batch stage that stands before a sample stage runs on samples if it can (``coded`` before
        ``augment(inception)``).

        Raises:
            UserError: a batch stage that cannot, before a sample stage.
        """
        last_host = max((i for i, step in enumerate(self.stages) if step.scope == "sample"), default=-1)
        host: list[Stage] = []
        device: list[Stage] = []
        for position, step in enumerate(self.stages):
            if position > last_host:
                device.append(step)
            elif step.scope == "sample":
                host.append(step)
            elif step.sample_form is not None:
                on_sample, completion = step.sample_form(*step.args, **step.settings)
                host.append(on_sample)
                device.append(completion)
            else:
                late = self.stages[last_host].name
                raise UserError(
                    f"stage {late} works on samples, in the reader processes, but stands after {step.name}, which "
                    f"works on batches: put {late} before {step.name}"
                )
        return Chain(tuple(host)), Chain(tuple(device))
