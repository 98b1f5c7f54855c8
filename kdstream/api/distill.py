"""distill: data, a teacher, a student and a loss, in one call; what ``kdstream train`` does with a recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from kdstream.addresses import is_url, public
from kdstream.api.result import Result
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models import from_hf
from kdstream.models.given import given, is_given
from kdstream.recipe import Recipe, make_recipe, model_of
from kdstream.recipe_file import find_recipe, lay, read_recipe, with_bases
from kdstream.training.accelerator import PRECISION, make_accelerator
from kdstream.training.job import Job
from kdstream.training.stop import Stopped


def distill(
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    student: str | nn.Module | Mapping[str, Any] | os.PathLike[str] | None = None,
    teacher: str | nn.Module | Mapping[str, Any] | os.PathLike[str] | Sequence[Any] | None = None,
    loss: str | Mapping[str, Any] | None = None,
    recipe: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    cpu: bool = False,
    show: bool = True,
    **settings: Any,
) -> Result:
    """Train a student.

    What was finished before is not trained again: the same call gives its result. Ctrl-C (in a notebook: "interrupt")
    saves the training, and the same call goes on with it.

    Args:
        data: a folder of shards, a source (``imagefolder:/data/birds``, ``digits``), or a recipe's ``data``.
        student: the network to train: a name (``resnet18``), a recipe's ``student``, or any module, images [N,3,H,W] ->
            logits [N,C], of which a copy is trained from the weights that it has.
        teacher: a name, of a network that is trained on the labels first; weights (a file, the folder of a run, an
            earlier result, ``published:wrn_40_2@cifar100``); a recipe's ``teacher``; or a trained module, which answers
            for the data's classes in their order and takes images standardised as the data says, unless
            ``teacher={"model": module, "mean": ..., "std": ...}`` says otherwise. A list: several, which answer
            together by the mean of their probabilities.
        loss: a recipe's: ``"ce"``, ``{"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}}``. Default: cross-entropy and
            KD, half each, where there is a teacher.
        recipe: a recipe's file or name, which all this is laid over.
        out: folder for the results; default ``runs/NAME``, with a name of data, student, loss, and a mark of all
            settings.
        fresh: forget what an earlier call left in that folder.
        cpu: use no GPU.
        show: print what happens.
        settings: everything else that a recipe has: ``epochs=60``, ``stream="decode | augment(inception, 224)"``,
            ``optimizer={"lr": 0.05}``, ``seed=1``, ...; see ``kdstream explain NAME``.

    A module needs no dotted path. Its export holds the weights and the name of its class, without which it cannot be
    rebuilt: ``kdstream.load_student(folder, module=Net())``. What is kept for a teacher (coding plans) is found again
    by its weights and its code.

    Raises:
        UserError: something in the input is wrong, in one line.
        KeyboardInterrupt: the training was stopped by a signal, and is saved.
    """
    with contextlib.ExitStack() as stack:
        laid = {**settings, **({} if loss is None else {"loss": loss})}
        laid |= {} if data is None else {"data": dict(data) if isinstance(data, Mapping) else os.fspath(data)}
        modules: dict[str, nn.Module] = {}
        for role, network in (("student", student), ("teacher", teacher)):
            if network is not None:
                if role == "teacher" and isinstance(network, list | tuple):
                    laid[role] = [_network(one, role, stack, modules) for one in network]
                else:
                    laid[role] = _network(network, role, stack, modules)
        wanted = _recipe(laid, recipe, out)
        accelerator = _accelerator(cpu, wanted.precision)
        with Display(enabled=show and accelerator.is_main_process) as display:
            job = Job(wanted, accelerator, display, fresh)
            try:
                result = job.run()[0]
            except Stopped as stopped:
                raise KeyboardInterrupt(f"{stopped}; the same call continues") from None
        return Result(wanted.name, wanted.folder(), result, modules.get("student"))


def _network(network: Any, role: str, stack: contextlib.ExitStack, modules: dict[str, nn.Module]) -> dict[str, Any]:
    """A student or teacher as a recipe's group; modules get a name for as long as ``stack`` is open."""
    if isinstance(network, nn.Module):
        group: dict[str, Any] = {"model": network}
    elif isinstance(network, Mapping):
        group = dict(network)
    elif isinstance(network, str) and not Path(network).is_dir():
        group = dict(model_of(network))
        if role == "teacher" and "weights" not in group and not network.startswith(from_hf.PREFIX):
            group["train"] = {}
    elif isinstance(network, str | os.PathLike):
        group = {"weights": os.fspath(network)}
    else:
        raise UserError(f"{role} is a {type(network).__name__}: give a name, weights, or a torch.nn.Module")
    if isinstance(module := group.get("model"), nn.Module):
        modules[role] = module
        group["model"] = stack.enter_context(given(module))
    return group


def _recipe(settings: Mapping[str, Any], base: str | os.PathLike[str] | None, out: Any) -> Recipe:
    """The recipe of a call.

    Raises:
        UserError: settings that no recipe has, or that ask for several students.
    """
    laid, named = dict(settings), "distill"
    if base is not None:
        path = find_recipe(os.fspath(base))
        laid, named = lay(with_bases(read_recipe(path), path), laid), path.name
        laid.pop("coded", None)
    for key in ("runs", "seeds"):
        if laid.get(key) not in (None, {}):
            if key in settings or base is None:
                raise UserError(f"distill trains one student: leave {key} out, and call it once for each")
            del laid[key]  # of a recipe for several students: this call says which one it wants
    for key in ("data", "student"):
        if laid.get(key) is None:
            raise UserError(f"distill: {key} is missing")
    if "loss" not in laid and laid.get("teacher") is not None:
        laid["loss"] = {"ce": 0.5, "kd": 0.5}
    name = laid.pop("name", None)
    made = make_recipe({**laid, "name": name or "distill"}, named)
    if name is None:
        made.name = _name(made)
    if out is not None:
        made.out = os.fspath(out)
    return made


def _name(recipe: Recipe) -> str:
    """Data, student and loss, and a mark of all that decides the result."""
    place = recipe.data.path
    data = Path(public(place)).stem if is_url(place) or ":" not in place else place.partition(":")[0]
    student = str(recipe.student.model or Path(str(recipe.student.weights)).stem)
    student = student.partition("#")[0].rpartition(".")[2] if is_given(student) else student
    mark = hashlib.sha256(json.dumps([recipe.fingerprint(), recipe.data.path]).encode()).hexdigest()[:6]
    return re.sub(r"[^\w.+-]+", "_", f"{data}-{student}-{'+'.join(recipe.loss)}-{mark}")


def _accelerator(cpu: bool, precision: str | None) -> Accelerator:
    """This process's accelerator; an earlier call's, of another precision or device, is no obstacle."""
    known: Any = AcceleratorState._shared_state  # as Accelerate's own tests begin anew; it offers nothing else
    if known and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        wanted = precision or os.environ.get(PRECISION, "no")
        elsewhere = (known["device"].type == "cpu") != (cpu or not torch.accelerator.is_available())
        if elsewhere or known["_mixed_precision"] != wanted:
            AcceleratorState._reset_state(reset_partial_state=elsewhere)
    return make_accelerator(cpu, precision)
