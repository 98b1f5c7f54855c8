"""Where a training stands: what a checkpoint holds beside weights, and what each process has for itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from kdstream.errors import UserError
from kdstream.training.sums import Sums


@dataclass
class State:
    """Where a training stands.

    Attributes:
        stage: number of the phase.
        stage_epoch: epoch of the phase, counted from 0.
        step: steps of the optimizer since the start of the training.
        epoch: finished epochs, all phases together.
        seconds: spent in epochs.
        images: seen in training.
        best: ``top1``, ``epoch``, ``network`` and ``tops`` of the best epoch of the main phase; empty before it.
        last_row: the metrics of the last epoch, and what ``result.json`` takes from them.
        stalled: with early stopping: the ``top1`` to exceed, and the number of evaluations since, ``count``.
    """

    stage: int = 0
    stage_epoch: int = 0
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    images: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    last_row: dict[str, Any] = field(default_factory=dict)
    stalled: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint, under the names that it has always had there."""
        values = {name: value for name, value in vars(self).items() if name not in ("step", "epoch")}
        return {**values, "global_step": self.step, "global_epoch": self.epoch}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> State:
        """From a checkpoint; what else it holds is left alone."""
        names = {"step": "global_step", "epoch": "global_epoch"}
        values = {"stalled": {}, **state}  # which earlier versions do not have
        return cls(**{name: values[names.get(name, name)] for name in cls.__dataclass_fields__})


def of_every_process(accelerator: Accelerator, sums: Sums) -> dict[str, Any]:
    """What each process has for itself, its random state and its sums of the epoch; all must call it together.

    Returns:
        For the checkpoint: the first process's, and "others" in the order of the processes.
    """
    device = accelerator.device
    parts = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    counted = sums.state_dict()
    parts += counted.values()
    if accelerator.num_processes == 1:
        columns = [[part] for part in parts]
    else:
        columns = [list(accelerator.gather(part[None].to(device)).cpu().unbind()) for part in parts]
    first, *others = (
        {
            "random": {"cpu": cpu.clone(), "cuda": [one.clone() for one in rest[: -len(counted)]]},
            "sums": {name: one.clone() for name, one in zip(counted, rest[-len(counted) :], strict=True)},
        }
        for cpu, *rest in zip(*columns, strict=True)
    )
    return {**first, "others": others}


def restore_process(accelerator: Accelerator, sums: Sums, saved: Mapping[str, Any]) -> str | None:
    """Give this process what it had for itself when a checkpoint was written.

    Returns:
        What a user should know of it; None: nothing.
    """
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    parts = [{"random": saved["random"], "sums": saved["sums"]}, *saved.get("others", [])]
    if saved["stream"]["step"]:  # inside of an epoch
        left = parts[world:] if rank == 0 else []  # of processes that there are no more
        for part in [*parts[rank : rank + 1], *left]:
            sums.add_state(part["sums"])
    if rank < len(parts):
        random = parts[rank]["random"]
        torch.set_rng_state(random["cpu"])
        if random["cuda"] and device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"][0], device)
    else:
        torch.manual_seed(int(saved["random"]["cpu"][:7].sum()) + rank)
    if len(parts) == world:
        return None
    return (
        f"{world} process(es) continue from the state of {len(parts)}: random numbers will differ from those of a "
        "training that never stopped"
    )


def for_what_is_trained(
    state: dict[str, Any], groups: Sequence[Sequence[tuple[str, Tensor]]], reached: Collection[str], path: Path
) -> dict[str, Any]:
    """An optimizer's state from a checkpoint; earlier versions left out what their probe had not reached.

    Args:
        state: of the optimizer.
        groups: what it trains now, see :func:`kdstream.training.optimizer.groups_of`.
        reached: names of the parameters that the probe reaches.
        path: of the checkpoint, for messages.

    Raises:
        UserError: the state is of other parameters.
    """
    sizes = [len(group) for group in groups if group]
    held = [len(group["params"]) for group in state["param_groups"]]
    trained = [one for group in groups for one in group]
    places = list(range(len(trained)))
    if len(sizes) == 1 and sum(held) < len(trained):
        places = [place for place in places if trained[place][0] in reached]
    moved = {places[number]: one for number, one in state["state"].items() if number < len(places)}
    momenta: list[tuple[Tensor | None, Tensor]] = [
        (one.get(name), trained[place][1]) for place, one in moved.items() for name in ("momentum_buffer", "exp_avg")
    ]
    fits = len(held) == len(sizes) and (held == sizes or sum(held) == len(places))
    if not fits or any(a is not None and a.shape != b.shape for a, b in momenta):
        raise UserError(
            f"{path} trains {sum(held)} tensors, this recipe {len(trained)}: an earlier version left out "
            "what its first images did not reach; --fresh starts anew"
        )
    numbers = iter(range(len(trained)))
    again = [
        {**group, "params": list(islice(numbers, size))}
        for group, size in zip(state["param_groups"], sizes, strict=True)
    ]
    return {"state": moved, "param_groups": again}
