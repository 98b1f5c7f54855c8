"""Students to predict with: from their export, or from the checkpoint of a training that goes on or was interrupted."""

from __future__ import annotations

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal

from torch import nn

from kdstream.analysis.predict import predict
from kdstream.errors import UserError
from kdstream.models import export
from kdstream.training.deployed import read_deployed
from kdstream.training.folder import LAST

STUDENT = "student.json"


def load_student(
    path: str | PathLike[str],
    trust_code: bool = False,
    *,
    module: nn.Module | None = None,
    checkpoint: Literal["last", "best"] | None = None,
) -> nn.Module:
    """Rebuild a saved student: on the CPU, in eval mode, images [N,3,H,W] -> logits [N,C].

    The network gets the attribute ``about`` (the content of ``student.json``), and from it ``classes``, ``mean``,
    ``std`` and ``image_size``, and the method ``predict`` (:func:`kdstream.predict`), save those that the network has
    for itself (a vision transformer's ``image_size``).

    Args:
        path: the folder, ``student.json`` or ``student.safetensors``.
        trust_code: allow a network that is not on the list of :mod:`kdstream.models.specs`: its factory is imported
            and so executed.
        module: the network that the weights are for, where it was given to :func:`kdstream.distill` as an object; it
            gets them.
        checkpoint: the weights so far of a training in the folder ``path``: of its "last" checkpoint, or of its "best"
            epoch. None = the finished student.

    Raises:
        UserError: files missing, damaged or not of one export; a network or arguments that are not on the list without
            ``trust_code``; a ``module`` that the weights do not fit.
    """
    if checkpoint is None:
        _need_export(Path(path))
        network = export.load_student(path, trust_code, module)
    else:
        network = read_deployed(path, checkpoint, trust_code, module)
    return predicting(network)


def _need_export(folder: Path) -> None:
    """That a folder of trainings holds a finished student.

    Raises:
        UserError: it holds several, or one whose training is not finished.
    """
    if not folder.is_dir() or (folder / STUDENT).exists():
        return
    if (folder / LAST).exists():
        raise UserError(
            f"{folder}: the training there is not finished: repeat its command, or take its weights so far "
            "(--from last; in Python, load_student(..., checkpoint='last'))"
        )
    if found := sorted(str(place.parent) for place in folder.glob(f"*/{STUDENT}")):
        raise UserError(f"{folder} holds several students: name one, as {', '.join(found[:5])}")


def predicting(network: nn.Module) -> nn.Module:
    """Give a network the method ``predict``, unless it has one. Returns the network."""
    if not hasattr(network, "predict"):
        # A partial, which is copied and pickled with the network that it is of.
        vars(network)["predict"] = partial(predict, network)
    return network
