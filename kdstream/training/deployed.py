"""The network to deploy, out of the checkpoint of a training that goes on or was interrupted."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from kdstream.errors import UserError
from kdstream.models.export import DESCRIPTION, admitted, checked, rebuilt
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.folder import BEST, LAST

CHECKPOINTS = {"last": LAST, "best": BEST}
"""What a user calls them -> the files."""


def read_deployed(
    folder: str | PathLike[str], which: str, trust_code: bool = False, module: nn.Module | None = None
) -> nn.Module:
    """The network that a training would export if it ended here, as :func:`kdstream.models.export.load_student` gives
    it; nothing is written, and the training may go on meanwhile.

    Args:
        folder: of the training.
        which: "last" (the last checkpoint, within an epoch perhaps) or "best" (the best epoch so far).
        trust_code, module: see :func:`kdstream.models.export.load_student`.

    Raises:
        UserError: no such checkpoint yet, or a damaged one; one of an earlier version, which does not describe the
            network; see also ``load_student``.
    """
    if which not in CHECKPOINTS:
        raise UserError(f"checkpoint {which!r}: it is last or best")
    path = Path(folder) / CHECKPOINTS[which]
    state = load_checkpoint(path, "or let the training write it anew")
    if state is None:
        raise UserError(_missing(Path(folder), which))
    found = state.get(DESCRIPTION)
    if not isinstance(found, dict):
        raise UserError(
            f"{path} was written by an earlier version and does not describe its network: continue the training, then "
            "export it"
        )
    about: Any = checked({**found["about"], "extra": {**found["about"].get("extra", {}), "checkpoint": which}}, path)
    weights = state["state"] if which == "best" else found["state"]
    trusted = admitted(about["spec"], lambda spec: trust_code, path, module)
    return rebuilt(about, weights, trusted, path, path, module)


def _missing(folder: Path, which: str) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; give the folder of a training"
    runs = sorted(place.parent.relative_to(folder) for place in folder.rglob(CHECKPOINTS[which]))
    if runs:
        names = ", ".join(str(folder / run) for run in runs[:5])
        return f"{folder} holds several trainings: name one of {names}"
    best = ", or its first epoch is not over" if which == "best" else ""
    return f"{folder} has no {CHECKPOINTS[which]}: no training began there{best}"
