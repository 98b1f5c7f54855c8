"""Checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from kdstream.errors import UserError


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Replace ``path`` by ``state`` (tensors, numbers, text, lists and dicts of these) in one step.

    Raises:
        UserError: the disk is full or the folder cannot be written to; ``path`` is what it was before.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"cannot write the checkpoint {path}: {reason}; make room, then the same command continues"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state at ``path``, on the CPU; None where there is none.

    Raises:
        UserError: not a checkpoint, damaged, or one that holds pickled objects.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds a pickled object, which would run code when read, or is damaged: it is not a checkpoint of "
            "kdstream; delete it to start anew"
        ) from error
    except Exception as error:  # damaged bytes make torch raise many kinds
        raise UserError(
            f"{path} is no readable checkpoint ({type(error).__name__}): delete it to start anew"
        ) from error
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise UserError(f"{path} is not a checkpoint of kdstream: delete it to start anew")
    return state
