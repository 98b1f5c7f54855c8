"""Coding plans for a chain: what each of its ``coded`` stages asks for, the view that is chosen on, who makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdstream.batch import Batch
from kdstream.data.faults import Faults
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.hashing import Unnamed, name_of, network_name
from kdstream.stream.augment import central
from kdstream.stream.cache import Decoded, loader_of
from kdstream.stream.coded import hkl
from kdstream.stream.coding_plan import PlanKey, load_plan, make_plan
from kdstream.stream.decode import on_host
from kdstream.stream.kept_rows import CHUNK, alone
from kdstream.stream.loader import Reader, on_device
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain, Stage
from kdstream.stream.teacher import teacher


def with_plans(
    chain: Chain,
    known: Mapping[str, Any],
    dataset: ShardSet,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
    faults: Faults | None = None,
    kept: Decoded | None = None,
    after_chunk: Callable[[], None] = lambda: None,
) -> Chain:
    """The chain with what the stream knows and with the coding plans that its ``coded`` stages ask for.

    Where torch.distributed is up, all processes must call it together: they share the making of a plan.

    Args:
        chain: as the user wrote it.
        known: what its stages may ask for; a plan needs ``teacher``, ``teacher_mean`` and ``teacher_std``.
        dataset: the split.
        faults: where samples are listed that others stand in for.
        rank, world, workers, device: as for a :class:`~kdstream.stream.stream.Stream`.
        kept: the split in memory, if it is.
        after_chunk: called by all processes after each has made a chunk of a plan; what it raises ends the making.

    Raises:
        UserError: a plan that is not there, does not fit, or cannot be made or kept.
    """
    stages = list(chain.bind(known).stages)
    for position, stage in enumerate(stages):
        asked = stage.settings["plan"] if stage.role == "coded" else "off"
        if isinstance(asked, torch.Tensor) or asked == "off":
            continue
        key = plan_key(chain, position, known, dataset)
        if asked != "auto":
            plan = load_plan(Path(asked), key, len(dataset))
        else:
            Chain(tuple(stages)).split()  # a mistake in the order is told now, not after a pass over all images
            # Seed 0: what draws at random without saying so does not make a plan another one for every seed.
            layout = Plan(len(dataset), CHUNK, 0, shuffle=False)
            view = (unaugmented(stages, position) | teacher).bind(known)
            choose = partial(passed, view, dataset, layout, kept, workers, torch.device(device), faults)
            share = shares(world)
            place = (0, 1, share) if share is alone else (rank, world, share)
            plan = make_plan(dataset, key, layout, choose, *place, after_chunk=after_chunk)
        stages[position] = replace(stage, settings={**stage.settings, "plan": plan})
    return Chain(tuple(stages))


def unaugmented(stages: Sequence[Stage], position: int) -> Chain:
    """The view for which a plan is made: the stages up to the teacher, without what is drawn at random.

    Random boxes become the central one of their size, other random stages go, the user's too, ``coded`` at ``position``
    selects, and images are decoded on the host; the rest stays.
    """
    view: list[Stage] = []
    for place, stage in enumerate(stages):
        if stage.role in ("teacher", "normalize"):
            break
        if place == position:
            view.append(replace(stage, settings={**stage.settings, "plan": "off"}))
        elif not stage.random:
            view.append(on_host(stage))
        elif stage.role == "box":
            view.append(central(stage))
    return Chain(tuple(view))


def plan_key(chain: Chain, position: int, known: Mapping[str, Any], dataset: ShardSet) -> PlanKey:
    """What the plan for the ``coded`` stage at this position of the chain depends on.

    Raises:
        UserError: no teacher is known; a selector or a stage that has no lasting name.
    """
    if "teacher" not in known:
        raise UserError("coded: a plan needs the teacher, and this stream does not know it: give it one")
    name = teacher_name(known)
    # The stages as they are named: what the stream fills in counts by its own name.
    named = chain.bind({**known, "teacher": name, "dataset": dataset.fingerprint}).stages
    settings = named[position].settings
    try:
        selector = selector_name(settings["selector"])
        view = view_name(unaugmented(named, position))
    except Unnamed as error:
        raise UserError(
            f"coded: plan={settings['plan']} is not possible, since a plan is kept by the name of all that it depends "
            f"on: {error}; use plan=off, or give that object a method named_by() that returns plain values"
        ) from None
    return PlanKey(
        data=dataset.fingerprint,
        teacher=name,
        selector=selector,
        delta=settings["delta"],
        subsampling=settings["subsampling"],
        view=f"{view}, mean {list(known['teacher_mean'])}, std {list(known['teacher_std'])}, "
        f"precision {known.get('precision', 'no')}",
    )


def teacher_name(known: Mapping[str, Any]) -> str:
    """How kept work calls the teacher that a stream knows."""
    network = known["teacher"]
    return known.get("teacher_hash") or network_name(getattr(network, "module", network))


def selector_name(selector: Any) -> str:
    """How a plan calls a selector: ``hkl``, or the path and the digest of another function or object.

    Raises:
        kdstream.hashing.Unnamed: it has no lasting name.
    """
    return "hkl" if selector is hkl else name_of(selector)


def view_name(view: Chain) -> str:
    """How kept work calls the view that it was made for; the selector has a name of its own."""
    named = [
        replace(stage, settings={key: value for key, value in stage.settings.items() if key != "selector"})
        if stage.role == "coded"
        else stage
        for stage in view.stages
    ]
    return str(Chain(tuple(named)))


def passed(
    view: Chain,
    dataset: ShardSet,
    layout: Plan,
    kept: Decoded | None,
    workers: int,
    device: torch.device,
    faults: Faults | None,
    chunks: Sequence[int],
) -> Iterator[Batch]:
    """These chunks of the data set, each a batch that has gone through a view's stages."""
    host, rest = view.split()
    loader = loader_of(Reader(dataset, layout, host, 0, 1, faults, numbered=True), kept, workers, device)
    return on_device(loader.batches(0, chunks), rest, device)


def shares(world: int) -> Callable[[Any], list[Any]]:
    """What gives every one of ``world`` processes the values of all, by rank; for one alone, and where
    torch.distributed is not up, :func:`~kdstream.stream.coding_plan.alone`."""
    joined = world > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()
    return partial(_share, world) if joined else alone


def _share(world: int, value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    values = [None] * world
    try:
        torch.distributed.all_gather_object(values, value)
    except RuntimeError as error:
        raise UserError("another process has ended, whose message says why; the same command continues") from error
    return values
